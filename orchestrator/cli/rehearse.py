"""`rackray rehearse`: the real controller against simulated machines in virtual time, before anything real is touched."""

import gc
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from orchestrator import wiring
from orchestrator.cli.nodes import folded
from orchestrator.cli.output import FILE, print_json, print_table
from orchestrator.domain.spec import ClusterSpec
from orchestrator.execution.rehearsal import Rehearsed

SHOWN = 12
"""Nodes that are named behind a cause; `--json` names all."""


@click.command()
@click.argument("spec", type=FILE)
@click.option("--seed", default=1, show_default=True, help="The history that is played; the same seed gives the same journal.")
@click.option(
    "--seeds", default=1, show_default=True, type=click.IntRange(1, 1000), help="Play so many histories, from --seed on."
)
@click.option("--faults", type=FILE, help="YAML of what goes wrong and how long things take.")
@click.option("-o", "picture", type=FILE, help="Draw the first history (.svg, .png or .pdf).")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def rehearse(spec: Path, seed: int, seeds: int, faults: Path | None, picture: Path | None, as_json: bool) -> int:
    """Play the bring-up of SPEC through, on simulated machines; nothing real is touched, no journal is written.

    Exit 0 when every node would come up in every history, 1 otherwise.
    """
    # A rehearsal makes millions of small values and no circles among them: looking for circles is a third of its time.
    gc.set_threshold(200_000, 50, 1000)
    loaded = wiring.load_spec(spec)
    began_s = time.monotonic()
    played: list[Rehearsed] = []
    for each in wiring.rehearse(spec, faults, range(seed, seed + seeds)):
        played.append(each)
        if seeds > 1:
            click.echo(f"seed {each.seed}: {each.ready} of {each.nodes} ready after {hours(each.virtual_s)}", err=True)
    real_s = time.monotonic() - began_s
    if picture is not None:
        click.echo(f"picture: {wiring.draw_rehearsal(played[0], loaded.spec, picture)}", err=True)
    if as_json:
        print_json(as_rows(played, real_s))
    else:
        print_report(played, loaded.spec, real_s)
    return 0 if all((each.ready, each.equipment_ready) == (each.nodes, each.equipment) for each in played) else 1


def as_rows(played: Sequence[Rehearsed], real_s: float) -> dict[str, Any]:
    """The numbers of the first history, and of all where there are several."""
    rows = [
        {
            "seed": each.seed,
            "nodes": each.nodes,
            "ready": each.ready,
            "equipment": each.equipment,
            "equipment_ready": each.equipment_ready,
            "virtual_hours": round(each.virtual_s / 3600, 4),
            "lower_bound_hours": round(each.lower_bound_s / 3600, 4),
            "journal_sha256": each.journal_sha256,
            "longest_chain_hours": round(each.longest_chain_s / 3600, 4),
            "waves": each.waves,
            "spares": each.spares,
            "causes": dict(each.causes),
            "nodes_by_cause": {cause: list(names) for cause, names in each.nodes_by_cause.items()},
            "failure_budget": each.failure_budget,
            "stopped_because": each.stopped_because,
            "events": each.events,
            "peak_feed_w": dict(each.peak_feed_w),
        }
        for each in played
    ]
    whole = {"real_s": round(real_s, 2), "peak_rss_gib": round(peak_rss_gib(), 3)}
    return {**rows[0], **whole, **({"seeds": rows} if len(rows) > 1 else {})}


def print_report(played: Sequence[Rehearsed], spec: ClusterSpec, real_s: float) -> None:
    """What a person wants to know before the day."""
    first = played[0]
    click.echo(f"predicted finish: {finish(played)}")
    bound = f"at least {hours(first.lower_bound_s)} in {first.waves} waves; the slowest node alone {hours(first.longest_chain_s)}"
    click.echo(f"lower bound:      {bound}")
    ready = sorted(each.ready for each in played)
    click.echo(f"ready:            {ready[0]}{f' to {ready[-1]}' if ready[0] != ready[-1] else ''} of {first.nodes} nodes")
    if first.equipment:
        sound = min(each.equipment_ready for each in played)
        click.echo(f"equipment ready:  {sound} of {first.equipment} pieces{' in the worst history' if len(played) > 1 else ''}")
    spares = max(each.spares for each in played)
    click.echo(f"spares needed:    {spares}{' in the worst history' if len(played) > 1 else ''}")
    used = max(each.quarantined for each in played)
    click.echo(f"failure budget:   {used} used of {first.failure_budget}")
    for each in played:
        if each.stopped_because:
            click.echo(f"  seed {each.seed} stops: {each.stopped_because}")
        if not each.is_at_rest:
            click.echo(f"  seed {each.seed} did not come to rest")
    causes = sorted({cause for each in played for cause in each.causes})
    if causes:
        worst = {cause: max((each.nodes_by_cause.get(cause, ()) for each in played), key=len) for cause in causes}
        rows = [(cause, f"{len(names)}", _first(names)) for cause, names in worst.items()]
        print_table(("cause of failure", "nodes at most" if len(played) > 1 else "nodes", "which"), rows)
    feeds = []
    for feed, limit in sorted(spec.feeds.items()):
        peak_w = max(each.peak_feed_w.get(feed, 0.0) for each in played)
        feeds.append((feed, f"{peak_w / 1000:.1f}", f"{limit.limit_w / 1000:.1f}", f"{100 * peak_w / limit.limit_w:.0f} %"))
    print_table(("feed", "peak kW", "limit kW", "used"), feeds)
    click.echo(f"{first.events} events, digest {first.journal_sha256[:16]}; {real_s:.1f} s, {peak_rss_gib():.2f} GiB")


def _first(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are."""
    return folded(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def finish(played: Sequence[Rehearsed]) -> str:
    """When it is over, with the spread over the seeds; a history that the breaker stopped has no finish."""
    finishes = sorted(each.virtual_s for each in played if not each.stopped_because and each.is_at_rest)
    if not finishes:
        return "none, the rollout stops before its end" + (f" in all {len(played)} histories" if len(played) > 1 else "")
    whole = f"{hours(finishes[len(finishes) // 2])} after the start"
    if len(played) == 1:
        return whole
    counted = (
        f"{len(finishes)} of {len(played)} seeds, the others stop" if len(finishes) < len(played) else f"{len(played)} seeds"
    )
    return f"{whole} (over {counted}: {hours(finishes[0])} to {hours(finishes[-1])})"


def hours(seconds: float) -> str:
    """A length of time for people."""
    return f"{seconds / 3600:.2f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def peak_rss_gib() -> float:
    """The most memory this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
