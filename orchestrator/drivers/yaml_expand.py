"""From what an operator writes to what the schema describes: patterns, defaults and the table of machines, worked in.

    racks:
      r[001-250]: {limit: 44 kW, feed: [A, B], leaf: "leaf-{1}"}      a list is dealt out over the last range
    nodes:
      - name: r[001-250]-n[1-4]
        rack: r{1}
        unit: [1, 11, 21, 31]
        bmc: {first: 10.20.0.1}                                       counts up, one for each name
        address: {first: 10.10.1.1, step: [256, 1]}                   steps of 256 for each rack, of 1 for each node

A node's own word goes before its rack's (`racks.NAME.nodes`), which goes before `defaults.nodes`. A file without any of this
comes out as it is, at no cost.
"""

from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.domain.pattern import Pattern, PatternError, is_pattern
from orchestrator.domain.spec import Equipment, Feed, Node, Rack
from orchestrator.domain.spec_power import PowerElement
from orchestrator.drivers.yaml_columns import columns_of
from orchestrator.drivers.yaml_origins import Origin
from orchestrator.drivers.yaml_sources import Gathered, Table
from orchestrator.drivers.yaml_tree import Path

MAPPINGS: tuple[tuple[Path, type[BaseModel]], ...] = (
    (("feeds",), Feed),
    (("racks",), Rack),
    (("power", "elements"), PowerElement),
)
LISTS: tuple[tuple[Path, type[BaseModel]], ...] = ((("nodes",), Node), (("equipment",), Equipment))
MANY = 32
"""From this many names on, a record's first name is tried alone: 12,500 copies of one mistake need not be made."""


