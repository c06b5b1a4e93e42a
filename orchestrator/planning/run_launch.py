"""What a rank is started with: its environment, its command and RUN.json. Pure."""

import hashlib
from dataclasses import asdict, dataclass

from model.contract import (
    BatchSpec,
    CheckpointSpec,
    DataSpec,
    GuardSpec,
    LayoutSpec,
    ModelSpec,
    OptimizerSpec,
    RunSpec,
    model_of_shape,
)
from model.shape import PRESETS
from orchestrator.domain.job import JobModel, JobSpec
from orchestrator.domain.run import RunRecord
from orchestrator.domain.spec import Runtime
from orchestrator.planning.elastic import as_placed
from orchestrator.planning.power_caps import PowerCap

FIRST_PORT, PORTS = 20_000, 10_000
"""Rendezvous ports: above Ray's worker ports (10002-19999), below Linux's ephemeral ones (32768-60999)."""


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where everything of a run lies on the shared storage. The only place that knows."""

    shared_directory: str

    def run(self, run_id: str) -> str:
        return f"{self.shared_directory}/rackray/runs/{run_id}"

    def checkpoints(self, run_id: str) -> str:
        return f"{self.run(run_id)}/checkpoints"

    def data(self, name: str) -> str:
        return f"{self.shared_directory}/rackray/data/{name}"


def rank_log_path(run: RunRecord, rank: int) -> str:
    """Log of one rank of the present attempt, as its node sees it."""
    return f"{run.directory}/attempt-{run.attempt}/rank-{rank}.log"


def master_port(run_id: str, attempt: int) -> int:
    """Rendezvous port: the same for the same attempt whoever asks, another for the next, so that a leftover rank of an
    earlier attempt cannot join."""
    digest = hashlib.sha256(f"{run_id}/{attempt}".encode()).digest()
    return FIRST_PORT + int.from_bytes(digest[:4], "big") % PORTS


def model_spec(model: JobModel) -> ModelSpec:
    """The job's model with a preset's numbers filled in. Raises KeyError for a preset that does not exist and TypeError where
    numbers are missing (`planning/job_check.py` finds both before)."""
    given = model.model_dump(exclude={"preset"}, exclude_none=True)
    return ModelSpec(**{**(asdict(model_of_shape(PRESETS[model.preset])) if model.preset else {}), **given})


def run_spec(run: RunRecord, job: JobSpec, paths: RunPaths) -> RunSpec:
    """RUN.json of the present attempt as a value; not checked (`planning/job_check.py` does that).

    A first attempt that continues nothing must not find checkpoints; every other one continues from the newest complete one,
    which the model itself looks for. Raises ValueError for a job without a model.
    """
    if job.model is None or job.batch is None or job.optimizer is None:
        raise ValueError(f"job {job.name} has no model to train")
    layout = as_placed(job, len(run.ranks)).layout
    return RunSpec(
        run_id=run.id,
        seed=job.seed,
        model=model_spec(job.model),
        data=DataSpec(
            corpus=job.data.corpus,
            directory=paths.data(job.data.name),
            heldout_fraction=job.data.heldout_fraction,
            source_language=job.data.source_language,
            target_language=job.data.target_language,
        ),
        layout=LayoutSpec(**layout.model_dump(exclude={"least_data"})),
        batch=BatchSpec(**job.batch.model_dump(exclude_none=True)),
        optimizer=OptimizerSpec(**job.optimizer.model_dump()),
        steps=run.steps,
        evaluate_every_steps=job.evaluate_every_steps,
        checkpoint=CheckpointSpec(
            directory=paths.checkpoints(run.checkpoint_run or run.id),
            every_steps=job.checkpoint.every_steps,
            keep=job.checkpoint.keep,
            background=job.checkpoint.background,
        ),
        guard=GuardSpec(**job.guard.model_dump()),
        resume=run.attempt > 1 or bool(run.resume_of),
        precision=job.precision,
        activation_checkpointing=job.activation_checkpointing,
        output_directory=run.directory,
    )


def run_json(run: RunRecord, job: JobSpec, paths: RunPaths) -> str:
    """The text of RUN.json for the present attempt; empty for a `command` job."""
    return "" if job.command else run_spec(run, job, paths).to_json()


def rank_argv(run: RunRecord, job: JobSpec, runtime: Runtime) -> list[str]:
    """The command of every rank."""
    return list(job.command) if job.command else [runtime.python, "-m", "model.train", f"{run.directory}/RUN.json"]


def rank_environment(
    run: RunRecord, rank: int, *, has_cuda: bool, interface: str, power_cap: PowerCap | None = None
) -> dict[str, str]:
    """Rendezvous and placement of one rank, as torch.distributed's `env://` reads it, and the power cap of its node."""
    node = run.rank(rank).node
    on_node = [placed.rank for placed in run.ranks if placed.node == node]
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(run.ranks)),
        "LOCAL_RANK": str(on_node.index(rank)),
        "LOCAL_WORLD_SIZE": str(len(on_node)),
        # DeepSpeed's own name for the same.
        "LOCAL_SIZE": str(len(on_node)),
        "MASTER_ADDR": run.master_address,
        "MASTER_PORT": str(run.master_port),
        "PYTHONUNBUFFERED": "1",
        "RACKRAY_RUN": run.id,
        "RACKRAY_ATTEMPT": str(run.attempt),
        "RACKRAY_NODE": node,
    }
    if interface:
        environment |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    if power_cap is not None:
        environment["RACKRAY_NODE_POWER_CAP_W"] = f"{power_cap.node_w:.0f}"
        if power_cap.gpu_w is not None:
            environment["RACKRAY_GPU_POWER_CAP_W"] = f"{power_cap.gpu_w:.0f}"
    if not has_cuda:
        # Without these DeepSpeed looks for a GPU, and every rank starts one thread per core of the machine.
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return environment
