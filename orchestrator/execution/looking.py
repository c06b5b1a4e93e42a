"""Looking at nodes without deciding anything: for `plan`, which must not write, and for commands that only read."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator.domain.errors import BadInput
from orchestrator.domain.node import NodeRecord
from orchestrator.domain.operation import MUTATING, Action, Operation, Outcome, Status
from orchestrator.domain.spec import ClusterSpec
from orchestrator.planning.site import Site

THREADS = 32


def look_at(
    spec: ClusterSpec,
    actions: Sequence[Action],
    records: Mapping[str, NodeRecord],
    perform: Callable[[Operation], Outcome],
) -> dict[str, dict[Action, Any]]:
    """What every node answers to `actions` (read-only ones), asked in order; after the first that fails the node is left alone.

    Raises BadInput for an action that changes something.
    """
    if changing := [action for action in actions if action in MUTATING]:
        raise BadInput(f"{', '.join(changing)} would change something: not a look")
    site = Site.of(spec)

    def look(name: str) -> tuple[str, dict[Action, Any]]:
        record = records.get(name) or site.blank(name)
        seen: dict[Action, Any] = {}
        for action in actions:
            args = {"serial": site.nodes[name].serial, "image": spec.services.image.name} if action is Action.IMAGE_REPORT else {}
            outcome = perform(Operation(f"look.{action}.{name}", name, action, 0, site.target(record), args))
            if outcome.status is not Status.DONE:
                break
            seen[action] = dict(outcome.facts)
        return name, seen

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(pool.map(look, site.nodes))
