"""The power tree in words: every part with its load, limit and margin, normally and after the worst single loss."""

from collections.abc import Iterator

from orchestrator.domain.spec import ClusterSpec
from orchestrator.planning.power_checks import kilowatts
from orchestrator.planning.power_loss import PowerReport
from orchestrator.planning.power_tree import Watts3
from orchestrator.planning.power_tree_checks import imbalance

MOST_ALIKE = 1
"""Of parts beside each other that carry the same, this many are written out; the others are counted."""


def explain_power(spec: ClusterSpec, report: PowerReport) -> Iterator[str]:
    """The tree, one part a line; then the power caps that must hold after a loss."""
    yield f"{'part':<44} {'load':>11} {'limit':>11} {'margin':>8}   {'worst load':>11} {'margin':>8}   after the loss of"
    for name in spec.feeds:
        yield from _branch(report, name, 0)
    yield from _racks(spec, report)
    yield from _caps(spec, report)


def _branch(report: PowerReport, name: str, depth: int) -> Iterator[str]:
    yield _line(report, name, depth)
    for names in alike(report, report.tree.below[name]):
        for each in names[:MOST_ALIKE]:
            yield from _branch(report, each, depth + 1)
        if len(names) > MOST_ALIKE:
            yield "  " * (depth + 1) + f"… and {len(names) - MOST_ALIKE:,} more like it, up to {names[-1]}"


def alike(report: PowerReport, names: list[str]) -> list[list[str]]:
    """`names` in groups whose parts carry the same."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        groups.setdefault(_shape(report, name), []).append(name)
    return list(groups.values())


def _shape(report: PowerReport, name: str) -> tuple[object, ...]:
    """What makes two parts look alike: kind, limit, loads, and how many parts hang below."""
    part, worst = report.tree.parts[name], report.worst.get(name)
    worst_w = round(sum(worst.load)) if worst else None
    return part.kind, part.limit_w, round(sum(report.normal[name])), worst_w, part.backup, len(report.tree.below[name])


def _line(report: PowerReport, name: str, depth: int) -> str:
    part, normal, worst = report.tree.parts[name], report.normal[name], report.worst.get(name)
    label = "  " * depth + f"{part.kind} {name}" + (f" (or {part.backup})" if part.backup else "")
    limit = f"{kilowatts_1(part.limit_w)} kW" if part.limit_w is not None else "-"
    text = f"{label:<44} {kilowatts_1(sum(normal)):>8} kW {limit:>11} {_margin(part.ratio(normal)):>8}"
    if worst is not None:
        text += f"   {kilowatts_1(sum(worst.load)):>8} kW {_margin(part.ratio(worst.load)):>8}   {worst.lost}"
    apart = imbalance(normal)
    if apart > 0.005 and part.kind != "feed":
        text += f"   [phases {_phases(normal)} kW]"
    return text.rstrip()


def kilowatts_1(watts: float | None) -> str:
    """`1,234.5`."""
    return f"{(watts or 0.0) / 1000:,.1f}"


def of_limit(watts: float, limit_w: float | None) -> str:
    """`40.8 of 41.5 kW`; in megawatts where kilowatts would be too many digits."""
    unit_w, unit, digits = _unit(max(watts, limit_w or 0.0))
    said = f"{watts / unit_w:,.{digits}f}"
    return f"{said} of {limit_w / unit_w:,.{digits}f} {unit}" if limit_w else f"{said} {unit}"


def beside_limit(watts: float, limit_w: float | None) -> str:
    """`0.87 MW`: in the unit that `of_limit` would use, without the limit."""
    unit_w, unit, digits = _unit(max(watts, limit_w or 0.0))
    return f"{watts / unit_w:,.{digits}f} {unit}"


def _unit(largest_w: float) -> tuple[float, str, int]:
    return (1e6, "MW", 2) if largest_w >= 1e6 else (1e3, "kW", 1)


def _margin(ratio: float) -> str:
    return f"{1 - ratio:+.0%}" if ratio else "-"


def _phases(load: Watts3) -> str:
    return "/".join(kilowatts_1(watts) for watts in load)


def _racks(spec: ClusterSpec, report: PowerReport) -> Iterator[str]:
    policies: dict[str, int] = {}
    for name in report.racks.contents:
        policy = str(spec.racks[name].on_feed_loss or (spec.power.on_feed_loss if spec.power is not None else "survive"))
        policies[policy] = policies.get(policy, 0) + 1
    said = {"survive": "nothing may happen", "throttle": "machines may be capped", "lose": "machines may go off"}
    yield ""
    for each, count in policies.items():
        yield f"on_feed_loss: {each} ({said[each]}): {count:,} {'rack' if count == 1 else 'racks'}"


def _caps(spec: ClusterSpec, report: PowerReport) -> Iterator[str]:
    if not report.caps_w:
        yield "no machine needs a power cap after any single loss"
        return
    by_cap: dict[tuple[str, float], int] = {}
    skus = {node.name: node.sku for node in spec.nodes} | {item.name: item.sku for item in spec.equipment}
    for name, cap_w in report.caps_w.items():
        key = (skus[name], round(cap_w))
        by_cap[key] = by_cap.get(key, 0) + 1
    for (sku, cap_w), count in sorted(by_cap.items()):
        of = kilowatts(spec.skus[sku].max_w)
        yield f"after the worst single loss {count:,} {sku} must be capped at {kilowatts(cap_w)} of {of} kW each"
