"""From a row of a table of runs to a case: what a row leaves out is filled from stated rules, or the row is out of scope and
says why.

No row is refused for a spelling: what is understood is used, what is not stated is filled in, and what was guessed is listed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.shape import EncoderDecoderShape, TransformerShape
from orchestrator.domain.errors import BadInput
from orchestrator.domain.job import JobModel
from orchestrator.domain.layout import Layout, Recompute
from orchestrator.domain.run_row import RunInputs
from orchestrator.planning.parallel.cases import RECOMPUTE, Case
from orchestrator.planning.parallel.columns import columns_of
from orchestrator.planning.parallel.gpus import find_gpu
from orchestrator.planning.parallel.memory import MOST_TOKENS
from orchestrator.planning.parallel.sizes import stage_layers
from orchestrator.planning.parallel.software import Software, optimizer_bytes, schedule_of, shards_in_nodes, software_of
from orchestrator.planning.parallel.spellings import is_dense, precision_code, recompute_word
from orchestrator.planning.run_launch import model_spec

KNOWN_VOCABULARY = 51_200
"""Taken where a source states none: GPT-2's 50,257 padded as Megatron pads it for 8-way tensor parallelism."""
REFERENCE_LEAF_NODES = 32
"""Nodes on one set of rail switches in NVIDIA's DGX SuperPOD reference architecture, whose spines are not oversubscribed."""
PACKED = 0.125
"""Share of the sequence that one sample of a fine-tuning set takes: NVIDIA's recipes pack SQuAD's, of some hundred tokens, into
4,096; no attention leads from one sample to another."""
LADDER = 128
"""Width over depth of models from 7 B to 175 B (Brown et al. 2020, table 2.1), where only a parameter count is stated."""
MOST: Mapping[str, float] = {
    **{"layers": 10_000, "hidden": 1e6, "heads": 100_000, "kv_heads": 100_000, "ffn_hidden": 1e7, "vocab": 1e8, "seq_len": 1e8},
    **{"n_gpus": 1e7, "gpus_per_node": 10_000, "dp": 1e7, "tp": 100_000, "pp": 100_000, "vpp": 10_000, "cp": 100_000},
    **{"zero_stage": 3, "micro_batch": 1e6, "global_batch": 1e8},
}
"""A larger number than this is a slip of the pen."""


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
    guessed: tuple[str, ...]
    """What was filled in that a prediction hangs on; such a row has the interval of a stranger."""


