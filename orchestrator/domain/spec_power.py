"""Power as an operator declares it: what feeds what, behind which breaker, and what may happen when one part is lost.

A tree hangs below each of the spec's `feeds`: UPS, switchboards, busways, rack PDUs. Racks name the PDUs that stand in them, SKUs
say how many supplies a machine has and which PDU each is plugged into. The arithmetic is in `planning/power_tree.py`.
"""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.domain.spec_words import Name, Share, Strict, Watts

OnFeedLoss = Literal["survive", "throttle", "lose"]
Phase = Annotated[int, Field(ge=1, le=3)]
Cord = Annotated[int, Field(ge=1, le=16)]
SupplyPhase = Literal[1, 2, 3, "all"]
"""Where a supply draws: in a wye a phase and neutral, in a delta the pairs 1-2, 2-3, 3-1; or all phases evenly."""
Phases = Annotated[tuple[SupplyPhase, ...], Field(strict=False)]


class Supplies(Strict):
    """The power supplies of one machine."""

    count: Annotated[int, Field(ge=1, le=64)]
    """Supplies in one machine."""
    capacity_w: Watts
    """What one supply can deliver, in watts."""
    least: Annotated[int, Field(ge=1, le=64)] = 1
    """Fewer working supplies than this, and the machine is off."""
    cords: Annotated[tuple[Cord, ...], Field(strict=False)] = ()
    """Which of its rack's `pdus` each supply is plugged into, counted from 1. Left out: dealt out in turn: 1, 2, 1, 2"""
    phases: Phases = ()
    """The phase of its PDU that each supply is on: 1, 2 or 3 (of a delta PDU the pairs 1-2, 2-3, 3-1), `all` for a supply with a
    three-phase cord. Left out: that of its outlet."""


class PowerElement(Strict):
    """One part of the power tree: a UPS, a switchboard, a busway or a PDU. Give `limit_w`, or breaker, voltage and phases."""

    kind: Literal["transformer", "generator", "ups", "switchboard", "busway", "pdu"]
    """What it is."""
    fed_by: Name
    """The element above it, or one of `feeds`."""
    backup: Name | None = None
    """The element or feed that a transfer switch goes over to when `fed_by` is lost."""
    limit_w: Watts | None = None
    """Continuous load it may carry, in watts, derating included."""
    breaker_a: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] | None = None
    """Rating of its breaker, in amperes per phase, before derating."""
    voltage_v: Annotated[float, Field(ge=12, le=1_000_000, allow_inf_nan=False)] | None = None
    """Voltage in volts: between two phases where `phases` is 3."""
    phases: Literal[1, 3] = 3
    """Three-phase: √3·V·A·derating watts. Single-phase: V·A·derating."""
    connection: Literal["wye", "delta"] = "wye"
    """What supplies hang between: a phase and neutral (wye, as at 415 V), or two phases (delta, as at 208 V)."""
    phase: Phase | None = None
    """Of a single-phase element: the phase of the element above it. Left out: counted evenly on all three."""
    outlets: Phases = ()
    """Of a PDU: the phase of each of its outlets, from outlet 1. Where no machine says which, supplies take them in turn, from
    the bottom of the rack up. Left out: 1, 2, 3, 1, 2, 3, ..."""
    derating: Share | None = None
    """Share of the breaker's rating that may flow for hours. Left out: `power.derating`."""


class Power(Strict):
    """The power tree below the feeds."""

    derating: Share = 0.8
    """Share of a breaker's rating that may flow for three hours or more; 0.8 is NEC 210.20(A)."""
    power_factor: Share = 1.0
    """Watts per volt-ampere of the machines' supplies under load."""
    on_feed_loss: OnFeedLoss = "survive"
    """What may happen to machines when any one feed, UPS, busway or PDU is lost: `survive` (nothing), `throttle` (a power cap,
    which is computed) or `lose` (they may go off). A rack may say otherwise."""
    imbalance_max: Share | None = None
    """Largest allowed distance of a phase from the mean of the three, as a share of the mean. Left out: shown, not judged."""
    elements: dict[Name, PowerElement]
    """Everything between the feeds and the machines, by name."""
