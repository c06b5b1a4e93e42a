"""A plan in a file: what somebody read and approved, with the spec it was made from and the place in the journal it starts at."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cli.output import write_whole
from orchestrator.domain.errors import BadInput, NotAsRequired
from orchestrator.domain.spec import ClusterSpec

FORMAT = 1


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A saved plan."""

    spec: ClusterSpec
    text: str
    """The spec's text as its author wrote it."""
    sha256: str
    """Digest of that text's file, as `apply` journals it."""
    file: str
    journal_seq: int
    """Number of the journal's last event when the plan was made; 0 for a new cluster."""
    limit: tuple[str, ...]
    """Nodes the plan is limited to; empty for all."""


def write_plan(path: Path, plan: PlanFile, steps: list[dict[str, Any]]) -> None:
    """Write `plan` with its steps to `path`; the file appears whole or not at all. Raises BadInput where it cannot be written."""
    body = {
        "spec": plan.spec.model_dump(mode="json"),
        "text": plan.text,
        "sha256": plan.sha256,
        "file": plan.file,
        "journal_seq": plan.journal_seq,
        "limit": list(plan.limit),
        "steps": steps,
    }
    write_whole(path, json.dumps({"rackray_plan": FORMAT, "digest": _digest(body), **body}, indent=1))


def read_plan(path: Path) -> PlanFile | None:
    """The plan in `path`, or None where the file is no plan (a spec). Raises BadInput for a plan that was changed or cut."""
    try:
        with path.open(encoding="utf-8") as file:
            if file.read(1) != "{":
                return None
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whatever is wrong with it, the spec's reader says it with line and column
    if not isinstance(body, dict) or body.pop("rackray_plan", None) != FORMAT:
        return None
    again = f"make it again: `rackray plan SPEC -o {path}`"
    if body.pop("digest", None) != _digest(body):
        raise BadInput(f"{path} is not the plan that was written: its digest differs", again)
    try:
        spec = ClusterSpec.model_validate(body["spec"])
    except ValueError as error:
        raise BadInput(f"{path} holds a spec that this rackray does not read; another version wrote it", again) from error
    return PlanFile(spec, body["text"], body["sha256"], body["file"], body["journal_seq"], tuple(body["limit"]))


def must_still_hold(plan: PlanFile, journal_seq: int, path: Path) -> None:
    """Raises NotAsRequired when the journal has moved on since the plan was made: what was approved may no longer be so."""
    if journal_seq != plan.journal_seq:
        raise NotAsRequired(
            f"the plan was made at event {plan.journal_seq}, the journal stands at {journal_seq}: the cluster has changed since",
            f"make it again and read it: `rackray plan {plan.file} -o {path}`",
        )


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
