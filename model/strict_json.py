"""JSON text -> frozen dataclasses, with every problem at once.

Strict, because a person or a planner wrote the text: unknown keys, missing keys and wrong types are problems, and a
problem says where it is.  Standard library only.
"""

from __future__ import annotations

import difflib
import json
import types
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def parse_object(text: str) -> tuple[dict[str, Any], list[str]]:
    """The JSON object in `text`, and the problems met: no JSON, no object, a key written twice, NaN or Infinity."""
    problems: list[str] = []

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        problems.extend(f"{name}: the key is written twice" for name in sorted(set(names)) if names.count(name) > 1)
        return dict(pairs)

    def refuse_constant(constant: str) -> float:
        problems.append(f"{constant} is not a JSON number")
        return 0.0

    try:
        value = json.loads(text, object_pairs_hook=without_duplicates, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        return {}, [f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}"]
    except RecursionError:
        return {}, ["not readable: nested too deeply"]
    if not isinstance(value, dict):
        return {}, [f"the text must be one JSON object, not {_say_type(value)}"]
    return value, problems


def build(kind: type[T], value: Any, where: str, problems: list[str]) -> T | None:
    """An instance of the dataclass `kind` from the JSON `value`; None where `value` is no object.

    Where anything was added to `problems`, the instance is only good for finding more of them: what was missing or of
    a wrong type is None in it.
    """
    if not isinstance(value, dict):
        problems.append(f"{where or 'the document'}: must be an object, not {_say_type(value)}")
        return None
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    for key in sorted(value.keys() - known.keys()):
        guess = difflib.get_close_matches(key, known, n=1)
        problems.append(f"{_at(where, key)}: unknown key" + (f"; did you mean {guess[0]}?" if guess else ""))
    arguments = {}
    for name, field in known.items():
        if name in value:
            arguments[name] = _convert(hints[name], value[name], _at(where, name), problems)
        elif _is_required(field):
            problems.append(f"{_at(where, name)}: missing")
            arguments[name] = None
    return kind(**arguments)


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """`value` as the type `hint` says: a dataclass, a tuple of floats, an optional or a plain type."""
    if is_dataclass(hint):
        return build(hint, value, where, problems)  # type: ignore[arg-type]
    if get_origin(hint) is types.UnionType:
        inner = [kind for kind in get_args(hint) if kind is not types.NoneType]
        return None if value is None else _convert(inner[0], value, where, problems)
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, list) or len(value) != len(kinds):
            problems.append(f"{where}: must be a list of {len(kinds)} numbers, not {value!r}")
            return None
        return tuple(_convert(k, v, f"{where}[{i}]", problems) for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    # bool is an int in Python, and 1 is a fine way to write 1.0; nothing else is converted.
    is_right = isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not is_right:
        problems.append(f"{where}: must be {_NAMES[hint]}, not {_say_type(value)} ({value!r:.60})")
        return None
    return value


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _say_type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else _NAMES.get(type(value), type(value).__name__)
