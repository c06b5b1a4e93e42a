"""Every error rackray raises on purpose.

RackrayError                 what, where, how much; `hint` is the way out; `exit_code` what the command line answers
├── BadInput                 a file or an argument is wrong (exit 2); carries every problem at once
├── NotAsRequired            the cluster or a run is not as it must be (exit 1)
├── LeaseHeld                somebody else decides at the moment
├── JournalBroken            the journal cannot be trusted or written; nothing goes on without it
│   └── JournalBusy          another process keeps its write lock; nothing was written, and nothing is wrong with it
├── OwnLimitReached          this host has no descriptor, port, memory or thread left; nothing was sent
├── SharedServiceDown        what all nodes share (the cell's head) does not answer; none of them is to blame
├── SecretMissing            a password, key or token is not where it must be, or is readable by others
│   └── NodeSecretMissing    what is missing is of one node alone
└── PeerError                a BMC, node, image service or Ray answered wrongly, or not at all
    ├── PeerUnreachable      nothing was sent: safe to try again
    ├── PeerRefused          it answered no
    ├── AnswerLost           something was sent and no answer came: look again, never assume
    └── IdentityMismatch     another machine, key or certificate than the pinned one: nothing is written to it
"""

from dataclasses import dataclass


class RackrayError(Exception):
    """Base of all our errors; the command line prints `str(error)` and `hint`, never a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong with one place of an input file. Lines and columns start at 1; 0 means the whole file."""

    file: str
    line: int
    column: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{where}: {self.message}" + (f"; {self.hint}" if self.hint else "")


class BadInput(RackrayError):
    """An input is wrong; nothing was touched."""

    exit_code = 2

    def __init__(self, problems: list[Problem] | tuple[Problem, ...] | str, hint: str = "") -> None:
        self.problems: tuple[Problem, ...] = () if isinstance(problems, str) else tuple(problems)
        super().__init__(problems if isinstance(problems, str) else "\n".join(map(str, problems)), hint)


class NotAsRequired(RackrayError):
    """The cluster, a node or a run is not in the state that was asked for."""


class LeaseHeld(RackrayError):
    """Another controller holds the lease."""


class JournalBroken(RackrayError):
    """The journal cannot be read or made durable; continuing would risk acting twice."""


class JournalBusy(JournalBroken):
    """Another process has kept the journal's write lock for too long; nothing was written."""


class OwnLimitReached(RackrayError):
    """The host that rackray runs on has reached a limit of its own; no neighbour was asked, and none is to blame."""


class SharedServiceDown(RackrayError):
    """Something that all nodes need and none of them is does not answer: one fault, and no node's."""


class SecretMissing(RackrayError):
    """A secret is missing, or its file can be read by others."""

    exit_code = 2


class NodeSecretMissing(SecretMissing):
    """What is missing is of one node alone: the others do not wait for it."""


class PeerError(RackrayError):
    """A neighbour (BMC, node, image service, Ray) did not do what was asked."""


class PeerUnreachable(PeerError):
    """No connection: nothing was sent, so trying again is safe."""


class PeerRefused(PeerError):
    """The neighbour answered, and the answer was no."""

    def __init__(self, message: str, hint: str = "", *, retryable: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(message, hint)
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class AnswerLost(PeerError):
    """The request left and no answer came back: the effect is unknown."""


class IdentityMismatch(PeerError):
    """The machine at this address is not the one the spec or an earlier pin names."""
