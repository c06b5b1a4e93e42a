"""The JSON Schema of a spec file, for editors: `cluster_specs/spec.schema.json`.

The model describes a spec whose patterns are worked in. Here every record may also be written as an operator writes it: names by
pattern, values dealt out or counting up, quantities with their unit, and what a table, defaults or another file may add left out.
"""

import copy
from typing import Any

from orchestrator.domain.spec import ClusterSpec

ENDINGS = ("w", "a", "v", "kg", "m", "s", "c", "gib")
RECORDS = ("Feed", "Rack", "PowerElement", "Node", "Equipment")
"""Models whose records may be named by pattern."""
QUANTITY = r"^[-+]?[0-9]+(\.[0-9]+)? ?[A-Za-z°]+$"


def spec_schema() -> dict[str, Any]:
    """The schema as JSON; draft 2020-12."""
    schema = copy.deepcopy(ClusterSpec.model_json_schema())
    for name, model in (("ClusterSpec", schema), *schema["$defs"].items()):
        if "properties" in model:
            _loosen(model, is_record=name in RECORDS)
    properties, defs = schema["properties"], schema["$defs"]
    defs["Rack"]["properties"]["nodes"] = {"type": "object", "description": "Defaults for the nodes of this rack."}
    properties["include"] = {
        "type": "array",
        "items": {"type": "string"},
        "description": "Files that hold parts of this spec, in its folder.",
    }
    properties["inventory"] = {"type": "string", "description": "CSV with one line for each machine: node, serial, mac, ..."}
    properties["defaults"] = {"type": "object", "description": "Per section, values for every record that does not say them."}
    schema["required"] = ["rackray"]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "rackray cluster spec"
    return schema


def _loosen(model: dict[str, Any], *, is_record: bool) -> None:
    properties: dict[str, Any] = model["properties"]
    required: list[str] = model.pop("required", [])
    either: list[dict[str, Any]] = []
    for key in list(properties):
        _open_names(properties[key])
        bare, _, ending = key.rpartition("_")
        if is_record:
            properties[key] = _by_pattern(properties[key])
        if ending in ENDINGS and bare and bare not in properties:
            text: dict[str, Any] = {"type": "string", "pattern": QUANTITY, "description": properties[key].get("description", "")}
            properties[bare] = _by_pattern(text) if is_record else text
            if key in required:
                required.remove(key)
                either.append({"anyOf": [{"required": [key]}, {"required": [bare]}]})
    if not is_record and required:
        model["required"] = required
    if not is_record and either:
        model["allOf"] = either


def _open_names(value: dict[str, Any]) -> None:
    """Keys of mappings may be patterns, which the finished names' own form would refuse."""
    for pattern_key in list(value.get("patternProperties", {})):
        value["additionalProperties"] = value["patternProperties"].pop(pattern_key)
    value.pop("patternProperties", None)
    value.pop("propertyNames", None)
    for inner in [value.get("additionalProperties"), *value.get("anyOf", [])]:
        if isinstance(inner, dict):
            _open_names(inner)


def _by_pattern(value: dict[str, Any]) -> dict[str, Any]:
    """The same, or a text with references, a list that is dealt out, or a mapping that counts up."""
    counting = {"type": "object", "properties": {"first": {}, "step": {}}, "required": ["first"], "additionalProperties": False}
    plain = {key: item for key, item in value.items() if key not in ("description", "default", "title")}
    kept = {key: item for key, item in value.items() if key in ("description", "default", "title")}
    return {"anyOf": [plain, {"type": "string", "pattern": r"[{\[]"}, {"type": "array"}, counting], **kept}
