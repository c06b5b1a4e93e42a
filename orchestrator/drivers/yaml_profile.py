"""A rehearsal's fault profile from its YAML file."""

from collections.abc import Collection
from pathlib import Path

from orchestrator.domain.errors import BadInput
from orchestrator.domain.rehearsal import FaultProfile
from orchestrator.drivers.yaml_file import load_model


def read_profile(path: Path, feeds: Collection[str]) -> FaultProfile:
    """Read `path`; `feeds` are those of the spec. Raises BadInput with every problem, each at its line."""
    read = load_model(path, FaultProfile)
    strange = [number for number, loss in enumerate(read.model.feed_losses) if loss.feed not in feeds]
    if strange:
        where = [("feed_losses", number, "feed") for number in strange]
        way_out = f"it has {', '.join(sorted(feeds))}"
        raise BadInput([read.problem_at(place, "no such feed in the spec", way_out) for place in where])
    return read.model
