"""What a vendor delivers on paper, and what the site gives its operator: passwords, keys and tokens, each born 0600."""

import csv
import io
import os
import secrets
import string
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from orchestrator.lab.errors import LabError
from orchestrator.lab.image import make_ssh_key
from orchestrator.lab.plan import LabPaths

PASSWORD_LENGTH = 16


@dataclass(frozen=True, slots=True)
class FactoryRow:
    """One machine as delivered."""

    node: str
    serial: str
    username: str
    password: str
    bmc_certificate_sha256: str


COLUMNS = tuple(field.name for field in fields(FactoryRow))


def factory_password() -> str:
    """A password as printed on a machine's pull-out tag: its own, random, of every kind of character BMCs ask for."""
    kinds = (string.ascii_lowercase, string.ascii_uppercase, string.digits)
    while True:
        word = "".join(secrets.choice("".join(kinds)) for _ in range(PASSWORD_LENGTH))
        if all(set(word) & set(kind) for kind in kinds):
            return word


def deliver(path: Path, rows: list[FactoryRow]) -> None:
    """Adds rows to factory.csv; a row of the same node or serial is replaced, every other one stays."""
    nodes, serials = {row.node for row in rows}, {row.serial for row in rows}
    kept = [row for row in _read(path) if row["node"] not in nodes and row["serial"] not in serials]
    _write(path, kept + [asdict(row) for row in rows])


def take_back(path: Path, serials: set[str]) -> None:
    """Removes the rows of these machines; the file goes with its last row."""
    kept = [row for row in _read(path) if row["serial"] not in serials]
    if kept:
        _write(path, kept)
    else:
        path.unlink(missing_ok=True)


def give_site_secrets(paths: LabPaths) -> str:
    """Makes the operator's SSH key pair and the image service's token. Returns: the public key, `ssh-ed25519 BASE64`.

    Raises: LabError when such secrets are there already and no lab made them: those of a real site are not overwritten.
    """
    paths.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths.secrets.chmod(0o700)
    foreign = [path for path in _site_secrets(paths) if path.exists()]
    if foreign and not paths.secrets_given.exists():
        raise LabError(
            f"{foreign[0]} exists and is not the lab's: it may open a real site",
            hint="set RACKRAY_HOME to another folder for the lab",
        )
    paths.secrets_given.touch(mode=0o600)
    write_private(paths.image_token, secrets.token_urlsafe(32) + "\n")
    public_key = make_ssh_key(paths.ssh_key, "rackray operator")
    paths.ssh_key.with_name(paths.ssh_key.name + ".pub").chmod(0o600)  # public, but everything in this folder is 0600
    return public_key


def take_site_secrets_back(paths: LabPaths) -> None:
    """Removes what `give_site_secrets` made, once the lab it opens is gone."""
    if paths.secrets_given.exists():
        for path in _site_secrets(paths):
            path.unlink(missing_ok=True)


def _site_secrets(paths: LabPaths) -> tuple[Path, ...]:
    return (paths.image_token, paths.ssh_key, paths.ssh_key.with_name(paths.ssh_key.name + ".pub"), paths.image_ca)


def write_private(path: Path, text: str) -> None:
    """Writes a file that no other user can read at any moment; it appears whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, buffer.getvalue())
