"""The fields of a record whose name is a pattern: for each field, its value for every name."""

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, get_origin

from pydantic import BaseModel

from orchestrator.domain.pattern import Pattern, PatternError
from orchestrator.domain.schema import unwrap
from orchestrator.drivers.yaml_quantities import Trouble

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


def columns_of(pattern: Pattern, record: dict[str, Any], model: type[BaseModel]) -> tuple[dict[str, list[Any]], list[Trouble]]:
    """Field → one value for each name of `pattern`, in order; and what is wrong with fields, which are then left out."""
    columns: dict[str, list[Any]] = {}
    troubles: list[Trouble] = []
    for key, value in record.items():
        field = model.model_fields.get(key)
        kind = unwrap(field.annotation)[0] if field is not None else None
        try:
            columns[key] = _column(pattern, key, value, kind)
        except PatternError as error:
            troubles.append(((key,), str(error), error.hint))
    return columns, troubles


def _column(pattern: Pattern, key: str, value: Any, kind: Any) -> list[Any]:
    is_plain = kind in (str, int, float, bool) or get_origin(kind) not in (tuple, dict)
    if isinstance(value, str):
        return _filled(pattern, value, kind)
    if isinstance(value, list) and get_origin(kind) is tuple:
        if any(isinstance(item, str) and "{" in item for item in value):
            return [list(row) for row in zip(*(_column(pattern, key, item, str) for item in value), strict=True)]
    elif isinstance(value, list) and is_plain:
        return _dealt(pattern, key, value, kind)
    elif isinstance(value, dict) and kind in (str, int, float):
        return _counted(pattern, key, value)
    return [value] * len(pattern)


def _filled(pattern: Pattern, value: str, kind: Any) -> list[Any]:
    if "{" not in value:
        return [value] * len(pattern)
    texts = pattern.fill(value)
    if kind is int and all(text.isdecimal() for text in texts):
        return [int(text) for text in texts]
    return texts


def _dealt(pattern: Pattern, key: str, values: list[Any], kind: Any) -> list[Any]:
    """`values` in turn, over the last range."""
    last = len(pattern.sizes) - 1
    size = pattern.sizes[last]
    if not values or size % len(values):
        raise PatternError(
            f"`{key}` has {len(values)} values, which do not go evenly into the {size} names of the last range of {pattern.text}",
            f"give {' or '.join(str(n) for n in range(1, size + 1) if size % n == 0 and n <= 64)} of them; what differs for each"
            f" machine stands in a table: `inventory: machines.csv`, with the columns node,{key}",
        )
    if any(isinstance(value, str) and "{" in value for value in values):
        filled = [_filled(pattern, value, kind) if isinstance(value, str) else [value] * len(pattern) for value in values]
        turns = pattern.spread([place % len(values) for place in range(size)], last, last)
        return [filled[turn][index] for index, turn in enumerate(turns)]
    return pattern.spread([values[place % len(values)] for place in range(size)], last, last)


def _counted(pattern: Pattern, key: str, value: dict[str, Any]) -> list[Any]:
    """`{first: 10.0.0.1, step: [256, 1]}`: counting up, by a step for each range, or one by one."""
    first, step = value.get("first"), value.get("step")
    if first is None or not set(value) <= {"first", "step"}:
        raise PatternError(f"`{key}` counts up without a `first`, or with another key", "write {first: 10.0.0.1, step: [256, 1]}")
    steps: list[Any] = pattern.strides()
    if step is not None:
        steps = step if isinstance(step, list) else [stride * step for stride in steps] if _is_number(step) else []
    if len(steps) != len(pattern.sizes) or not all(_is_number(each) for each in steps):
        raise PatternError(
            f"`step` of `{key}` needs one number for each of the {len(pattern.sizes)} ranges of {pattern.text}",
            "write {first: 10.0.0.1, step: [256, 1]}, or leave `step` out to count one by one",
        )
    if _is_number(first):
        return [round(number, 6) for number in pattern.running(first, steps)]
    start, spell, end = _start(key, first)
    if not all(isinstance(each, int) for each in steps):
        raise PatternError(f"`step` of `{key}` has a fraction", "addresses count in whole steps")
    numbers = pattern.running(start, steps)
    if min(numbers) < 0 or max(numbers) >= end:
        raise PatternError(f"`{key}` counts from {first} over the end of all addresses", "begin lower, or use smaller steps")
    return [spell(number) for number in numbers]


def _start(key: str, first: Any) -> tuple[int, Callable[[int], str], int]:
    """The number to begin with, how numbers are spelled, and the first number that is none any more."""
    if isinstance(first, str) and _MAC.fullmatch(first):
        return int(first.replace(":", ""), 16), lambda number: number.to_bytes(6, "big").hex(":"), 1 << 48
    try:
        address = ip_address(first if isinstance(first, str) else "")
    except ValueError:
        raise PatternError(f"`first` of `{key}` is neither a number, an address nor a MAC", "write {first: 10.0.0.1}") from None
    if address.version == 4:
        return int(address), lambda n: f"{n >> 24}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", 1 << 32
    return int(address), lambda number: str(type(address)(number)), 1 << 128


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1 << 64
