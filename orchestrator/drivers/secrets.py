"""The secrets folder: `$RACKRAY_HOME/secrets`, mode 0700, every file in it 0600 and owned by whoever runs rackray.

    factory.csv          node,serial,username,password,bmc_certificate_sha256: what the vendor delivers (RACKRAY_FACTORY_CSV)
    bmc/NODE             the password rackray set at that node's BMC; made durable here before the BMC hears it
    ssh_key              private key for the nodes (RACKRAY_SSH_KEY)
    image_token          bearer token of the image service
    image_ca.pem         certificate the image service is verified with; public, but nobody else may write it
    ray-NAME.token       tokens of the Ray clusters

A file that others can read, or that is a symbolic link, is refused with the command that repairs it.
"""

import csv
import io
import os
import re
import secrets as random_source
import stat
import string
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.errors import BadInput, NodeSecretMissing, Problem, SecretMissing
from orchestrator.domain.secret import Redactor, Secret
from orchestrator.drivers.own_limits import own_limit, own_limits_told

LARGEST_SECRET_BYTES = 64 * 1024
LARGEST_CSV_BYTES = 64 * 1024 * 1024
BMC_PASSWORD_LENGTH = 20
"""The longest that IPMI-bound BMCs take (IPMI 2.0, section 22.30: 20 bytes) and long enough for every complexity rule met."""
FACTORY_COLUMNS = ("node", "serial", "username", "password", "bmc_certificate_sha256")
PLAIN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
FINGERPRINT = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class FactoryRow:
    """What the vendor delivered for one machine."""

    serial: str
    username: str
    password: Secret
    certificate_sha256: str
    """Lower-case hex of the delivered BMC certificate's DER; empty if the vendor gave none."""


class SecretStore:
    """Reads and makes the secrets below `home`. Thread-safe. Every secret it hands out is known to `redactor`.

    Errors: SecretMissing (absent, readable by others, a link), BadInput (factory.csv is malformed).
    """

    def __init__(self, home: Path, environment: Mapping[str, str] | None = None) -> None:
        self.redactor = Redactor()
        self._folder = home / "secrets"
        self._environment = os.environ if environment is None else environment
        self._lock = threading.Lock()
        self._factory: tuple[tuple[int, int, int], Mapping[str, FactoryRow]] | None = None

    def factory_login(self, node: str) -> tuple[str, Secret]:
        """User name and password the machine left the factory with."""
        row = self._factory_row(node)
        if row is None:
            raise NodeSecretMissing(
                f"{node} has no row in {self._factory_path()}",
                "add its serial, user name and password from the vendor's delivery; factory passwords are never guessed",
            )
        self.redactor.learn(row.password)
        return row.username, row.password

    def has_factory_login(self, node: str) -> bool:
        """Whether the vendor's delivery names this node."""
        return self._factory_row(node) is not None

    def factory_serial(self, node: str) -> str | None:
        """The serial the factory login belongs to, or None if the node is not in the delivery."""
        row = self._factory_row(node)
        return row.serial if row else None

    def factory_certificate(self, node: str) -> str | None:
        """SHA-256 (lower-case hex) of the BMC certificate the vendor delivered, or None."""
        row = self._factory_row(node)
        return (row.certificate_sha256 or None) if row else None

    def bmc_password(self, node: str, *, create: bool = False) -> Secret:
        """Our password for the node's BMC; with `create` it is made, on disk and durable, if there is none."""
        path = self._folder / "bmc" / _plain(node)
        try:
            return self._secret(path)
        except FileNotFoundError:
            if not create:
                raise NodeSecretMissing(f"no password for the BMC of {node} in {path}", "it is made by `rackray apply`") from None
        with own_limits_told(f"no password for the BMC of {node} can be written to {path}"):
            self._make_folder(path.parent)
            _write_once(path, _new_password())
        # Read back: where two processes made one at the same time, the first one's stands.
        return self._secret(path)

    def has_bmc_password(self, node: str) -> bool:
        """Whether a password of ours exists, which says nothing about the BMC having heard it."""
        return (self._folder / "bmc" / _plain(node)).is_file()

    def ssh_key_path(self) -> str:
        """Path of the private key for the nodes, checked to be nobody else's."""
        path = self._named("RACKRAY_SSH_KEY", "ssh_key")
        try:
            _read_private(path, LARGEST_SECRET_BYTES)
        except FileNotFoundError:
            raise SecretMissing(
                f"no SSH key in {path}", "put it there with mode 0600, or set RACKRAY_SSH_KEY to its path"
            ) from None
        return str(path)

    def image_ca_path(self) -> str:
        """Path of the certificate the image service is verified with, checked to be writable by nobody else."""
        path = self._folder / "image_ca.pem"
        try:
            facts = path.stat()
        except FileNotFoundError:
            raise SecretMissing(f"no certificate of the image service in {path}", "ask its operator for the PEM file") from None
        if facts.st_mode & 0o022 or facts.st_uid not in (0, os.geteuid()):
            raise SecretMissing(f"{path} can be replaced by others (mode {facts.st_mode & 0o777:04o})", f"chmod 0644 {path}")
        return str(path)

    def read(self, name: str) -> Secret:
        """The secret in the file `name`, without its last line break."""
        path = self._folder / _plain(name)
        try:
            return self._secret(path)
        except FileNotFoundError:
            raise SecretMissing(f"no secret called {name} in {self._folder}", f"put it into {path} with mode 0600") from None

    def redact(self, text: str) -> str:
        """`text` without any secret handed out so far."""
        return self.redactor.clean(text)

    def _named(self, variable: str, name: str) -> Path:
        return Path(self._environment[variable]) if self._environment.get(variable) else self._folder / name

    def _factory_path(self) -> Path:
        return self._named("RACKRAY_FACTORY_CSV", "factory.csv")

    def _secret(self, path: Path) -> Secret:
        _check_folder(path.parent)
        text = _text(_read_private(path, LARGEST_SECRET_BYTES), path).rstrip("\r\n")
        if not text:
            raise SecretMissing(f"{path} is empty", "remove it or fill it")
        secret = Secret(text)
        self.redactor.learn(secret)
        return secret

    def _make_folder(self, folder: Path) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_folder(self._folder)
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(folder.parent)

    def _factory_row(self, node: str) -> FactoryRow | None:
        path = self._factory_path()
        try:
            facts = path.lstat()
        except FileNotFoundError:
            return None
        version = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        with self._lock:
            if self._factory is None or self._factory[0] != version:
                rows = parse_factory_csv(_text(_read_private(path, LARGEST_CSV_BYTES), path), path.name)
                self._factory = (version, rows)
            return self._factory[1].get(node)


