"""`rackray rollout`: the rollout that is going on: how it stands, and what people may say about it."""

import dataclasses
from typing import Any

import click

from orchestrator import wiring
from orchestrator.cli.groups import CommandGroup
from orchestrator.cli.nodes import chosen
from orchestrator.cli.output import accepted, age, print_json, print_table, time_range
from orchestrator.cli.rollout_view import RolloutView
from orchestrator.domain.errors import NotAsRequired
from orchestrator.execution.controller import everything_settled
from orchestrator.execution.views import Views
from orchestrator.planning.estimate import StageTimes
from orchestrator.planning.rollout_report import RolloutReport, report

REASON = click.option("--reason", required=True, help="Why; it is journaled with your name.")


@click.group(cls=CommandGroup)
def rollout() -> None:
    """How the rollout stands; pause it, go on, leave nodes out, prove failed ones again, abort."""


@rollout.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> int:
    """Waves, who is in which, failures against the budget, what failures share, who is stuck, and the time left.

    Exit 0 while it goes on or when it has finished without a failure that counts; 1 otherwise.
    """
    views = wiring.open_views(wiring.home())
    if not views.state.rollout.number:
        raise NotAsRequired("there has been no rollout yet", "`rackray apply SPEC` starts one")
    found = report(views.state, StageTimes().learn(views.events_of_stages()), views.now_s())
    if as_json:
        print_json(as_json_report(found))
    else:
        print_report(found)
        if found.open_wave and not everything_settled(views.state) and not wiring.decides_now(views):
            click.echo(f"no controller runs: nothing moves until `rackray apply {views.state.spec_file}` goes on", err=True)
    return 0 if found.word in ("going on", "finished") and not found.failed else 1


def as_json_report(found: RolloutReport) -> dict[str, Any]:
    """What `--json` prints; `left` is {"low_s", "high_s"} or null."""
    return {**dataclasses.asdict(found), "causes": dict(found.causes)}


def print_report(found: RolloutReport) -> None:
    """The report for people."""
    click.echo(f"rollout {found.number} ({found.because}): {found.word}" + (f": {found.why}" if found.why else ""))
    rows = []
    for wave in found.waves:
        counts = [str(len(part)) for part in (wave.ready, wave.in_work, wave.waiting, wave.failed, wave.left_out)]
        interesting = (*wave.failed, *wave.in_work) if wave.number == found.open_wave else wave.failed
        names = ", ".join(interesting[:4]) + (", ..." if len(interesting) > 4 else "")
        rows.append((f"{wave.number}{' *' if wave.number == found.open_wave else ''}", str(wave.nodes), *counts, names))
    print_table(("wave", "nodes", "ready", "in work", "waiting", "failed", "left out", "who"), rows)
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.causes)
    per_wave = f", of a wave {found.wave_budget}" if found.wave_budget is not None else ""
    forgiven = f"; {found.forgiven} accepted by resume" if found.forgiven else ""
    click.echo(
        f"failed {len(found.failed)} of a budget of {found.budget}{per_wave}" + (f" ({kinds})" if kinds else "") + forgiven
    )
    for cause in found.common:
        click.echo(f"in common: {cause}")
    for late in found.late[:10]:
        measure = "99 in 100 took less than" if late.learned else "half of the stage's limit is"
        click.echo(f"stuck: {late.node} has been {late.stage} for {age(late.spent_s)}; {measure} {age(late.limit_s)}")
    if found.open_wave:
        click.echo(f"time left: {time_range(found.left)}")


@rollout.command()
@REASON
def pause(reason: str) -> None:
    """No node that has not begun begins; those under way go on to their end."""
    _tell("request.rollout_pause", {"reason": reason})


@rollout.command()
@REASON
def resume(reason: str) -> int:
    """Go on after a pause, or after the breaker stopped it: failures so far are accepted and no longer count."""
    return _go_on("request.rollout_resume", {"reason": reason})


@rollout.command()
@click.argument("nodes")
@REASON
def skip(nodes: str, reason: str) -> None:
    """Leave NODES out of this rollout; one in the middle of a stage ends that stage."""
    names = chosen(nodes, wiring.open_views(wiring.home()).state)
    _tell("request.rollout_skip", {"nodes": names, "reason": reason})


@rollout.command()
@click.argument("nodes", required=False, default="")
@REASON
def retry(nodes: str, reason: str) -> int:
    """Quarantined NODES of this rollout (default: all of them) prove everything again."""
    names = chosen(nodes, wiring.open_views(wiring.home()).state) if nodes else []
    return _go_on("request.rollout_retry", {"nodes": names, "reason": reason})


@rollout.command()
@REASON
def abort(reason: str) -> None:
    """No new node begins; those under way end the stage they are in. Nothing is switched off."""
    _tell("request.rollout_abort", {"reason": reason})


def _tell(kind: str, data: dict[str, Any]) -> None:
    """Say something to whoever decides, or write the answer down if nobody does. Begins nothing."""
    click.echo(accepted(wiring.tell(wiring.home(), kind, data)))


def _go_on(kind: str, data: dict[str, Any]) -> int:
    """Say it, and follow the rollout to its end (deciding, if nobody else does)."""
    folder = wiring.home()
    click.echo(accepted(wiring.tell(folder, kind, data)))
    with RolloutView(wiring.open_views(folder).state.seq) as view:
        wiring.follow_or_control(folder, lambda views: everything_settled(views.state), view.show)
    return _end(wiring.open_views(folder))


def _end(views: Views) -> int:
    found = report(views.state, StageTimes(), views.now_s())
    print_report(found)
    return 0 if found.word == "finished" and not found.failed else 1
