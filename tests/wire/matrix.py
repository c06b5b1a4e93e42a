"""The matrices of fault kinds in the READMEs of drivers (SSH, Redfish) and agent (GPUs): `python -m tests.wire.matrix` draws
them anew."""

import re
import sys
from collections.abc import Sequence

from orchestrator.domain.health import Severity
from orchestrator.domain.operation import Status
from tests.house import PROJECT
from tests.wire.faults import Fault, Then
from tests.wire.gpu_faults import GPU_TABLE, GpuFault
from tests.wire.rows_links import LINKS_AND_NONSENSE
from tests.wire.rows_logins import LOGIN_AND_REFUSAL
from tests.wire.rows_shapes import SHAPES
from tests.wire.rows_silence import SILENCE
from tests.wire.rows_ssh import SSH_FAULTS
from tests.wire.rows_updates import UPDATES_AND_POWER

NUMBERS = tuple(f"F{number}" for number in range(28, 97))
"""The lists of SSH (F28-F51) and of Redfish (F52-F96)."""
FAULTS: Sequence[Fault] = sorted(
    (*SSH_FAULTS, *LOGIN_AND_REFUSAL, *SILENCE, *UPDATES_AND_POWER, *LINKS_AND_NONSENSE, *SHAPES),
    key=lambda fault: int(fault.number[1:]),
)
README = PROJECT / "orchestrator" / "drivers" / "README.md"
GPU_README = PROJECT / "orchestrator" / "agent" / "README.md"


def table() -> str:
    """One row per fault."""
    rows = [f"| {f.number} | {_plain(f.kind)} | {_plain(f.made)} | {_answer(f)} | {f.then} |" for f in FAULTS]
    head = ["| kind | what is wrong | made by | answer | the controller |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _answer(fault: Fault) -> str:
    words = str(fault.status)
    if fault.status is Status.REFUSED:
        words += ", may pass" if fault.retryable else ", for good"
    return _plain(f"{words}; {fault.answered}" if fault.answered else words)


def _plain(text: str) -> str:
    return text.replace("|", "\\|")


def gpu_table() -> str:
    """One row per fault of GPUs."""
    head = ["| kind | what is wrong | made by | found as | then |", "|---|---|---|---|---|"]
    return "\n".join([*head, *map(_gpu_row, GPU_TABLE)])


def _gpu_row(row: GpuFault) -> str:
    found = ", ".join(f"`{check}`" for check, _ in row.found) or ("nothing" if row.plant else "")
    found = "; ".join(filter(None, (found, row.answered))) or "-"
    return f"| {row.number} | {_plain(row.kind)} | {_plain(row.made)} | {_plain(found)} | {_then(row)} |"


def _then(row: GpuFault) -> str:
    if row.plant is None:
        return row.then or "-"
    if row.found and row.severity is Severity.FAILED:
        return Then.QUARANTINE
    return f"{Then.GO_ON}, with a warning" if row.found else Then.GO_ON


def with_matrix(readme: str) -> str:
    """`readme` with a fresh matrix of SSH and Redfish. Raises ValueError where it has no place for one."""
    return _drawn(readme, "wire", table())


def with_gpu_matrix(readme: str) -> str:
    """`readme` with a fresh matrix of GPUs. Raises ValueError where it has no place for one."""
    return _drawn(readme, "gpus", gpu_table())


def _drawn(readme: str, name: str, body: str) -> str:
    part = re.compile(rf"(<!-- matrix: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
    fresh, count = part.subn(lambda found: f"{found[1]}{body}\n{found[2]}", readme)
    if count != 1:
        raise ValueError(f"the README has no place `<!-- matrix: {name} -->` … `<!-- end: {name} -->`, or several")
    return fresh


def main() -> int:
    """Draw both."""
    README.write_text(with_matrix(README.read_text(encoding="utf-8")), encoding="utf-8")
    GPU_README.write_text(with_gpu_matrix(GPU_README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