class Expansion:
    """Works on the data of `gathered` in place. `void` then names the sections that lack parts: findings about them are void."""

    def __init__(self, gathered: Gathered) -> None:
        self._all = gathered
        self._origins = gathered.origins
        self.void: set[Path] = set()
        self._defaults: dict[str, dict[str, Any]] = {}
        self._rack_defaults: dict[str, tuple[Path, dict[str, Any]]] = {}
        self._moved: dict[Path, Origin] = {}
        self._broken: set[Path] = set()

    def work(self) -> None:
        """Expand every section."""
        table = self._all.table()
        self._take_defaults()
        for path, model in MAPPINGS:
            self._mapping(path, model)
        for path, model in LISTS:
            self._list(path, model, table)
        if table is not None:
            self._unknown_rows(table)
        self._origins.moved.update(self._moved)

    def _take_defaults(self) -> None:
        defaults = self._all.data.pop("defaults", None)
        if defaults is None:
            return
        sections = [path[-1] for path, _ in (*MAPPINGS, *LISTS)]
        if not isinstance(defaults, dict) or not all(isinstance(value, dict) for value in defaults.values()):
            self._say(("defaults",), "defaults must be a mapping of mappings", "write defaults: {nodes: {sku: NAME}}")
            return
        for section, values in defaults.items():
            if section in sections:
                self._defaults[section] = values
            else:
                self._say(
                    ("defaults", section),
                    f"there are no defaults for `{section}`",
                    f"known: {', '.join(map(str, sections))}",
                    at_key=True,
                )

    def _mapping(self, path: Path, model: type[BaseModel]) -> None:
        parent: Any = self._all.data
        for part in path[:-1]:
            parent = parent.get(part) if isinstance(parent, dict) else None
        section = parent.get(path[-1]) if isinstance(parent, dict) else None
        defaults = self._defaults.get(str(path[-1]), {})
        if not isinstance(section, dict) or not (
            defaults or any(is_pattern(key) or _has_nodes(value) for key, value in section.items())
        ):
            return
        finished: dict[str, Any] = {}
        for key, record in section.items():
            for name, row, origin in self._rows(path, key, key, record, defaults, model):
                if name in finished:
                    other = self._moved[(*path, name)]
                    line = other.marks.problem_at(other.path, "").line
                    self._say(
                        (*path, key),
                        f"{name} stands here a second time; the first is in line {line}",
                        "let the patterns not overlap",
                        at_key=True,
                    )
                    continue
                finished[name] = row
                self._moved[(*path, name)] = origin
        parent[path[-1]] = finished
        self._settle_broken(path)
        if path == ("racks",):
            self._take_rack_defaults(finished)

    def _take_rack_defaults(self, racks: dict[str, Any]) -> None:
        for name, rack in racks.items():
            if _has_nodes(rack):
                racks[name] = {key: value for key, value in rack.items() if key != "nodes"}
                self._rack_defaults[name] = (("racks", name, "nodes"), rack["nodes"])

    def _list(self, path: Path, model: type[BaseModel], table: Table | None) -> None:
        section = self._all.data.get(str(path[0]))
        defaults = self._defaults.get(str(path[0]), {})
        if not isinstance(section, list):
            return
        if not defaults and not self._rack_defaults and table is None and not any(is_pattern(_name_of(item)) for item in section):
            return
        finished: list[Any] = []
        for index, item in enumerate(section):
            own = set(item) if isinstance(item, dict) else set()
            for name, row, origin in self._rows(path, index, _name_of(item), item, defaults, model):
                fields: dict[str, Any] = {}
                if isinstance(row, dict):
                    if path == ("nodes",):
                        self._take_from_rack(row, own, fields)
                    if table is not None:
                        self._take_from_table(name, row, own, table, fields)
                if fields:
                    origin = Origin(origin.marks, origin.path, {**origin.fields, **fields})
                self._moved[(*path, len(finished))] = origin
                finished.append(row)
        self._all.data[str(path[0])] = finished
        self._settle_broken(path)

    def _rows(
        self, path: Path, key: str | int, name: str, record: Any, defaults: dict[str, Any], model: type[BaseModel]
    ) -> list[tuple[str, Any, Origin]]:
        """What one written record stands for: name, values and origin of each."""
        at = (*path, key)
        below = [broken[len(at) :] for broken in self._all.broken if broken[: len(at)] == at]
        marks, there = self._origins.locate(at)
        if not isinstance(record, dict) or () in below or ("name",) in below:
            return [(name, record, self._kept(at, Origin(marks, there), below, len(path), name, key))]
        fields = {field: self._origins.locate(("defaults", str(path[-1]), field)) for field in defaults if field not in record}
        origin, record = Origin(marks, there, fields), {**defaults, **record}
        if not is_pattern(name):
            return [(name, record, self._kept(at, origin, below, len(path), name, key))]
        is_item = isinstance(key, int)
        try:
            pattern = Pattern.parse(name)
            names = pattern.names()
        except PatternError as error:
            self._say((*at, "name") if is_item else at, str(error), error.hint, at_key=not is_item)
            self.void.add(path)
            return []
        if is_item:
            record = {field: value for field, value in record.items() if field != "name"}
        columns, troubles = columns_of(pattern, record, model)
        for below_path, message, hint in troubles:
            self._say((*at, *below_path), message, hint)
        if troubles:
            self.void.add(path)
            return []
        if is_item:
            columns = {"name": names, **columns}
        rows = (
            [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            if columns
            else [{} for _ in names]
        )
        if len(names) > MANY and self._is_wrong(rows[0], model):
            self.void.add(path)
            names, rows = names[:1], rows[:1]
        for each in names:
            self._kept(at, origin, below, len(path), each, key)
        return [(each, row, origin) for each, row in zip(names, rows, strict=True)]

    def _is_wrong(self, row: dict[str, Any], model: type[BaseModel]) -> bool:
        try:
            model.model_validate({key: value for key, value in row.items() if key != "nodes" or model is not Rack})
        except ValidationError as error:
            # What is missing may still come from the table or the rack.
            return any(details["type"] != "missing" for details in error.errors(include_url=False))
        return False

    def _kept(self, at: Path, origin: Origin, below: list[Path], depth: int, name: str, key: str | int) -> Origin:
        """`origin`, after the wrong values below it are carried over to where they stand in the end."""
        for rest in below:
            self._broken.add((*at[:depth], name, *rest) if isinstance(key, str) else (*at[:depth], "#", name, *rest))
        return origin

    def _settle_broken(self, path: Path) -> None:
        """The wrong values of a section, under the paths that the finished section has."""
        old = {broken for broken in self._all.broken if broken[: len(path)] == path and len(broken) > len(path)}
        new = {broken for broken in self._broken if broken[: len(path)] == path}
        self._all.broken -= old
        self._broken -= new
        if not any(broken[len(path)] == "#" for broken in new):
            self._all.broken |= new
            return
        places: dict[str, list[int]] = {}
        for index, item in enumerate(self._all.data[str(path[0])]):
            places.setdefault(_name_of(item), []).append(index)
        for broken in new:
            for index in places.get(str(broken[len(path) + 1]), ()):
                self._all.broken.add((*path, index, *broken[len(path) + 2 :]))

    def _take_from_rack(self, row: dict[str, Any], own: set[str], fields: dict[str, Any]) -> None:
        rack = row.get("rack")
        where, given = self._rack_defaults.get(rack, (None, {})) if isinstance(rack, str) else (None, {})
        for key, value in given.items():
            if key in own or where is None:
                continue
            common = self._defaults.get("nodes", {})
            if key in common and common[key] != value:
                other = self._origins.problem_at(("defaults", "nodes", key), "")
                there = self._moved.get(where[:2])
                message = f"`{key}` for nodes of rack {rack} is {value}, but {common[key]} in `defaults.nodes`, line {other.line}"
                hint = "say it at the nodes themselves, or in one of the two places"
                if there is not None:
                    self._all.problems.append(there.marks.problem_at((*there.path, "nodes", key), message, hint))
                continue
            row[key] = value
            there = self._moved[where[:2]]
            fields[key] = (there.marks, (*there.path, "nodes", key))

    def _take_from_table(self, name: str, row: dict[str, Any], own: set[str], table: Table, fields: dict[str, Any]) -> None:
        line, given = table.rows.get(name, (0, {}))
        for key, text in given.items():
            value: Any = int(text) if key == "unit" and text.isdecimal() and len(text) < 9 else text
            if key == "mac":  # vendors' lists have them in every spelling
                value = text.lower().replace("-", ":")
            if key in own and row.get(key) != value:
                message = f"the table says {key} {text} for {name}, the spec says {row.get(key)}"
                self._all.problems.append(table.marks.problem_at((line,), message, "correct one, or leave it out of the spec"))
                continue
            row[key] = value
            fields[key] = (table.marks, (line,))

    def _unknown_rows(self, table: Table) -> None:
        if self.void:
            return
        known = {_name_of(item) for path, _ in LISTS for item in self._all.data.get(str(path[0])) or ()}
        unknown = [(line, name) for name, (line, _) in table.rows.items() if name not in known]
        for line, name in unknown[:3]:
            more = f" (and {len(unknown) - 1} more of its machines)" if len(unknown) > 3 else ""
            message = f"{name}{more} is no machine of the spec"
            self._all.problems.append(table.marks.problem_at((line,), message, "correct the name, or add the machine to `nodes`"))

    def _say(self, path: Path, message: str, hint: str, *, at_key: bool = False) -> None:
        self._all.problems.append(self._origins.problem_at(path, message, hint, at_key=at_key))


def _name_of(item: Any) -> str:
    name = item.get("name") if isinstance(item, dict) else None
    return name if isinstance(name, str) else ""


def _has_nodes(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("nodes"), dict)
