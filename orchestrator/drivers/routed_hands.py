"""Several Hands behind one: each action goes to the Hands that can do it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from orchestrator.domain.operation import Action, Operation, Outcome
from orchestrator.drivers.interfaces import Hands


class RoutedHands:
    """Implements `interfaces.Hands`; an action that no route names goes to `default`."""

    def __init__(self, routes: Mapping[Action, Hands], default: Hands) -> None:
        self._routes, self._default = dict(routes), default
        # The same Hands may serve many actions and are polled and closed once.
        self._all = list({id(hands): hands for hands in (*self._routes.values(), default)}.values())

    def submit(self, operations: Sequence[Operation]) -> None:
        """Hands over the operations, each group in one call, so that playbooks may share a run."""
        groups: dict[int, list[Operation]] = defaultdict(list)
        for operation in operations:
            groups[id(self._routes.get(operation.action, self._default))].append(operation)
        for hands in self._all:
            if id(hands) in groups:
                hands.submit(groups[id(hands)])

    def poll(self) -> list[Outcome]:
        """The outcomes of all."""
        return [outcome for hands in self._all for outcome in hands.poll()]

    def close(self) -> None:
        """Closes all."""
        for hands in self._all:
            hands.close()
