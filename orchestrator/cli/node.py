"""`rackray node`: one node or a set of them."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import click

from orchestrator import wiring
from orchestrator.cli.groups import CommandGroup
from orchestrator.cli.nodes import chosen
from orchestrator.cli.output import accepted, age, confirm, print_json, print_table
from orchestrator.cli.rollout_view import RolloutView
from orchestrator.domain.errors import NotAsRequired
from orchestrator.domain.node import IN_SERVICE, SETTLED, NodeRecord, NodeState
from orchestrator.domain.words import counted
from orchestrator.execution.views import Views

MOST_LETTERS = 110
"""Of a fact on one line."""


@click.group(cls=CommandGroup)
def node() -> None:
    """Look at nodes, take them out of service, and let them prove themselves again."""


@node.command()
@click.argument("nodes", required=False, default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(nodes: str, as_json: bool) -> None:
    """What is known of NODES, on what evidence, and how old it is."""
    views = wiring.open_views(wiring.home())
    records = [views.state.nodes[name] for name in chosen(nodes, views.state)]
    if as_json:
        facts = [{str(action): {"at": fact.at_s, **fact.values} for action, fact in record.facts.items()} for record in records]
        rows = [{"name": r.name, "state": str(r.state), "because": r.because, "pins": dict(r.pins)} for r in records]
        print_json([{**row, "facts": each} for row, each in zip(rows, facts, strict=True)])
        return
    _print_records(records, views.now_s())


def _print_records(records: list[NodeRecord], now_s: float) -> None:
    for record in records:
        click.echo(f"{record.name}  {record.state} for {age(now_s - record.since_s)}: {record.because}")
        if record.run:
            click.echo(f"  held by {record.run}")
        rows = [(str(action), age(now_s - fact.at_s), short(fact.values)) for action, fact in sorted(record.facts.items())]
        rows += [(f"pin {key}", "", value[:60]) for key, value in record.pins.items()]
        print_table(("  evidence", "age", "what"), [(f"  {name}", old, what) for name, old, what in rows])


@node.command()
@click.argument("nodes")
@click.option("--reason", required=True, help="Why the cause is cleared; it is journaled with your name.")
@click.option("--yes", is_flag=True, help="Do not ask when it concerns more than one node.")
def requalify(nodes: str, reason: str, yes: bool) -> int:
    """Quarantined NODES (or nodes in maintenance) prove everything again and return to service."""
    return _ask("request.requalify", nodes, reason, yes, "Prove {nodes} again?", wanted=IN_SERVICE)


@node.command()
@click.argument("nodes")
@click.option("--reason", required=True, help="Why; it is journaled with your name.")
@click.option("--yes", is_flag=True, help="Do not ask when it concerns more than one node.")
def drain(nodes: str, reason: str, yes: bool) -> int:
    """Take ready NODES out of service, into maintenance."""
    return _ask("request.drain", nodes, reason, yes, "Take {nodes} out of service?", wanted={NodeState.MAINTENANCE})


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--reason", required=True, help="How the fingerprint was compared; it is journaled with your name.")
@click.option("--yes", is_flag=True, help="The fingerprint has been compared already.")
def enroll(name: str, reason: str, yes: bool) -> None:
    """Show the SSH host key NODE presents, and pin it once you have compared its fingerprint."""
    views = wiring.open_views(wiring.home())
    (only,) = chosen(name, views.state)
    key, fingerprint = wiring.scan_host_key(views, only)
    click.echo(f"{only} presents {fingerprint}")
    if not confirm("Is this the fingerprint on the machine's console?", yes):
        raise NotAsRequired("no key was pinned")
    click.echo(
        accepted(_carry_out("request.host_key", {"node": only, "ssh_host_key": key, "reason": reason}, lambda views: True))
    )


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--serial", required=True, help="Serial of the new board, as its BMC will say it.")
@click.option("--reason", required=True, help="Why the board was swapped; it is journaled with your name.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def replace(name: str, serial: str, reason: str, yes: bool) -> int:
    """Another board stands behind NODE: its pins are dropped, and it proves everything from the start."""
    (only,) = chosen(name, wiring.open_views(wiring.home()).state)
    if not confirm(f"Trust the machine with serial {serial} as {only} from now on?", yes):
        raise NotAsRequired("nothing was done")
    click.echo(accepted(wiring.tell(wiring.home(), "request.replace", {"node": only, "serial": serial, "reason": reason})))
    return _until_settled([only])


@node.command()
@click.argument("nodes")
@click.option("--reason", required=True, help="Why; it is journaled with your name.")
@click.option("--yes", is_flag=True, help="Do not ask when it concerns more than one node.")
def retire(nodes: str, reason: str, yes: bool) -> int:
    """NODES leave the fleet for good. Nothing is sent to them: power, data and accounts stay as they are."""
    names = chosen(nodes, wiring.open_views(wiring.home()).state)
    if len(names) > 1 and not confirm(f"Retire {len(names)} nodes for good?", yes):
        raise NotAsRequired("nothing was done")
    click.echo(accepted(wiring.tell(wiring.home(), "request.retire", {"nodes": names, "reason": reason})))
    state = wiring.open_views(wiring.home()).state
    return 0 if all(state.nodes[name].state is NodeState.RETIRED for name in names) else 1


def _until_settled(names: list[str]) -> int:
    """Follow until the nodes have come to rest; 0 when all are in service."""
    with RolloutView(wiring.open_views(wiring.home()).state.seq) as view:
        wiring.follow_or_control(wiring.home(), lambda v: all(v.state.nodes[n].state in SETTLED for n in names), view.show)
    state = wiring.open_views(wiring.home()).state
    for name in names:
        click.echo(f"{name} is {state.nodes[name].state}: {state.nodes[name].because}")
    return 0 if all(state.nodes[name].state in IN_SERVICE for name in names) else 1


def _ask(kind: str, nodes: str, reason: str, yes: bool, question: str, wanted: Collection[NodeState]) -> int:
    views = wiring.open_views(wiring.home())
    names = chosen(nodes, views.state)
    if len(names) > 1 and not confirm(question.format(nodes=counted(len(names), "node")), yes):
        raise NotAsRequired("nothing was done")
    answer = _carry_out(kind, {"nodes": names, "reason": reason}, lambda v: all(v.state.nodes[n].state in SETTLED for n in names))
    click.echo(accepted(answer))
    views = wiring.open_views(wiring.home())
    for name in names:
        record = views.state.nodes[name]
        click.echo(f"{name} is {record.state}: {record.because}")
    return 0 if all(views.state.nodes[name].state in wanted for name in names) else 1


def _carry_out(kind: str, data: dict[str, object], settled: Callable[[Views], bool]) -> str:
    asked = wiring.request(wiring.home(), kind, data)

    def done(views: Views) -> bool:
        return asked.seq in views.state.answers and settled(views)

    with RolloutView(asked.seq) as view:
        wiring.follow_or_control(wiring.home(), done, view.show)
    return wiring.open_views(wiring.home()).state.answers[asked.seq]


def short(values: Mapping[str, Any]) -> str:
    """A fact in one line: what is plain as `key value`, lists as how many they hold; `--json` has all of it."""
    said = [_word(key, value) for key, value in values.items()]
    text = ", ".join(word for word in said if word)
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 3] + "..."


def _word(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return key if value else f"not {key}"
    if isinstance(value, Mapping) or value in ("", None):
        return ""
    if isinstance(value, list | tuple):
        return f"{key}: {len(value)}" if value else ""
    return f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
