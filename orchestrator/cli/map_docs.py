"""The parts of a README that are drawn from the code: `python -m orchestrator.cli.map_docs orchestrator/README.md`.

A part stands between two comments, `<!-- drawn: PART -->` and `<!-- end: PART -->`; the words around it are a person's.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from orchestrator.cli.main import COMMANDS
from orchestrator.domain.node import BRING_UP, EQUIPMENT_BRING_UP, EQUIPMENT_MOVES, LEGAL_MOVES, NodeState
from orchestrator.domain.run import LEGAL_RUN_MOVES, RunState

_PART = re.compile(r"(?P<begin><!-- drawn: (?P<name>[^>]*?) -->\n)(?P<body>.*?)(?P<end><!-- end: (?P=name) -->)", re.DOTALL)

S = TypeVar("S", bound=StrEnum)


def with_drawings(readme: str) -> str:
    """`readme` with every drawn part fresh. Raises ValueError for a part that nobody draws, or one that does not end."""
    fresh = _PART.sub(_redraw, readme)
    begun, drawn = readme.count("<!-- drawn: "), len(_PART.findall(readme))
    if begun != drawn:
        raise ValueError(f"{begun} drawn parts begin and {drawn} end: each needs its line `<!-- end: PART -->`")
    return fresh


def state_meanings(states: type[StrEnum]) -> dict[str, str]:
    """What the text under each member of an enum says. Raises ValueError for a member without one."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(states)).body if isinstance(node, ast.ClassDef))
    meanings: dict[str, str] = {}
    name = ""
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]):
                continue
            case ast.Expr(value=ast.Constant(value=str(text))) if name:
                meanings[str(states[name])] = " ".join(text.split()).replace("|", "\\|")
    silent = [str(state) for state in states if str(state) not in meanings]
    if silent:
        raise ValueError(f"{states.__name__} does not say what has been proven in {', '.join(silent)}")
    return meanings


def state_table(states: type[S], moves: Mapping[S, Collection[S]], meaning: str) -> str:
    """One row per state, in the order of the enum: what it means and where it may go."""
    meanings = state_meanings(states)
    rows = [f"| `{state}` | {meanings[state]} | {_names(states, moves[state])} |" for state in states]
    return "\n".join([f"| state | {meaning} | may become |", "|---|---|---|", *rows])


def node_drawing(bring_up: Sequence[NodeState] = BRING_UP, moves: Mapping[NodeState, Collection[NodeState]] = LEGAL_MOVES) -> str:
    """A machine's life as a Mermaid diagram: bring-up in one box, with one arrow for a move that all of its states have."""
    common = frozenset.intersection(*(frozenset(moves[state]) for state in bring_up))
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> bring_up", "    state bring_up {", f"        [*] --> {bring_up[0]}"]
    lines += [f"        {old} --> {new}" for old, new in _arrows(NodeState, moves) if {old, new} <= {*bring_up}]
    lines += ["    }", *(f"    bring_up --> {state}" for state in NodeState if state in common)]
    for old, new in _arrows(NodeState, moves):
        if not {old, new} <= {*bring_up} and not (old in bring_up and new in common):
            lines.append(f"    {old} --> {new}")
    return "\n".join([*lines, *_endings(NodeState, moves), "```"])


def run_drawing() -> str:
    """A run's life as a Mermaid diagram."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {RunState.WAITING}"]
    lines += [f"    {old} --> {new}" for old, new in _arrows(RunState, LEGAL_RUN_MOVES) if old is not new]
    return "\n".join([*lines, *_endings(RunState, LEGAL_RUN_MOVES), "```"])


def command_table() -> str:
    """Every command with its line of `rackray --help`."""
    rows = [f"| `rackray {name}` | {row.help} |" for name, row in COMMANDS.items()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


DRAWN: Mapping[str, Callable[[], str]] = {
    "states of a node": lambda: state_table(NodeState, LEGAL_MOVES, "what has been proven"),
    "life of a node": node_drawing,
    "life of equipment": lambda: node_drawing(EQUIPMENT_BRING_UP, EQUIPMENT_MOVES),
    "states of a run": lambda: state_table(RunState, LEGAL_RUN_MOVES, "what it means"),
    "life of a run": run_drawing,
    "commands": command_table,
}
"""Every part that can be drawn."""


def _redraw(found: re.Match[str]) -> str:
    draw = DRAWN.get(found["name"])
    if draw is None:
        raise ValueError(f"nobody draws {found['name']!r}; there is {', '.join(DRAWN)}")
    return f"{found['begin']}{draw()}\n{found['end']}"


def _arrows(states: type[S], moves: Mapping[S, Collection[S]]) -> list[tuple[S, S]]:
    """All moves, in the order of the enum, so that a drawing only changes when the table does."""
    return [(old, new) for old in states for new in states if new in moves.get(old, ())]


def _endings(states: type[S], moves: Mapping[S, Collection[S]]) -> list[str]:
    return [f"    {state} --> [*]" for state in states if state in moves and not moves[state]]


def _names(states: type[S], chosen: Collection[S]) -> str:
    return ", ".join(f"`{state}`" for state in states if state in chosen) or "nothing: it ends here"


def main(arguments: list[str]) -> int:
    """Redraw the parts inside each README that is named."""
    if not arguments:
        print("usage: python -m orchestrator.cli.map_docs README.md ...", file=sys.stderr)
        return 2
    for path in map(Path, arguments):
        path.write_text(with_drawings(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
