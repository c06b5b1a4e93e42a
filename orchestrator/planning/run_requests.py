"""Requests that concern training runs: submit and cancel."""

from orchestrator.domain.event import Event
from orchestrator.domain.run import next_run_id
from orchestrator.domain.state import ClusterState


def submit_run(request: Event, state: ClusterState) -> tuple[list[Event], str]:
    """A new run, numbered after its job. The placement comes later, when there is room."""
    if state.spec is None:
        return [], "refused: no spec has been applied, so there is no node to run on"
    run_id = next_run_id(str(request.data["job"]["name"]), state.runs)
    return [Event("run.submitted", run_id, dict(request.data))], run_id


def cancel_run(request: Event, state: ClusterState) -> tuple[list[Event], str]:
    """End a run cleanly: its ranks write a checkpoint first."""
    run = state.runs.get(request.data["run"])
    if run is None:
        return [], f"refused: there is no run {request.data['run']}"
    if run.is_ended:
        return [], f"{run.id} is {run.state} already"
    return [
        Event("run.stop_requested", run.id, {"by": request.data["by"], "reason": request.data["reason"]})
    ], f"{run.id} is being stopped"