def case_of(run: RunInputs) -> RowCase | OutOfScope:
    """The case a row describes, from its inputs alone."""
    reason = _out_of_scope(run)
    if reason:
        return OutOfScope(reason)
    filled, guessed = _filled(run)
    for name in ("layers", "hidden", "heads", "seq_len", "n_gpus"):
        if not getattr(filled, name):
            return OutOfScope(f"{name} is not stated")
    software = software_of(run.framework)
    one_way = software.default_zero == 3 or run.zero_stage == 3 or filled.n_gpus == 1
    if run.tp is None and run.pp is None and run.dp is None and not one_way:
        return OutOfScope("the layout is not stated")
    tp, pp, cp, n_gpus = filled.tp or 1, filled.pp or 1, filled.cp or 1, filled.n_gpus or 1
    if n_gpus % (tp * pp * cp):
        return OutOfScope(f"{n_gpus} GPUs are not divisible by tensor {tp} x pipeline {pp} x context {cp}")
    if (filled.layers or 0) < pp:
        return OutOfScope(f"{filled.layers} layers cannot fill {pp} stages")
    return _complete(filled, software, n_gpus // (tp * pp * cp), guessed)


def _out_of_scope(run: RunInputs) -> str:
    """Why nothing can be said about a row, as far as single cells show it; empty where nothing does."""
    if not is_dense(run.arch) or (run.ep or 1) > 1:
        return f"architecture {run.arch}: only dense Transformers are modelled"
    if re.search(r"lora|adapter|peft", run.workload.lower()):
        return f"workload {run.workload}: adapters' shape is not a column"
    if find_gpu(run.gpu) is None:
        return f"unknown GPU {run.gpu or '(empty)'}"
    if precision_code(run.precision) is None:
        return f"unknown precision {run.precision}"
    for name, most in MOST.items():
        if (getattr(run, name) or 0) > most:
            return f"{name} {getattr(run, name):.3g} is above {most:.3g}"
    return ""


def _filled(run: RunInputs) -> tuple[RunInputs, tuple[str, ...]]:
    """The row with what follows from its other cells, and the names of what was guessed."""
    guessed = []
    n_gpus = run.n_gpus or ((run.dp or 0) * (run.tp or 1) * (run.pp or 1) * (run.cp or 1))
    layers, hidden = run.layers, run.hidden
    if run.parameters_b and not (layers and hidden):
        guessed.append("shape")
        weights = run.parameters_b * 1e9
        if hidden and not layers:
            layers = max(1, round(weights / (12.0 * hidden**2)))
        elif layers:
            hidden = 128 * max(1, round((weights / (12.0 * layers)) ** 0.5 / 128))
        else:
            layers = max(1, round((weights / (12.0 * LADDER**2)) ** (1.0 / 3.0)))
            hidden = 128 * max(1, round((weights / (12.0 * layers)) ** 0.5 / 128))
    heads = run.heads
    if hidden and not heads:
        guessed.append("heads")
        heads = max(1, hidden // 128)
    batch = run.global_batch
    if not batch and n_gpus:
        guessed.append("batch")
        pp = run.pp or 1
        micro = run.micro_batch or (1 if pp > 1 else max(1, MOST_TOKENS // (run.seq_len or MOST_TOKENS)))
        batch = max(1, n_gpus // ((run.tp or 1) * pp * (run.cp or 1))) * micro * (4 * pp if pp > 1 else 1)
    if recompute_word(run.act_ckpt) is None:
        guessed.append("recomputation")
    return replace(run, n_gpus=n_gpus or None, layers=layers, hidden=hidden, heads=heads, global_batch=batch), tuple(guessed)


def _complete(run: RunInputs, software: Software, dp: int, guessed: tuple[str, ...]) -> RowCase:
    gpu, low = find_gpu(run.gpu), precision_code(run.precision)
    # Checked by `case_of`: every one of them is there.
    assert gpu and low is not None and run.hidden and run.heads and run.layers and run.seq_len and run.n_gpus and run.global_batch  # noqa: S101
    pp, each = run.pp or 1, -(-run.global_batch // dp)
    # With a pipeline micro-batches are kept small for its bubble; without one they are as large as memory allows.
    chunks = max(1, min(run.vpp or _assumed_chunks(run, software), -(-run.layers // pp)))
    unsaid = 0 if pp == 1 else max(1, each // (pp * chunks)) if software.micro_batches_as_stages else 1
    micro = min(run.micro_batch or unsaid, each)
    recompute = recompute_word(run.act_ckpt) or software.default_recompute
    per_node = min(run.gpus_per_node or min(gpu.nvlink_domain, 8), run.n_gpus)
    of_node = run.gpus_per_node or min(gpu.nvlink_domain, 8)
    link = (run.internode_gbit_s_per_node or gpu.internode_gbit_s_per_gpu * of_node) / of_node
    zero = software.default_zero if run.zero_stage is None else run.zero_stage
    case = Case(
        layers=run.layers,
        hidden=run.hidden,
        heads=run.heads,
        kv_heads=min(run.kv_heads or run.heads, run.heads),
        ffn=run.ffn_hidden or 4 * run.hidden,
        vocab=run.vocab or KNOWN_VOCABULARY,
        seq=run.seq_len,
        attended=PACKED if "sft" in run.workload.lower() or "fine" in run.workload.lower() else 1.0,
        gated=float(bool(run.gated_mlp)),
        tied=float(run.kv_heads in (None, run.heads) and not run.gated_mlp),
        global_batch=run.global_batch,
        dp=dp,
        tp=run.tp or 1,
        pp=pp,
        vpp=chunks,
        cp=run.cp or 1,
        zero=zero,
        shard=max(per_node // (run.tp or 1), 1) if shards_in_nodes(run.framework) else 0,
        micro=micro,
        recompute=RECOMPUTE.get(recompute, -1),
        offload=float("offload" in run.framework.lower()),
        state_o=optimizer_bytes(software, low, zero),
        domain=gpu.nvlink_domain if gpu.nvlink_domain > per_node and gpu.nvlink_domain > 16 else per_node,
        per_node=per_node,
        network=link * 1e9 / 8,
        leaf_gpus=REFERENCE_LEAF_NODES * per_node,
        spine_share=1.0,
        **columns_of(run.framework, software, gpu, low, run.precision == "bf16"),
    )
    return RowCase(case, gpu.family, software.constants_of or software.name, guessed)


def _assumed_chunks(run: RunInputs, software: Software) -> int:
    """Virtual stages where a source leaves them out: the most that divide, up to what the framework's recipes take."""
    pp = run.pp or 1
    if pp == 1 or schedule_of(run.framework) != "1f1b" or not run.layers:
        return 1
    share = stage_layers(run.layers, pp) or 1
    return max(v for v in range(1, software.assumed_chunks + 1) if share % v == 0)


def cells_of(shape: TransformerShape) -> dict[str, Any]:
    """A model's shape as the cells of a row."""
    return {
        "layers": shape.layers,
        "hidden": shape.d_model,
        "heads": shape.heads,
        "kv_heads": shape.key_value_heads,
        "ffn_hidden": shape.d_ff,
        "vocab": shape.vocabulary,
        "gated_mlp": shape.is_gated,
    }


def inputs_of_job(job: Mapping[str, Any], gpu: str) -> RunInputs:
    """A run of this project's own engine, from its job as JSON. Raises BadInput for a job without a model or a batch, or with
    an encoder."""
    model, batch, layout = job.get("model"), job.get("batch"), job.get("layout") or {}
    if not model or not batch:
        raise BadInput(f"job {job.get('name')} runs a command, not a model", "calibrate with a run that trains a model")
    shape = model_spec(JobModel.model_validate(model)).shape()
    if isinstance(shape, EncoderDecoderShape):
        raise BadInput(f"job {job.get('name')} trains a model with an encoder", "only decoder-only Transformers are modelled")
    pipeline, tensor, data = layout.get("pipeline", 1), layout.get("tensor", 1), layout.get("data", 1)
    sequence = layout.get("sequence", 1)
    offload = bool((job.get("optimizer") or {}).get("offload"))
    return RunInputs(
        gpu=gpu,
        framework="rackray, offload" if offload else "rackray",
        model=str(job.get("name", "")),
        **cells_of(shape),
        seq_len=batch["sequence_tokens"],
        n_gpus=pipeline * tensor * sequence * data,
        gpus_per_node=job.get("ranks_per_node", 1),
        dp=data,
        tp=tensor,
        pp=pipeline,
        cp=sequence,
        zero_stage=layout.get("zero", 1),
        micro_batch=batch["micro_sequences"],
        global_batch=batch["global_sequences"],
        act_ckpt=str(job.get("activation_checkpointing", "none")),
        precision=str(job.get("precision", "fp32")),
    )


def layout_of_job(job: Mapping[str, Any]) -> Layout:
    """The layout that a job as JSON asks for. Raises BadInput for a job without a model or a batch."""
    asked = inputs_of_job(job, "")
    return Layout(
        data=asked.dp or 1,
        tensor=asked.tp or 1,
        pipeline=asked.pp or 1,
        context=asked.cp or 1,
        zero=asked.zero_stage or 0,
        micro_sequences=asked.micro_batch or 1,
        recompute=Recompute(asked.act_ckpt or "none"),
        offload="offload" in asked.framework,
    )
