"""A node's record as JSON and back: what snapshots are made of."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from orchestrator.domain.node import Fact, NodeRecord, NodeState, OpenOperation
from orchestrator.domain.operation import Action


def record_to_json(record: NodeRecord) -> dict[str, Any]:
    """Plain data that says everything the record says; fields at their default are left out."""
    data = {name: value for name, default in _FIELDS.items() if (value := getattr(record, name)) != default}
    data["name"] = record.name
    for name in ("open", "lost"):
        if name in data:
            data[name] = dataclasses.asdict(data[name])
    if "facts" in data:
        data["facts"] = {str(action): (fact.at_s, fact.values) for action, fact in record.facts.items()}
    return data


def record_from_json(data: Mapping[str, Any]) -> NodeRecord:
    """Inverse of `record_to_json`. Raises KeyError, TypeError or ValueError on foreign data."""
    fields = dict(data)
    for name in ("open", "lost"):
        if name in fields:
            fields[name] = OpenOperation(**{**fields[name], "action": Action(fields[name]["action"])})
    if "facts" in fields:
        fields["facts"] = {_ACTIONS[action]: Fact(at_s, values) for action, (at_s, values) in fields["facts"].items()}
    if "state" in fields:
        fields["state"] = NodeState(fields["state"])
    return NodeRecord(**fields)


_ACTIONS: Mapping[str, Action] = {str(action): action for action in Action}
_BLANK = NodeRecord("")
_FIELDS: Mapping[str, Any] = {
    field.name: getattr(_BLANK, field.name) for field in dataclasses.fields(NodeRecord) if field.name != "name"
}
RECORD_SHAPE = "1 " + " ".join(sorted(_FIELDS))
"""Names the fields of a record: a snapshot of another shape was written by another rackray, and is not read."""
