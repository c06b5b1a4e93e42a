"""Sessions of one BMC: a small pool, tokens, idle timeout."""

import itertools
import secrets
from dataclasses import dataclass, field, replace

MAX_SESSIONS = 16
"""Real BMCs hold 8 to 64."""
DEFAULT_TIMEOUT_S = 1800
MIN_TIMEOUT_S, MAX_TIMEOUT_S = 30, 86400


@dataclass(frozen=True, slots=True)
class Session:
    """One login; its token never appears in its repr."""

    id: str
    token: str = field(repr=False)
    account_id: str
    username: str
    created_s: float
    used_s: float
    peer: str


class SessionPoolFull(Exception):
    """No more session can be created."""


class Sessions:
    """The pool; idle sessions end after `timeout_s`."""

    def __init__(self) -> None:
        self.timeout_s = DEFAULT_TIMEOUT_S
        self._by_id: dict[str, Session] = {}
        self._numbers = itertools.count(1)

    def create(self, account_id: str, username: str, peer: str, now_s: float) -> Session:
        """A new session, or SessionPoolFull."""
        if len(self.all(now_s)) >= MAX_SESSIONS:
            raise SessionPoolFull
        token = secrets.token_hex(32)
        session = Session(str(next(self._numbers)), token, account_id, username, now_s, now_s, peer)
        self._by_id[session.id] = session
        return session

    def all(self, now_s: float) -> tuple[Session, ...]:
        """Every session that lives."""
        for session in tuple(self._by_id.values()):
            if now_s - session.used_s > self.timeout_s:
                del self._by_id[session.id]
        return tuple(self._by_id.values())

    def find(self, session_id: str, now_s: float) -> Session | None:
        """The session of that id, or None."""
        return next((session for session in self.all(now_s) if session.id == session_id), None)

    def use(self, token: str, now_s: float) -> Session | None:
        """The session of that token, which counts as used now; None if there is none."""
        for session in self.all(now_s):
            if secrets.compare_digest(session.token.encode(), token.encode()):
                self._by_id[session.id] = replace(session, used_s=now_s)
                return self._by_id[session.id]
        return None

    def delete(self, session_id: str) -> None:
        """End it."""
        self._by_id.pop(session_id, None)

    def end_all_of(self, account_id: str) -> None:
        """End every session of an account that was deleted."""
        for session in tuple(self._by_id.values()):
            if session.account_id == account_id:
                del self._by_id[session.id]

    def end_all(self) -> None:
        """What a restart of the BMC does."""
        self._by_id.clear()
