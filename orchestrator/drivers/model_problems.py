"""What pydantic finds wrong with a file's values, in an operator's words, at the place in the file.

Also `salvage`: a model made of whatever is right, so that a file with a typo is still checked for everything else.
"""

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.domain.errors import Problem
from orchestrator.domain.schema import annotation_at, field_at, is_optional, model_at, unwrap
from orchestrator.domain.spec import TABLE_COLUMNS, Form
from orchestrator.domain.words import counted
from orchestrator.drivers.yaml_tree import MAX_PROBLEMS, Marks, Path

M = TypeVar("M", bound=BaseModel)

_SECRET = re.compile(r"passw|secret|token|private_?key|credential|passphrase", re.IGNORECASE)
_USER_INFO = re.compile(r"//[^/@\s]*@")
"""User and password inside a URL: an error must not repeat them."""
_UNITS = {"w": "W", "kw": "kW", "s": "s", "c": "°C", "gib": "GiB", "gb": "GB"}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping (`name: value` lines)",
    "model_type": "a mapping (`key: value` lines)",
    "model_attributes_type": "a mapping (`key: value` lines)",
    "tuple_type": "a list (`- item` lines or [a, b])",
    "list_type": "a list (`- item` lines or [a, b])",
    "none_required": "left out",
}


def model_problems(error: ValidationError, model: type[BaseModel], marks: Marks, broken: set[Path]) -> list[Problem]:
    """One problem per finding of pydantic. Adds the paths of wrong values to `broken`; stays silent about paths already there."""
    known = frozenset(broken)
    problems: list[Problem] = []
    said: dict[tuple[str, Path], int] = {}
    """Kind and place of what was said → how often it was found: a pattern stands for many machines."""
    lacking: list[tuple[int, tuple[str, Path]]] = []
    left_out = 0
    for details in error.errors(include_url=False):
        path, at_key = _place_of(details)
        if any(path[:length] in known for length in range(len(path) + 1)) or _is_echo(details):
            continue
        if details["type"] != "extra_forbidden" and not at_key:
            broken.add(path)
        place = (details["type"], marks.source(path))
        said[place] = said.get(place, 0) + 1
        if said[place] > 1:
            continue
        if len(problems) == MAX_PROBLEMS:
            left_out += 1
            continue
        message, hint = _sentence(details, path, model, marks)
        at_key = at_key or details["type"] in ("extra_forbidden", "missing")
        problems.append(marks.problem_at(path, message, hint, at_key=at_key))
        if details["type"] == "missing":
            lacking.append((len(problems) - 1, place))
    for index, place in lacking:
        if (others := said[place] - 1) > 0:
            more = f"{problems[index].message}, and for {counted(others, 'more name')} of its pattern"
            problems[index] = replace(problems[index], message=more)
    if left_out:
        problems.append(
            replace(max(problems), message=f"{left_out:,} more keys and values are wrong", hint="correct the ones above first")
        )
    return problems


def salvage(model: type[M], data: Any, broken: set[Path]) -> M:
    """`data` as a `model`, with a harmless value of the right type at every path in `broken` and every missing one."""
    around = {path[:length] for path in broken for length in range(len(path))}
    return _salvaged(model, data, broken, around, ())


def _salvaged(model: type[M], data: Any, broken: set[Path], around: set[Path], path: Path) -> M:
    """`around`: paths with something broken inside. A part without is validated whole, which is a hundred times quicker."""
    if path not in around and isinstance(data, dict):
        try:
            return model.model_validate(data)
        except ValidationError:
            pass  # a key that it does not know: it is left out below
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        at = (*path, name)
        if isinstance(data, Mapping) and name in data and at not in broken:
            values[name] = _convert(field.annotation, data[name], broken, around, at)
        elif not field.is_required():
            values[name] = field.get_default(call_default_factory=True, validated_data={})
        else:
            values[name] = _harmless(field.annotation)
    return model.model_construct(**values)