def parse_factory_csv(text: str, file: str) -> dict[str, FactoryRow]:
    """The vendor's delivery by node name. Raises BadInput with every problem; no message holds a password."""
    reader = csv.DictReader(io.StringIO(text))
    missing = [column for column in FACTORY_COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise BadInput(
            [Problem(file, 1, 1, f"no column {', '.join(missing)}", f"the first line must be {','.join(FACTORY_COLUMNS)}")]
        )
    rows: dict[str, FactoryRow] = {}
    problems: list[Problem] = []
    for row in reader:
        values = {column: (row.get(column) or "").strip() for column in FACTORY_COLUMNS}
        # A password may begin or end with a blank.
        password = row.get("password") or ""
        fingerprint = values["bmc_certificate_sha256"].replace(":", "").lower()
        complaints = [f"no {column}" for column in ("node", "serial", "username") if not values[column]]
        complaints += [] if password else ["no password"]
        complaints += [f"a second row for {values['node']}"] if values["node"] in rows else []
        if fingerprint and not FINGERPRINT.match(fingerprint):
            complaints.append("bmc_certificate_sha256 is no SHA-256 (64 hex digits)")
        problems += [Problem(file, reader.line_num, 1, complaint) for complaint in complaints]
        rows.setdefault(values["node"], FactoryRow(values["serial"], values["username"], Secret(password), fingerprint))
    if problems:
        raise BadInput(problems)
    return rows


def _plain(name: str) -> str:
    if not PLAIN_NAME.match(name):
        raise SecretMissing(f"{name!r} is no name of a secret", "letters, digits, dot, dash and underscore")
    return name


def _read_private(path: Path, limit_bytes: int) -> bytes:
    """The file's bytes. FileNotFoundError if absent, SecretMissing if it is a link, another user's, or open to others;
    OwnLimitReached."""
    try:
        # O_NONBLOCK: a FIFO in its place must not hang us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        if limit := own_limit(error, f"{path} cannot be read"):
            raise limit from error
        if path.is_symlink():
            raise SecretMissing(f"{path} is a symbolic link; secrets are plain files", "put the file itself there") from error
        raise SecretMissing(f"{path} cannot be read: {error.strerror}", f"chmod 600 {path}") from error
    try:
        _check_private(path, os.fstat(descriptor), limit_bytes)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _check_private(path: Path, facts: os.stat_result, limit_bytes: int) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise SecretMissing(f"{path} is not a plain file", "replace it by one")
    if facts.st_uid not in (0, os.geteuid()):
        raise SecretMissing(f"{path} belongs to user id {facts.st_uid}", f"chown {os.geteuid()} {path}")
    if facts.st_mode & 0o077:
        raise SecretMissing(f"{path} can be read by others (mode {facts.st_mode & 0o777:04o})", f"chmod 600 {path}")
    if facts.st_size > limit_bytes:
        raise SecretMissing(f"{path} has {facts.st_size} bytes; at most {limit_bytes} are taken", "is it the right file?")


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # `from None`: the error's text would show the bytes.
        raise SecretMissing(f"{path} is not UTF-8 text", "write it again as plain text") from None


def _check_folder(folder: Path) -> None:
    try:
        facts = folder.stat()
    except FileNotFoundError:
        return
    if facts.st_mode & 0o077:
        raise SecretMissing(f"{folder} is open to others (mode {facts.st_mode & 0o777:04o})", f"chmod 700 {folder}")


def _write_once(path: Path, text: str) -> None:
    """Durable and whole, or not at all; a file that already stands there is left alone."""
    draft = path.with_name(f".{path.name}.{random_source.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link, not a rename: a rename would replace a password that a BMC may already have.
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_password() -> str:
    """Random, with every class of character that complexity rules ask for; about 119 bits."""
    classes = (string.ascii_uppercase, string.ascii_lowercase, string.digits, "-_.+")
    alphabet = "".join(classes)
    while True:
        password = "".join(random_source.choice(alphabet) for _ in range(BMC_PASSWORD_LENGTH))
        # The first character is a letter: some BMC shells read a leading dash as an option.
        if password[0].isalpha() and all(any(c in kind for c in password) for kind in classes):
            return password
