"""How numbers are said in sentences for people, and what a mistyped name may have meant."""

import difflib
from collections.abc import Iterable


def counted(number: int, noun: str, one: str = "", many: str = "") -> str:
    """`1 node`, `12,500 nodes`; with verbs, `counted(1, "node", "is", "are")`: `1 node is`, `2 nodes are`."""
    verb = one if number == 1 else many
    return f"{number:,} {noun}{'' if number == 1 else 's'}" + (f" {verb}" if verb else "")


def meant(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean bmc_silent or bmc_slow? `, ready to be followed by what there is; empty where nothing is near."""
    close = difflib.get_close_matches(word, list(known), n=2, cutoff=cutoff)
    return f"did you mean {' or '.join(close)}? " if close else ""
