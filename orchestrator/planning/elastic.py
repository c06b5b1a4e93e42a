"""Fewer replicas where nodes are missing: which smaller layouts a job allows, and which one a run has. Pure.

A checkpoint can be continued in any layout, so a run that lost nodes need not wait for new ones. Only the number of replicas
changes: stages, tensor ranks and the global batch stay, and with them the losses.
"""

from collections.abc import Iterator

from orchestrator.domain.job import JobSpec


def smaller_jobs(job: JobSpec) -> Iterator[JobSpec]:
    """`job` with fewer and fewer replicas, down to `layout.least_data`; only those whose batch and nodes come out even."""
    layout, batch = job.layout, job.batch
    if layout.least_data is None or batch is None or job.command:
        return
    for data in range(layout.data - 1, layout.least_data - 1, -1):
        ranks = layout.ranks_per_replica * data
        counted = ((batch.global_sequences, batch.micro_sequences), (batch.global_tokens, batch.micro_tokens))
        divides = all(whole % (micro * data) == 0 for whole, micro in counted if whole and micro)
        if divides and ranks % job.ranks_per_node == 0:
            yield with_replicas(job, data)


def as_placed(job: JobSpec, ranks: int) -> JobSpec:
    """`job` with the replicas that `ranks` placed ranks make: its own, or fewer."""
    if job.command or ranks in (0, job.ranks):
        return job
    return with_replicas(job, ranks // job.layout.ranks_per_replica)


def with_replicas(job: JobSpec, data: int) -> JobSpec:
    """`job` with `data` replicas on as many nodes as they fill."""
    ranks = job.layout.ranks_per_replica * data
    layout = job.layout.model_copy(update={"data": data})
    return job.model_copy(update={"layout": layout, "nodes": ranks // job.ranks_per_node})
