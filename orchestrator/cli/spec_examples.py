"""An example for every field of a spec: what the specs that ship say there, or a word of our own where none of them says one."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator import wiring
from orchestrator.domain.spec import ClusterSpec, Strict

SHIPPED = ("example-32-dgx", "example-250-xe9680", "example-gb200-nvl72", "lab-rack", "lab-4")
"""Where examples are looked for, in this order."""
OUR_OWN: Mapping[tuple[str, str], str] = {
    ("skus.NAME", "typical_w"): "typical_w: 9500",
    ("skus.NAME.supplies", "phases"): "phases: [1, 2, 3, 1, 2, 3]",
    ("racks.NAME", "on_feed_loss"): "on_feed_loss: lose",
    ("subnets", "rails"): "rails: [10.64.0.0/18, 10.64.64.0/18]",
    ("firmware.NAME.NAME", "image"): "image: /firmware/nic1-28.39.1002.bin",
    ("health", "uncorrected_ecc_max"): "uncorrected_ecc_max: 0",
    ("rollout", "wave_failure_budget"): "wave_failure_budget: 2",
    ("rollout", "max_unavailable"): "max_unavailable: 64",
    ("rollout", "down_per_rack"): "down_per_rack: 2",
    ("rollout", "down_per_feed"): "down_per_feed: 200",
    ("rollout", "down_per_leaf"): "down_per_leaf: 16",
    ("rollout", "inrush_factor"): "inrush_factor: 1.5",
    ("rollout", "inrush_s"): "inrush_s: 3",
    ("nodes[]", "insecure_bmc"): "insecure_bmc: true",
    ("nodes[]", "cords"): "cords: [1, 1, 2, 2, 3, 3]",
    ("nodes[]", "phases"): "phases: [1, 2, 3, 1, 2, 3]",
    ("nodes[]", "outlets"): "outlets: [1, 2, 1, 2, 1, 2]",
    ("nodes[]", "pair"): "pair: login",
    ("nodes[]", "lot"): "lot: 2024-06-A",
    ("equipment[]", "mac"): 'mac: "02:00:00:20:01:01"',
    ("equipment[]", "insecure_bmc"): "insecure_bmc: true",
    ("equipment[]", "phases"): "phases: [all, all]",
    ("equipment[]", "outlets"): "outlets: [37, 37]",
    ("equipment[]", "pair"): "pair: spines",
    ("equipment[]", "lot"): "lot: 2024-06-A",
    ("power", "power_factor"): "power_factor: 0.98",
    ("power.elements.NAME", "connection"): "connection: delta",
    ("power.elements.NAME", "phase"): "phase: 2",
    ("power.elements.NAME", "outlets"): "outlets: [1, 1, 2, 2, 3, 3]",
    ("power.elements.NAME", "derating"): "derating: 1.0",
    ("links[]", "reach_m"): "reach_m: 7",
}
"""By part and key."""
MOST_ITEMS = 3


class Examples:
    """Looks the examples up, reading a shipped spec only when the ones before it say nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: list[ClusterSpec] = []

    def of(self, part: str, key: str) -> str:
        """`key: value` as a spec may say it. Raises KeyError where nobody knows one."""
        if (part, key) in OUR_OWN:
            return OUR_OWN[part, key]
        defaults: list[Any] = []
        for spec in self._specs():
            for holder in _at(spec, part):
                value, field = getattr(holder, key), type(holder).model_fields[key]
                if value is None or value in ((), ""):
                    continue
                if value != field.get_default(call_default_factory=True, validated_data={}):
                    return _written(key, value)
                defaults.append(value)
        if defaults:
            return _written(key, defaults[0])
        raise KeyError(f"no example of {part or 'the file'}: {key}; add one to OUR_OWN")

    def _specs(self) -> Iterator[ClusterSpec]:
        for index, name in enumerate(SHIPPED):
            if index == len(self._read):
                self._read.append(wiring.load_spec(self._folder / f"{name}.yaml").spec)
            yield self._read[index]


def _at(value: Any, part: str) -> Iterator[Any]:
    """Everything at `part`, such as "nodes[]" or "power.elements.NAME", below `value`."""
    if value is None:
        return
    if not part:
        yield value
        return
    head, _, rest = part.partition(".")
    if head == "NAME":
        for each in value.values():
            yield from _at(each, rest)
    elif head.endswith("[]"):
        for each in getattr(value, head.removesuffix("[]")):
            yield from _at(each, rest)
    else:
        yield from _at(getattr(value, head), rest)


def _written(key: str, value: Any) -> str:
    if isinstance(value, Strict):
        return f"{key}: {{...}}"
    if isinstance(value, dict):
        return f"{key}: {{{next(iter(value))}: {{...}}}}"
    if isinstance(value, tuple) and isinstance(value[0], Strict):
        return f"{key}: [{{...}}]"
    if isinstance(value, tuple):
        more = ", ..." if len(value) > MOST_ITEMS else ""
        return f"{key}: [{', '.join(_word(each) for each in value[:MOST_ITEMS])}{more}]"
    return f"{key}: {_word(value)}"


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}" if value < 1e6 else f"{value:.0f}"
    is_plain = re.fullmatch(r"[A-Za-z/][A-Za-z0-9 ._/-]*|[0-9]+(\.[0-9]+){3}(/[0-9]+)?", value)
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)
