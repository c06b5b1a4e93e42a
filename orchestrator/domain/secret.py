"""Secrets as values that cannot be printed by accident, and the second line behind them: a filter for what is logged."""

import hmac
import logging
import threading
from collections.abc import Iterable
from typing import NoReturn, final

from orchestrator.domain.errors import SecretMissing

MASK = "***"
SHORTEST_REDACTED = 6
"""Shorter secrets are not searched for in text: they would blacken ordinary words."""


@final
class Secret:
    """A password, key or token. Every way of showing it gives `***`; only `reveal()` gives the value.

    It does not survive pickling: what arrives on the other side refuses to be revealed, so that a secret that was sent by
    mistake is noticed and not used. Comparison takes constant time.
    """

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value: str | None = value

    def reveal(self) -> str:
        """The value. Raises SecretMissing on a copy that came out of a pickle."""
        if self.__value is None:
            raise SecretMissing(
                "a secret was carried between processes and arrived masked",
                "read it from the secrets folder where it is used",
            )
        return self.__value

    def __repr__(self) -> str:
        return f"Secret('{MASK}')"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return MASK

    def __bool__(self) -> bool:
        return bool(self.__value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest((self.__value or "").encode(), (other.__value or "").encode())

    def __hash__(self) -> int:
        # A constant: a hash of the value could be used to test guesses, and nobody keeps many of these in one set.
        return hash(Secret)

    def __iter__(self) -> NoReturn:
        raise TypeError("a secret is not a text; call reveal() where it is used")

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return (_masked, ())


def _masked() -> Secret:
    secret = Secret("")
    secret._Secret__value = None  # type: ignore[attr-defined]
    return secret


class Redactor:
    """Knows the secrets in use and blackens them in text. Thread-safe; its cost does not grow with the number of secrets."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        self._lock = threading.Lock()
        self._by_beginning: dict[str, tuple[str, ...]] = {}
        for secret in secrets:
            self.learn(secret)

    def learn(self, secret: Secret) -> None:
        """From now on this value is blackened."""
        value = secret.reveal()
        if len(value) < SHORTEST_REDACTED:
            return
        beginning = value[:SHORTEST_REDACTED]
        with self._lock:
            known = self._by_beginning.get(beginning, ())
            if value not in known:
                # Longest first: a secret that contains another one must not leave its rest behind.
                self._by_beginning[beginning] = tuple(sorted((*known, value), key=len, reverse=True))

    def clean(self, text: str) -> str:
        """`text` with every known secret replaced by `***`."""
        if not self._by_beginning:
            return text
        pieces: list[str] = []
        kept_from, at = 0, 0
        while at <= len(text) - SHORTEST_REDACTED:
            values = self._by_beginning.get(text[at : at + SHORTEST_REDACTED], ())
            found = next((value for value in values if text.startswith(value, at)), None)
            if found is None:
                at += 1
                continue
            pieces += (text[kept_from:at], MASK)
            at += len(found)
            kept_from = at
        return "".join((*pieces, text[kept_from:]))


class RedactingFilter(logging.Filter):
    """For handlers, not loggers: a logger's filter does not see the records of its children."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True; the record's text and traceback are cleaned in place."""
        record.msg = self._redactor.clean(record.getMessage())
        record.args = None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self._redactor.clean(record.exc_text)
        return True
