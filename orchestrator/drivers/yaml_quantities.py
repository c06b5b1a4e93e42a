"""Quantities with their unit as text: `limit: 12 kW` is `limit_w: 12000`, wherever a field's name ends in its unit.

A number without a unit is refused, and so is the unit of another quantity: nobody guesses between kW, W and A.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from orchestrator.domain.schema import unwrap
from orchestrator.drivers.yaml_tree import Path

UNITS: Mapping[str, Mapping[str, str]] = {
    "w": {"W": "1", "kW": "1000", "MW": "1000000"},
    "a": {"A": "1", "kA": "1000"},
    "v": {"V": "1", "kV": "1000"},
    "kg": {"kg": "1", "t": "1000", "lb": "0.45359237"},
    "m": {"m": "1", "cm": "0.01", "km": "1000", "ft": "0.3048"},
    "s": {"s": "1", "ms": "0.001", "min": "60", "h": "3600", "d": "86400"},
    "c": {"C": "1", "°C": "1"},
    "gib": {"GiB": "1", "MiB": "0.0009765625", "TiB": "1024"},
}
"""The ending of a field's name → the units that may be written, and how many of the field's own unit each is."""

_KINDS = {"w": "power", "a": "current", "v": "voltage", "kg": "weight", "m": "length", "s": "time", "c": "temperature"}
_QUANTITY = re.compile(r"([-+]?[0-9]{1,15}(?:\.[0-9]{1,15})?) ?([A-Za-z°]{1,4})")

Trouble = tuple[Path, str, str]
"""Where, what, and the way out."""


class Quantities:
    """Rewrites one file's data in place. After `rewrite`: what was renamed to what, and what is wrong."""

    def __init__(self) -> None:
        self.renamed: dict[Path, Path] = {}
        """Path under the field's name → the path that the file holds."""
        self.troubles: list[Trouble] = []

    def rewrite(self, data: Any, annotation: Any, path: Path = ()) -> None:
        """Give every quantity in `data`, which stands at `path` and is described by `annotation`, its field's name and unit."""
        kind = unwrap(annotation)[0]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if isinstance(data, dict):
                self._mapping(data, kind, path)
        elif get_origin(kind) is dict and isinstance(data, dict):
            for key, value in data.items():
                self.rewrite(value, get_args(kind)[1], (*path, key))
        elif get_origin(kind) is tuple and isinstance(data, list):
            item = unwrap(get_args(kind)[0])[0]
            if isinstance(item, type) and issubclass(item, BaseModel) and _may_hold_quantities(item):
                for index, value in enumerate(data):
                    self.rewrite(value, item, (*path, index))

    def _mapping(self, data: dict[str, Any], model: type[BaseModel], path: Path) -> None:
        for key in [key for key in data if key not in model.model_fields]:
            field = next((f"{key}_{ending}" for ending in UNITS if f"{key}_{ending}" in model.model_fields), None)
            if field is None:
                continue
            if field in data:
                self._say((*path, key), f"`{key}` is given as `{field}` too", "remove one of the two")
                del data[key]
                continue
            whole = unwrap(model.model_fields[field].annotation)[0] is int
            data[field] = self._read(data.pop(key), key, field, (*path, key), whole)
            self.renamed[(*path, field)] = (*path, key)
        for key, value in data.items():
            if isinstance(value, dict | list) and key in model.model_fields:
                self.rewrite(value, model.model_fields[key].annotation, (*path, key))

    def _read(self, value: Any, key: str, field: str, path: Path, whole: bool) -> Any:
        units = UNITS[field.rpartition("_")[2]]
        listed = ", ".join(units)
        if isinstance(value, list):  # dealt out over the names of a pattern
            return [self._read(item, key, field, (*path, index), whole) for index, item in enumerate(value)]
        if isinstance(value, int | float) and not isinstance(value, bool):
            own = next(unit for unit, factor in units.items() if factor == "1")
            self._say(path, f"`{key}` is {value:g}, without a unit", f"write `{key}: {value:g} {own}` or `{field}: {value:g}`")
            return 1 if whole else 1.0
        match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
        if match is None or match[2] not in units:
            shown = f'"{value[:40]}"' if isinstance(value, str) else "no text"
            what = _other_kind(match[2], field) if match is not None else ""
            self._say(
                path,
                f"`{key}` is {shown}{what}",
                f"write a number and one of {listed}, such as `{key}: 12 {listed.split(',')[0]}`",
            )
            return 1 if whole else 1.0
        number = Decimal(match[1]) * Decimal(units[match[2]])
        if whole and number == number.to_integral_value():
            return int(number)
        return float(number)

    def _say(self, path: Path, message: str, hint: str) -> None:
        self.troubles.append((path, message, hint))


def _other_kind(unit: str, field: str) -> str:
    mine = field.rpartition("_")[2]
    for ending, units in UNITS.items():
        if unit in units and ending != mine:
            return f", a {_KINDS.get(ending, 'size')} where a {_KINDS.get(mine, 'size')} is due"
    close = next((known for known in UNITS[mine] if known.lower() == unit.lower()), None)
    return f"; {unit} is written {close}" if close else f"; {unit} is no unit of {_KINDS.get(mine, 'size')}"


def _may_hold_quantities(model: type[BaseModel]) -> bool:
    """Whether anything in `model` ends in a unit: the items of a list of 12,500 nodes need not be looked at one by one."""
    return any(name.rpartition("_")[2] in UNITS or _is_nested(field.annotation) for name, field in model.model_fields.items())


def _is_nested(annotation: Any) -> bool:
    return any(True for _ in _models_in(annotation))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    kind = unwrap(annotation)[0]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for argument in get_args(kind):
        yield from _models_in(argument)
