"""From a row of a table of runs to a case: what a row leaves out is filled from stated rules, or the row is out of scope and
says why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.errors import BadInput
from orchestrator.domain.run_row import RunInputs
from orchestrator.planning.parallel.cases import RECOMPUTE, SCHEDULES, Case
from orchestrator.planning.parallel.gpus import GpuType, find_gpu
from orchestrator.planning.parallel.software import Software, schedule_of, software_of

KNOWN_VOCABULARY = 51_200
"""Taken where a source states none: GPT-2's 50,257 padded as Megatron pads it for 8-way tensor parallelism."""


@dataclass(frozen=True, slots=True)
class OutOfScope:
    """Why a row is not predicted."""

    reason: str


@dataclass(frozen=True, slots=True)
class RowCase:
    """A row made complete."""

    case: Case
    family: str
    software: str


def case_of(run: RunInputs) -> RowCase | OutOfScope:
    """The case a row describes, from its inputs alone."""
    if run.arch != "dense":
        return OutOfScope(f"architecture {run.arch}: only dense Transformers are modelled")
    if run.workload == "lora":
        return OutOfScope("workload lora: adapters' shape is not a column")
    gpu = find_gpu(run.gpu)
    if gpu is None:
        return OutOfScope(f"unknown GPU {run.gpu or '(empty)'}")
    needed = {"layers": run.layers, "hidden": run.hidden, "heads": run.heads, "seq_len": run.seq_len, "n_gpus": run.n_gpus}
    for name, value in needed.items():
        if not value:
            return OutOfScope(f"{name} is not stated")
    if not run.global_batch:
        return OutOfScope("global_batch is not stated")
    assert run.hidden and run.heads and run.layers and run.seq_len and run.n_gpus  # noqa: S101 - checked above
    tp, pp, cp = run.tp or 1, run.pp or 1, run.cp or 1
    if run.tp is None and run.pp is None and run.dp is None and run.zero_stage != 3:
        return OutOfScope("the layout is not stated")
    if run.n_gpus % (tp * pp * cp):
        return OutOfScope(f"{run.n_gpus} GPUs are not divisible by tensor {tp} x pipeline {pp} x context {cp}")
    dp = run.n_gpus // (tp * pp * cp)
    if run.layers < pp:
        return OutOfScope(f"{run.layers} layers cannot fill {pp} stages")
    return _complete(run, gpu, software_of(run.framework), dp)


def _complete(run: RunInputs, gpu: GpuType, software: Software, dp: int) -> RowCase | OutOfScope:
    assert run.hidden and run.heads and run.layers and run.seq_len and run.n_gpus and run.global_batch  # noqa: S101 - checked
    low = precision_code(run.precision)
    if low is None:
        return OutOfScope(f"unknown precision {run.precision}")
    micro = run.micro_batch or min(max(1, run.global_batch // dp), 1)
    zero = software.default_zero if run.zero_stage is None else run.zero_stage
    recompute = run.act_ckpt or software.default_recompute
    if recompute not in (*RECOMPUTE, "auto"):
        return OutOfScope(f"unknown activation checkpointing {recompute}")
    word = {0: "bf16", 1: "fp8", 2: "fp4", -1: "fp32"}[low]
    per_node = min(run.gpus_per_node or min(gpu.nvlink_domain, 8), run.n_gpus)
    link = (run.internode_gbit_s_per_node or gpu.internode_gbit_s_per_gpu * (run.gpus_per_node or 8)) / (run.gpus_per_node or 8)
    tied = run.kv_heads in (None, run.heads) and not run.gated_mlp
    case = Case(
        layers=run.layers,
        hidden=run.hidden,
        heads=run.heads,
        kv_heads=run.kv_heads or run.heads,
        ffn=run.ffn_hidden or 4 * run.hidden,
        vocab=run.vocab or KNOWN_VOCABULARY,
        seq=run.seq_len,
        gated=float(bool(run.gated_mlp)),
        tied=float(tied),
        global_batch=run.global_batch,
        dp=dp,
        tp=run.tp or 1,
        pp=run.pp or 1,
        vpp=run.vpp or _assumed_chunks(run, software),
        cp=run.cp or 1,
        zero=zero,
        micro=micro,
        recompute=RECOMPUTE.get(recompute, -1),
        schedule=SCHEDULES[schedule_of(run.framework)],
        offload=float("offload" in run.framework.lower()),
        sequence_parallel=float(software.sequence_parallel),
        flash=float(software.flash),
        fused_loss=float(software.fused_loss),
        low=low,
        state_p=software.parameter_bytes,
        state_g=software.gradient_bytes + (software.bf16_copy_bytes if run.precision == "bf16" else 0.0),
        state_o=software.optimizer_bytes,
        peak=gpu.peak_tflops(word) * 1e12,
        peak16=gpu.bf16_tflops * 1e12,
        memory_bw=gpu.memory_gb_s * 1e9,
        memory=gpu.memory_gib * 2**30,
        multiprocessors=gpu.multiprocessors,
        nvlink=gpu.nvlink_gb_s * 1e9,
        domain=max(gpu.nvlink_domain, per_node),
        per_node=per_node,
        network=link * 1e9 / 8,
        gpu_power_w=gpu.power_w,
    )
    return RowCase(case, gpu.family, software.name)


def _assumed_chunks(run: RunInputs, software: Software) -> int:
    """Virtual stages where a source leaves them out: Megatron's descendants interleave as a rule, so the most that divide, up
    to 6."""
    pp = run.pp or 1
    if pp == 1 or not software.interleaves or schedule_of(run.framework) != "1f1b" or not run.layers:
        return 1
    layers = run.layers if run.layers % pp == 0 else run.layers + 2
    share = layers // pp if layers % pp == 0 else 1
    return max(v for v in range(1, 7) if share % v == 0)


def inputs_of_job(job: Mapping[str, Any], gpu: str) -> RunInputs:
    """A run of this project's own engine, from its job as JSON. Raises BadInput for a job without a model or a batch."""
    model, batch, layout = job.get("model"), job.get("batch"), job.get("layout") or {}
    if not model or not batch:
        raise BadInput(f"job {job.get('name')} runs a command, not a model", "calibrate with a run that trains a model")
    pipeline, data = layout.get("pipeline", 1), layout.get("data", 1)
    return RunInputs(
        gpu=gpu,
        framework="rackray",
        model=str(job.get("name", "")),
        layers=model["layers"],
        hidden=model["d_model"],
        heads=model["heads"],
        ffn_hidden=model["d_ff"],
        vocab=model["vocabulary"],
        seq_len=batch["sequence_tokens"],
        gated_mlp=False,
        n_gpus=pipeline * data,
        gpus_per_node=job.get("ranks_per_node", 1),
        dp=data,
        tp=1,
        pp=pipeline,
        cp=1,
        zero_stage=layout.get("zero", 1),
        micro_batch=batch["micro_sequences"],
        global_batch=batch["global_sequences"],
        act_ckpt="none",
        precision=str(job.get("precision", "fp32")),
    )


def precision_code(precision: str | None) -> int | None:
    """0: 16 bit (also where nothing is stated), 1: 8 bit, 2: 4 bit, -1: 32 bit; None: not understood."""
    word = (precision or "bf16").lower()
    for part, code in (
        ("fp4", 2),
        ("fp8", 1),
        ("f8", 1),
        ("int8", 1),
        ("fp32", -1),
        ("tf32", -1),
        ("16", 0),
        ("mixed", 0),
        ("amp", 0),
    ):
        if part in word:
            return code
    return None