def _convert(annotation: Any, data: Any, broken: set[Path], around: set[Path], path: Path) -> Any:
    if path in broken or data is None:
        return _harmless(annotation)
    kind, arguments = unwrap(annotation)[0], get_args(unwrap(annotation)[0])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _salvaged(kind, data, broken, around, path)
    origin = get_origin(kind)
    if origin is dict and isinstance(data, dict):
        return {key: _convert(arguments[1], value, broken, around, (*path, key)) for key, value in data.items()}
    if origin in (tuple, list) and isinstance(data, list):
        return origin(_convert(arguments[0], value, broken, around, (*path, index)) for index, value in enumerate(data))
    return data


def _harmless(annotation: Any) -> Any:
    kind = unwrap(annotation)[0]
    if is_optional(annotation):
        return None
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return salvage(kind, {}, set())
    if get_origin(kind) is Literal:
        return get_args(kind)[0]
    simple: dict[Any, Any] = {str: "", int: 1, float: 1.0, bool: False, dict: {}, tuple: (), list: []}
    return simple.get(get_origin(kind) or kind)


def _place_of(details: ErrorDetails) -> tuple[Path, bool]:
    """The path of a finding, and whether it is about the key itself."""
    path = tuple(details["loc"])
    return (path[:-1], True) if path and path[-1] == "[key]" else (path, False)


def _is_echo(details: ErrorDetails) -> bool:
    """pydantic counts only valid items: a list whose items are wrong is called too short as well."""
    return details["type"] == "too_short" and len(details["input"]) >= details.get("ctx", {}).get("min_length", 0)


def _sentence(details: ErrorDetails, path: Path, model: type[BaseModel], marks: Marks) -> tuple[str, str]:
    """What is wrong, how much, and the way out."""
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    label, field = _label(path, marks), field_at(model, path)
    form = next((item.text for item in _metadata_at(model, path, details) if isinstance(item, Form)), "")
    meaning = " ".join((field.description or "").split()).rstrip(".") if field is not None else ""
    about = f"{path[-1]}: {meaning}" if meaning else form and f"write {form}"
    if kind == "missing":
        way_out = f"add `{path[-1]}: ...`" + (f" ({about})" if about else "")
        if path[0] in ("nodes", "equipment") and path[-1] in TABLE_COLUMNS:
            way_out += f", or give each machine its own in a table: `inventory: machines.csv`, with the columns node,{path[-1]}"
        return f"`{path[-1]}` is missing in {_label(path[:-1], marks) or 'the file'}", way_out
    if kind == "extra_forbidden":
        return _unknown_key(path, model, marks)
    if kind in _WANTED:
        message, hint = _wrong_type(kind, label, given, marks.find(path), about)
        return message, hint or _indented(path, model_at(model, path))
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        unit = _unit_of(path)
        return f"{label} is {given}{unit}; it must be {words} {context[key]:g}{unit}", about
    if kind == "string_pattern_mismatch":
        if path[-1] == "mac" and re.fullmatch(context["pattern"], plain := str(given).lower().replace("-", ":")):
            return f"{label} is {_describe(given)}", f'write "{plain}", in lower case with colons'
        return f"{label} is {_describe(given)}{_odd_character(str(given))}", f"write {form or context['pattern']}"
    if kind in ("string_too_short", "string_too_long", "too_short", "too_long"):
        return _wrong_length(kind, label, given, context), about
    if kind == "literal_error":
        return f"{label} is {_describe(given)}", f"write {context['expected']}" + (f" ({about})" if about else "")
    if kind == "finite_number":
        return f"{label} is {given}", "write a finite number"
    if kind == "value_error":
        return f"{label}: {context['error']}", about
    return f"{label} is {_describe(given)}: {details['msg']}", about


def _unknown_key(path: Path, model: type[BaseModel], marks: Marks) -> tuple[str, str]:
    key = str(path[-1])
    message = f"`{key}` is not a key of {_label(path[:-1], marks) or 'this file'}"
    if _SECRET.search(key):
        return (
            message,
            "secrets never stand in this file: remove it and keep the value in a file with mode 0600 in the secrets folder",
        )
    around = model_at(model, path[:-1])
    keys = list(around.model_fields) if around is not None else []
    close = difflib.get_close_matches(key.lower(), keys, n=1, cutoff=0.6)
    if close:
        unit = _unit_of((close[0],))
        return message, f"did you mean `{close[0]}`{f', in{unit}' if unit else ''}?"
    return message, "remove it; known keys: " + ", ".join(keys)


