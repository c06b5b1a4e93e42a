# ruff: noqa: E501 - specs and sentences in one line each are easier to compare
"""The power arithmetic: √3, supplies on their PDUs, losses, transfer switches, throttling; and its properties."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.spec import ClusterSpec
from orchestrator.drivers.spec_reader import parse_spec
from orchestrator.planning.power_loss import power_report
from orchestrator.planning.power_tree import Part, breaker_limit_w, loops
from orchestrator.planning.validation import check_spec

LAB_4 = (Path(__file__).parents[2] / "cluster_specs" / "lab-4.yaml").read_text(encoding="utf-8")


def a_spec(
    supplies: str, max_w: float, pdus: int, policy: str = "survive", breaker_a: float = 60, machines: int = 4, feeds: str = "ABC"
) -> str:
    """One rack of equal machines on PDUs that hang on a feed each, at 415 V; as YAML."""
    head, _, rest = LAB_4.partition("racks:\n")
    subnets = rest[rest.index("subnets:") : rest.index("nodes:")]
    head = head.replace("max_w: 2600", f"max_w: {max_w}\n    supplies: {supplies}").replace("17000", "900000")
    head = head.replace("  A: {limit", "  C: {limit_w: 900000}\n  A: {limit")
    names = "abcdefgh"[:pdus]
    elements = "".join(
        f"    p{name}: {{kind: pdu, fed_by: {feeds[index]}, breaker_a: {breaker_a}, voltage_v: 415}}\n"
        for index, name in enumerate(names)
    )
    power = f"power:\n  on_feed_loss: {policy}\n  elements:\n{elements}"
    rack = f"racks:\n  r01: {{units: 60, limit_w: 900000, feed: A, leaf: l, pdus: [{', '.join('p' + n for n in names)}]}}\n"
    node = f'nodes:\n  - {{name: "n[1-{machines}]", rack: r01, unit: {{first: 1, step: 4}}, sku: lab-2g, serial: "S{{1}}",'
    return f"{head}{rack}{subnets}{power}{node} bmc: {{first: 127.2.0.1}}, address: {{first: 127.1.0.1}}}}\n"


def read(text: str) -> ClusterSpec:
    return parse_spec(text.encode(), "power.yaml", lambda spec: []).spec


def said(text: str) -> list[str]:
    return [finding.message for finding in check_spec(read(text))]


@pytest.mark.parametrize(
    ("voltage_v", "breaker_a", "derating", "kilowatts"),
    [(415, 30, 1.0, 21.6), (415, 30, 0.8, 17.3), (415, 60, 1.0, 43.1), (415, 60, 0.8, 34.5), (208, 60, 0.8, 17.3), (400, 32, 1.0, 22.2), (400, 63, 1.0, 43.6)],
)  # fmt: skip
def test_three_phases_carry_the_square_root_of_three_times_volts_times_amperes(
    voltage_v: float, breaker_a: float, derating: float, kilowatts: float
) -> None:
    watts = breaker_limit_w(voltage_v, breaker_a, 3, derating)
    assert watts / 1000 == pytest.approx(kilowatts, abs=0.06)
    # The classic slip forgets √3: 12.4 kW for 415 V and 30 A.
    assert watts == pytest.approx(voltage_v * breaker_a * derating * 1.7320508)
    assert breaker_limit_w(voltage_v, breaker_a, 1, derating) == voltage_v * breaker_a * derating


def test_a_dgx_b200_on_three_pdus_does_not_survive_the_loss_of_one() -> None:
    b200 = "{count: 6, capacity_w: 3300, least: 3}"
    assert said(a_spec(b200, 14_300, 3)) == [
        f"after the loss of {lost}, n1 gets 13.2 of 14.3 kW (4 of 6 supplies), 1.1 kW short; so do 3 more"
        for lost in ("C", "A", "B", "pa", "pb", "pc")
    ]


def test_a_dgx_h100_on_three_pdus_survives_the_loss_of_one() -> None:
    assert said(a_spec("{count: 6, capacity_w: 3300, least: 3}", 10_200, 3)) == []


def test_throttling_yields_the_cap_that_must_hold() -> None:
    xe9680 = a_spec("{count: 6, capacity_w: 2800, least: 3}", 11_000, 2, "throttle")
    assert said(xe9680) == []
    assert power_report(read(xe9680)).caps_w == {f"n{index}": pytest.approx(8_400) for index in range(1, 5)}


def test_a_breaker_that_one_side_overloads_lowers_the_cap_further() -> None:
    # 32 A at 415 V carry 18,401 W; four machines of 8.4 kW would need 33.6 kW.
    text = a_spec("{count: 6, capacity_w: 2800, least: 3}", 8_400, 2, "throttle", breaker_a=32)
    report = power_report(read(text))
    assert said(text) == []
    assert sum(report.caps_w.values()) == pytest.approx(breaker_limit_w(415, 32, 3, 0.8))
    assert said(text.replace("throttle", "survive")) == [
        f"after the loss of {lost}, pdu {name} carries 33.6 of 18.401 kW, 15.199 kW over (normally 16.8 kW)" for name, lost in (("pb", "A"), ("pa", "B"))
    ]  # fmt: skip


def test_a_cap_below_the_idle_draw_is_no_way_out() -> None:
    text = a_spec("{count: 6, capacity_w: 2800, least: 3}", 8_400, 2, "throttle", breaker_a=30).replace(
        "idle_w: 900", "idle_w: 5000"
    )
    assert len(said(text)) == 2
    assert "carries 33.6 of 17.251 kW" in said(text)[0]


def test_machines_that_may_be_lost_are_not_complained_about() -> None:
    text = a_spec("{count: 2, capacity_w: 3300, least: 2}", 2_600, 2)
    assert "n1 goes off: 1 of 2 supplies are left, and it needs 2; so do 3 more" in said(text)[0]
    assert said(text.replace("on_feed_loss: survive", "on_feed_loss: lose")) == []


def test_a_transfer_switch_takes_its_load_over_to_the_other_feed() -> None:
    text = a_spec("{count: 6, capacity_w: 3300, least: 3}", 10_200, 3, feeds="ABA").replace(
        "pc: {kind: pdu,", "pc: {kind: pdu, backup: B,"
    )
    report = power_report(read(text))
    assert said(text) == []
    assert sum(report.normal["A"]) == pytest.approx(2 * sum(report.normal["B"])) == pytest.approx(27_200)
    assert report.worst["B"].lost == "A"
    assert sum(report.worst["B"].load) == pytest.approx(40_800)
    alone = text.replace(" backup: B,", "")
    assert "gets 6.6 of 10.2 kW (2 of 6 supplies)" in " ".join(said(alone)) or "goes off: 2 of 6" in " ".join(said(alone))


def test_power_shelves_carry_what_hangs_on_their_busbar() -> None:
    text = a_spec("{count: 6, capacity_w: 5500}", 300, 2)
    tray = "  tray:\n    manufacturer: M\n    model: M\n    units: 1\n    idle_w: 900\n    max_w: 6667\n    gpus: {model: G, count: 4}\n"
    text = text.replace("skus:\n", "skus:\n" + tray).replace("    model: LAB-2G\n", "    model: LAB-2G\n    kind: power-shelf\n")
    text = text.replace('nodes:\n  - {name: "n[1-4]"', 'equipment:\n  - {name: "n[1-4]"').replace(
        ", address: {first: 127.1.0.1}", ""
    )
    text += 'nodes:\n  - {name: "t[1-18]", rack: r01, unit: {first: 20}, sku: tray, serial: "T{1}", bmc: {first: 127.2.1.1}, address: {first: 127.1.1.1}}\n'
    report = power_report(read(text))
    assert sum(map(sum, (report.normal["A"], report.normal["B"]))) == pytest.approx(18 * 6_667 + 4 * 300)
    # After the loss of one side twelve of the 24 supplies are left: 66 of 121.2 kW.
    assert any("the busbar of rack r01 gets 66.0 of 121.206 kW (12 of 24 supplies)" in line for line in said(text))


def test_a_circle_in_the_tree_is_named_and_nothing_is_reckoned() -> None:
    text = (
        a_spec("{count: 6, capacity_w: 3300}", 2_600, 3)
        .replace("pa: {kind: pdu, fed_by: A", "pa: {kind: ups, fed_by: pb")
        .replace("pb: {kind: pdu, fed_by: B", "pb: {kind: ups, fed_by: pa")
    )
    assert said(text) == ["the power tree runs in a circle: pa is fed by pb is fed by pa"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.dictionaries(st.integers(0, 30), st.lists(st.integers(0, 30), max_size=2), max_size=31))
def test_a_circle_is_found_exactly_where_one_is(edges: dict[int, list[int]]) -> None:
    named = {str(name): tuple(str(above) for above in aboves) for name, aboves in edges.items()}
    circle = loops(named)
    left = {name: set(aboves) & named.keys() for name, aboves in named.items()}
    while free := [name for name, aboves in left.items() if not aboves]:
        for name in free:
            del left[name]
        for aboves in left.values():
            aboves -= set(free)
    assert bool(circle) == bool(left)
    assert not circle or (circle[0] == circle[-1] and all(b in named[a] for a, b in pairwise(circle)))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(2, 4),
    st.floats(100, 3_000),
    st.integers(1, 6),
    st.sampled_from(["survive", "lose"]),
)
def test_what_machines_draw_is_what_feeds_carry_and_a_loss_moves_it_but_makes_none(
    machines: int, supplies: int, pdus: int, capacity_w: float, least: int, policy: str
) -> None:
    least, max_w = min(least, supplies), supplies * capacity_w
    text = a_spec(
        f"{{count: {supplies}, capacity_w: {capacity_w}, least: {least}}}", max_w, pdus, policy, 10_000, machines, "ABCA"
    )
    report = power_report(read(text.replace("idle_w: 900", "idle_w: 1")))
    feeds = ("A", "B", "C")
    assert sum(sum(report.normal[feed]) for feed in feeds) == pytest.approx(machines * max_w)
    for feed in feeds:
        below = report.tree.below[feed]
        assert sum(report.normal[feed]) == pytest.approx(sum(sum(report.normal[pdu]) for pdu in below))
    for name, worst in report.worst.items():
        assert sum(worst.load) <= machines * max_w * (1 + 1e-9)
        assert sum(worst.load) > sum(report.normal[name]) or max(worst.load) > max(report.normal[name])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1e5), min_size=3, max_size=3), st.sampled_from([True, False]))
def test_the_fullest_phase_counts_and_equal_phases_count_as_their_sum(load: list[float], is_delta: bool) -> None:
    part = Part("p", "pdu", "A", None, 1e5, is_delta=is_delta, is_breaker=True)
    watts = (load[0], load[1], load[2])
    total = sum(load)
    assert part.effective_w(watts) >= total - 1e-6
    assert part.effective_w((load[0],) * 3) == pytest.approx(3 * load[0])
    assert sum(part.seen_above(watts)) == pytest.approx(total)
    assert part.effective_w((load[1], load[2], load[0])) == pytest.approx(part.effective_w(watts))
    # One loaded phase alone uses up the whole of its share: 3 in wye, √3 in delta (NEC, line current of a single pair).
    assert part.effective_w((300.0, 0.0, 0.0)) == pytest.approx(300.0 * (math.sqrt(3) if is_delta else 3))


def phases_of(text: str, part: str = "pa") -> list[float]:
    return [round(watts) for watts in power_report(read(text)).normal[part]]


TWO_BY_TWO = "{count: 2, capacity_w: 3000, cords: [1, 1]}"


def test_supplies_are_on_the_phases_that_somebody_says() -> None:
    dealt = a_spec(TWO_BY_TWO, 1200, 1, machines=2, feeds="A")
    assert phases_of(dealt) == [1200, 600, 600], "outlets 1 to 4 are on phases 1, 2, 3, 1"
    by_sku = dealt.replace("cords: [1, 1]", "cords: [1, 1], phases: [2, 3]")
    assert phases_of(by_sku) == [0, 1200, 1200]
    by_node = by_sku.replace("sku: lab-2g,", "sku: lab-2g, phases: [1, all],")
    assert phases_of(by_node) == [1200 + 400, 400, 400]
    by_outlets = dealt.replace("voltage_v: 415}", "voltage_v: 415, outlets: [3, 3, 2, 1]}")
    assert phases_of(by_outlets) == [600, 600, 1200]
    node = 'nodes:\n  - {name: "n[1-2]"'
    assert node in by_outlets
    plugged = by_outlets.replace("sku: lab-2g,", "sku: lab-2g, outlets: [4, 1],", 1).replace('n[1-2]"', 'n[1-1]"')
    assert phases_of(plugged) == [600, 0, 600]


def test_three_phase_supplies_leave_no_imbalance_and_a_lopsided_rack_is_named() -> None:
    lopsided = a_spec(TWO_BY_TWO.replace("]}", "], phases: [1, 1]}"), 1200, 1, machines=2, feeds="A", policy="lose")
    judged = lopsided.replace("  elements:", "  imbalance_max: 0.2\n  elements:")
    assert "the phases of pdu pa carry 2.4, 0.0, 0.0 kW: 200% off their mean, more than 20%" in said(judged)
    assert said(judged.replace("phases: [1, 1]", "phases: [all, all]")) == []


def test_a_lopsided_pdu_trips_on_its_fullest_phase() -> None:
    fits = a_spec(TWO_BY_TWO.replace("]}", "], phases: [all, all]}"), 2600, 1, machines=4, feeds="A", policy="lose", breaker_a=20)
    assert said(fits) == []
    (message,) = said(fits.replace("[all, all]", "[1, 1]"))
    assert message.startswith("pdu pa carries 10.4 kW, on its fullest phase as much as 31.2 of 11.501 kW")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("cords: [1, 1]}", "cords: [1, 1], phases: [1]}", "SKU lab-2g has 2 supplies and 1 phases"),
        ("sku: lab-2g,", "sku: lab-2g, phases: [1, 2, 3],", "nodes[0] (n1) has 2 supplies and 3 phases"),
        ("sku: lab-2g,", "sku: lab-2g, outlets: [1, 2],", "nodes[0] (n1) is plugged into outlet 1 of pa, which does not say what its outlets are"),
        ("voltage_v: 415}", "voltage_v: 415, outlets: [1, 2, 3]}", "4 supplies are plugged into pa, which has 3 outlets"),
        ("voltage_v: 415}", "voltage_v: 415, phases: 1, outlets: [1, 2, 3, 1]}", "pa lists its outlets' phases and has one phase"),
    ],
)  # fmt: skip
def test_outlets_and_phases_that_cannot_be_are_named(old: str, new: str, says: str) -> None:
    text = a_spec(TWO_BY_TWO, 1200, 1, machines=2, feeds="A", policy="lose").replace(old, new, 1)
    assert says in said(text)


def test_one_outlet_takes_one_plug() -> None:
    text = a_spec(TWO_BY_TWO, 1200, 1, machines=2, feeds="A", policy="lose").replace(
        "voltage_v: 415}", "voltage_v: 415, outlets: [1, 2, 3, 1]}"
    )
    assert "nodes[1] (n2) is plugged into outlet 1 of pa, as n1 is" in said(
        text.replace("sku: lab-2g,", "sku: lab-2g, outlets: [1, 2],")
    )
    assert "nodes[0] (n1) is plugged into outlet 9 of pa, which has 4 outlets" in said(
        text.replace("sku: lab-2g,", "sku: lab-2g, outlets: [9, 2],")
    )


def test_a_phase_voltage_at_a_three_phase_breaker_is_doubted() -> None:
    text = a_spec(TWO_BY_TWO.replace("]}", "], phases: [all, all]}"), 2600, 1, feeds="A", policy="lose", breaker_a=30)
    assert said(text) == []
    (finding,) = check_spec(read(text.replace("voltage_v: 415", "voltage_v: 240")))
    assert finding.message.startswith("pdu pa carries 10.4 of 9.977 kW, 0.423 kW over")
    assert finding.hint.endswith("voltage_v is that between two phases: 416 where a phase has 240 V")


def test_a_limit_in_kilowatts_where_watts_are_due_is_doubted() -> None:
    (first, *_) = check_spec(read(LAB_4.replace("limit_w: 12000, feed: A", "limit_w: 12, feed: A")))
    assert first.hint.startswith("is the limit meant in kW? Write `limit: 12 kW`; otherwise move")


def test_loads_are_not_reckoned_without_the_machines_of_an_unknown_kind() -> None:
    text = a_spec(TWO_BY_TWO.replace("]}", "], phases: [1, 1]}"), 1200, 1, machines=2, feeds="A", policy="lose")
    judged = text.replace("  elements:", "  imbalance_max: 0.2\n  elements:")
    assert len(said(judged)) == 1
    assert all("phases of" not in message for message in said(judged.replace("sku: lab-2g,", "sku: lab-3g,")))
