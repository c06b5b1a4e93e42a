"""How long a spec takes to read and check, and what share of that is YAML alone: `make bench-spec`.

`python -m tests.benchmarks.spec_speed SPEC` measures another one than the 100,000 GPUs.

Processor seconds of this process, the best of three; the peak of its memory at the end. Beside them stand the size of the spec
written out, node by node, and the time that PyYAML (CSafeLoader) alone needs for that.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from orchestrator.drivers.spec_reader import parse_spec
from orchestrator.drivers.yaml_file import read_tree
from orchestrator.planning.power_loss import power_report
from orchestrator.planning.validation import check_spec

FRONTIER = Path(__file__).parents[2] / "cluster_specs" / "frontier-100k.yaml"


def best_s(work: Callable[[], object], times: int = 3) -> float:
    """Processor seconds of the quickest of `times` runs."""
    spent = []
    for _ in range(times):
        began_s = time.process_time()
        work()
        spent.append(time.process_time() - began_s)
    return min(spent)


def main(path: Path) -> None:
    """Measure and print."""
    data, file = path.read_bytes(), str(path)
    spec = parse_spec(data, file, check_spec).spec
    parse_s = best_s(lambda: yaml.load(data, Loader=yaml.CSafeLoader))
    strict_s = best_s(lambda: read_tree(data, file))
    read_s = best_s(lambda: parse_spec(data, file, lambda spec: []))
    whole_s = best_s(lambda: parse_spec(data, file, check_spec))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{path.name}: {len(spec.nodes):,} nodes, {len(spec.racks):,} racks, {len(spec.equipment):,} switches and the like")
    print(f"YAML alone (CSafeLoader)        {parse_s:8.4f} s  {parse_s / whole_s:7.2%} of the whole")
    print(f"YAML, strict                    {strict_s:8.4f} s  {strict_s / whole_s:7.2%}")
    print(f"read: expanded and validated    {read_s:8.4f} s  {read_s / whole_s:7.2%}")
    print(f"whole: read and checked         {whole_s:8.4f} s, peak {peak_mib:.0f} MiB (asked: 3 s and 1024 MiB)")
    if spec.power is not None:
        print(f"of that the power of every loss {best_s(lambda: power_report(spec)):8.4f} s")
    written_out = json.dumps(spec.model_dump(mode="json")).encode()
    out_s = best_s(lambda: yaml.load(written_out, Loader=yaml.CSafeLoader), 1)
    print(f"written out it is {len(written_out) / 2**20:.1f} MiB, and YAML alone would take {out_s:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FRONTIER)