def _wrong_type(kind: str, label: str, given: Any, mark: Any, about: str) -> tuple[str, str]:
    raw = mark.raw if mark is not None else None
    if kind == "string_type" and raw is not None:
        read_as = f"the number {given}" if not isinstance(given, bool) else "a truth value"
        return f"{label} must be text, but {raw} without quotes is read as {read_as}", f'quote it: "{raw}"'
    message = f"{label} must be {_WANTED[kind]}; it is {_describe(given)}"
    if isinstance(given, str) and kind in ("int_type", "float_type"):
        bare = re.fullmatch(r"\s*([-+]?[0-9.]+)\s*[A-Za-z°%]*\s*", given)
        name, _, unit = label.rpartition(".")[2].partition(" ")[0].rpartition("_")
        if bare:
            takes_unit = name and unit in ("w", "a", "v", "kg", "m")
            way_out = f"write `{name}: {given}`, or the bare number" if takes_unit else "write the bare number, without quotes,"
            return message, f"{way_out} in the unit that the key names" + (f" ({about})" if about else "")
    if isinstance(given, str) and kind in ("tuple_type", "list_type"):
        return message, f"write [{given[:40]}] if one item is meant"
    return message, about


def _indented(path: Path, model: type[BaseModel] | None) -> str:
    """The way out for a plain value where a mapping is due: most often a line that is indented too little or too much."""
    keys = [name for name, field in model.model_fields.items() if field.is_required()] if model is not None else []
    inside = ", ".join(f"{key}: ..." for key in keys[:3]) or "key: value"
    return f"write `{path[-1]}: {{{inside}}}`; if this line belongs to something else, correct its indentation"


def _wrong_length(kind: str, label: str, given: Any, context: Mapping[str, Any]) -> str:
    noun = "characters" if kind.startswith("string") else "items"
    length = len(given) if isinstance(given, Sequence | Mapping) else context.get("actual_length", 0)
    if kind.endswith("short"):
        what = "is empty" if not length else f"has {length} {noun}"
        return f"{label} {what}; it needs at least {context['min_length']} {noun if context['min_length'] != 1 else noun[:-1]}"
    return f"{label} has {length} {noun}; at most {context['max_length']} are allowed"


def _label(path: Path, marks: Marks) -> str:
    """`nodes[2].mac (r01-n3)`: the path as the file has it, with the name of the item where it has one."""
    given, path = path, marks.source(path)
    if path and isinstance(path[0], int):  # a line of a table of machines, which the place names
        return str(given[-1])
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    for length in range(len(path), 0, -1):
        if isinstance(path[length - 1], int):
            name = marks.find((*given[:length], "name"))
            if name is not None and name.raw:
                words += f" ({name.raw[:64]})"
            break
    return words


def _describe(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        value = _USER_INFO.sub("//***@", value)
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..." ({len(value)} characters)'
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence):
        return f"a list of {len(value)}"
    return "empty" if value is None else str(value)


def _odd_character(text: str) -> str:
    """Names the first character that looks like a letter and is another one."""
    for character in text:
        if not character.isascii():
            return f", with {character!r} ({unicodedata.name(character, f'U+{ord(character):04X}')})"
    return ""


def _unit_of(path: Path) -> str:
    name = path[-1] if path and isinstance(path[-1], str) else ""
    unit = _UNITS.get(name.rpartition("_")[2]) if "_" in name else None
    return f" {unit}" if unit else ""


def _metadata_at(model: type[BaseModel], path: Path, details: ErrorDetails) -> tuple[Any, ...]:
    """The metadata of the value at `path`, or of a mapping's keys."""
    if details["loc"] and details["loc"][-1] == "[key]":
        arguments = get_args(unwrap(annotation_at(model, path[:-1]))[0])
        return unwrap(arguments[0])[1] if arguments else ()
    field = field_at(model, path)
    if field is not None:
        return tuple(field.metadata)
    return unwrap(annotation_at(model, path))[1]
