"""What an unquoted word in YAML means, and the words that mean something else than they look like.

YAML 1.1 (https://yaml.org/type/) reads `no` as false, `010` as 8, `22:30` as 1350 and `2024-01-02` as a date, YAML 1.2 does not:
such words are refused by name instead of being guessed. Everything else is an integer, a float, true or false, nothing, or text.
"""

import re
from collections.abc import Callable
from typing import Any

MAX_DIGITS = 30

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_MAYBE_SPECIAL = frozenset("yYnNoO0123456789+-.=")
"""First letters of every word that the tables below know."""

Trouble = tuple[str, str]
"""What is wrong, and the way out."""


def read_word(raw: str) -> tuple[Any, Trouble | None]:
    """The value of an unquoted word, and what is wrong with it. A refused word keeps its text as its value."""
    if raw in _WORDS:
        value = _WORDS[raw]
        return value, None if value is not None else (
            "the value is empty",
            'give it a value, "" for empty text, or leave the key out',
        )
    if raw[0] not in _MAYBE_SPECIAL:
        return raw, None
    if _INTEGER.fullmatch(raw):
        if len(raw) > MAX_DIGITS:
            return raw, (
                f"a number of {len(raw)} digits is larger than any quantity here",
                "quote it if it is a name or a serial",
            )
        return int(raw), None
    if _FLOAT.fullmatch(raw):
        return _finite(raw)
    for pattern, say in _SURPRISES:
        if pattern.fullmatch(raw):
            return raw, say(raw)
    return raw, None


def key_trouble(raw: str) -> Trouble | None:
    """What is wrong with an unquoted key: every key is text, so a key that YAML reads otherwise must be quoted."""
    value, trouble = read_word(raw)
    if trouble is None and isinstance(value, str):
        return None
    return f"the key {raw or '(empty)'} is not read as text by YAML", f'quote it: "{raw}"'


def _finite(raw: str) -> tuple[Any, Trouble | None]:
    value = float(raw)
    if value in (float("inf"), float("-inf")):
        return raw, (f"{raw} is too large for a number", "write a smaller number, or quote it if it is text")
    return value, None


def _truth(raw: str) -> Trouble:
    return (
        f"YAML readers disagree whether {raw} is text or a truth value",
        f'write "{raw}" in quotes for text, true or false for a switch',
    )


def _leading_zero(raw: str) -> Trouble:
    number = raw.lstrip("+-").replace("_", "").lstrip("0") or "0"
    return (
        f"{raw} begins with a zero: YAML may read it as an octal number",
        f'write "{raw}" in quotes for text, {number} for a number',
    )


def _other_base(raw: str) -> Trouble:
    return f"{raw} is read by YAML as a number in another base", f'write "{raw}" in quotes for text, decimal digits for a number'


def _underscores(raw: str) -> Trouble:
    return (
        f"{raw} is read by YAML as a number without its underscores",
        f'write "{raw}" in quotes for text, {raw.replace("_", "")} for a number',
    )


def _base_60(raw: str) -> Trouble:
    value = 0.0
    for part in raw.lstrip("+-").replace("_", "").split(":"):
        value = value * 60 + float(part or 0)
    return f"{raw} without quotes is read by YAML as the base-60 number {value:.15g}", f'quote it: "{raw}"'


def _date(raw: str) -> Trouble:
    return f"{raw} without quotes is read by YAML as a date", f'quote it: "{raw}"'


def _not_finite(raw: str) -> Trouble:
    return f"{raw} is not a quantity", "write a finite number"


def _leading_point(raw: str) -> Trouble:
    return f"{raw} begins with a point", f'write "{raw}" in quotes for text, a digit before the point for a number'


def _equals(raw: str) -> Trouble:
    return f"a bare {raw} has a meaning of its own in YAML", f'quote it: "{raw}"'


_SURPRISES: tuple[tuple[re.Pattern[str], Callable[[str], Trouble]], ...] = (
    (re.compile(r"yes|no|on|off|y|n", re.IGNORECASE), _truth),
    (re.compile(r"[-+]?0[0-9_]+"), _leading_zero),
    (re.compile(r"[-+]?0[xob][0-9a-fA-F_]+"), _other_base),
    (re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?"), _underscores),
    (re.compile(r"[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*"), _base_60),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?"), _date),
    (re.compile(r"[-+]?\.(?:inf|nan)", re.IGNORECASE), _not_finite),
    (re.compile(r"[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"), _leading_point),
    (re.compile(r"="), _equals),
)
