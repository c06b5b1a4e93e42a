"""Cables as an operator declares them: one item for each pattern of links, not one for each of 100,000 cables.

A link joins a port of a machine to a port of a switch, or two switches. The items stay patterns when a spec is applied; who needs
every cable reads them through `domain/pattern.py`.
"""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.domain.spec_words import Form, Label, Strict

End = Annotated[
    str,
    Field(min_length=3, max_length=200, pattern=r"^[A-Za-z][^/\x00-\x20\x7f]*/[^/\x00-\x20\x7f]+$"),
    Form("NAME/PORT, such as r01-n1/rail1, or a pattern of them such as r[01-40]-n[1-4]/rail[1-8]"),
]
CableKind = Literal["dac", "acc", "aoc", "mmf", "smf", "utp"]


class Link(Strict):
    """Cables of one kind, from one pattern of ports to another."""

    ends: End
    """The near ends: a machine's or a switch's ports. Its ranges count the cables."""
    to: End
    """The far ends: switch ports, written with the near end's ranges: `{1}` is the text of the first, `{2*3}` the running number
    over the second and third, `{2*3+32}` the same from 33."""
    cable: CableKind
    """Passive copper (dac), active copper (acc), active optical (aoc), multimode fibre (mmf), single-mode fibre (smf) or twisted
    pair (utp)."""
    length_m: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
    """Length of each cable, in metres."""
    reach_m: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] | None = None
    """Longest cable of this kind that works, in metres. Left out: dac 3, acc 5, aoc 100, mmf 50, smf 2000, utp 100."""
    note: Label | None = None
    """What it is for."""
