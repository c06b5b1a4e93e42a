"""The matrix of fault kinds in `orchestrator/drivers/README.md`: `python -m tests.wire.matrix` draws it anew."""

import re
import sys
from collections.abc import Sequence

from orchestrator.domain.operation import Status
from tests.house import PROJECT
from tests.wire.faults import Fault
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
_PART = re.compile(r"(<!-- matrix: wire -->\n).*?(<!-- end: wire -->)", re.DOTALL)


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


def with_matrix(readme: str) -> str:
    """`readme` with a fresh matrix. Raises ValueError where it has no place for one."""
    fresh, count = _PART.subn(lambda found: f"{found[1]}{table()}\n{found[2]}", readme)
    if count != 1:
        raise ValueError("the README has no place `<!-- matrix: wire -->` … `<!-- end: wire -->`, or several")
    return fresh


def main() -> int:
    """Draw it."""
    README.write_text(with_matrix(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
