"""The secrets folder: nothing that others can read is used, and a BMC password is durable before anybody hears it."""

import os
import threading
from pathlib import Path

import pytest

from orchestrator.domain.errors import BadInput, SecretMissing
from orchestrator.drivers.secrets import BMC_PASSWORD_LENGTH, SecretStore

HEADER = "node,serial,username,password,bmc_certificate_sha256\n"
PIN = "AB:" * 31 + "AB"


@pytest.fixture
def store(tmp_path: Path) -> SecretStore:
    (tmp_path / "secrets").mkdir(mode=0o700)
    return SecretStore(tmp_path, environment={})


def write(store_home: Path, name: str, text: str, mode: int = 0o600) -> Path:
    path = store_home / "secrets" / name
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_password_is_made_once_and_stays(store: SecretStore, tmp_path: Path) -> None:
    with pytest.raises(SecretMissing):
        store.bmc_password("n1")
    assert not store.has_bmc_password("n1")
    first = store.bmc_password("n1", create=True)
    assert first == store.bmc_password("n1", create=True) == SecretStore(tmp_path, environment={}).bmc_password("n1")
    text = first.reveal()
    assert len(text) == BMC_PASSWORD_LENGTH and text[0].isalpha()
    assert any(c.isupper() for c in text) and any(c.islower() for c in text) and any(c.isdigit() for c in text)
    path = tmp_path / "secrets" / "bmc" / "n1"
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["n1"]


def test_many_at_once_agree_on_one_password(store: SecretStore) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(store.bmc_password("n1", create=True).reveal())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len(set(made)) == 1


def test_the_password_and_its_folder_are_synced_before_it_is_handed_out(
    store: SecretStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store.bmc_password("n1", create=True)
    folder = str(tmp_path / "secrets" / "bmc")
    assert any(path.startswith(folder + "/.n1.") for path in synced) and synced[-1] == folder


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused_with_the_command_that_mends_it(
    store: SecretStore, tmp_path: Path, mode: int
) -> None:
    path = write(tmp_path, "image_token", "s3cret-token\n", mode)
    with pytest.raises(SecretMissing, match=f"mode {mode:04o}") as missing:
        store.read("image_token")
    assert missing.value.hint == f"chmod 600 {path}"


def test_links_folders_pipes_and_empty_files_are_refused(store: SecretStore, tmp_path: Path) -> None:
    (tmp_path / "secrets" / "link").symlink_to(write(tmp_path, "real", "value-1"))
    (tmp_path / "secrets" / "folder").mkdir()
    os.mkfifo(tmp_path / "secrets" / "pipe", 0o600)
    write(tmp_path, "empty", "\n")
    for name, words in {"link": "symbolic link", "folder": "plain file", "pipe": "plain file", "empty": "is empty"}.items():
        with pytest.raises(SecretMissing, match=words):
            store.read(name)


def test_a_folder_that_others_can_enter_is_refused(store: SecretStore, tmp_path: Path) -> None:
    write(tmp_path, "image_token", "s3cret-token")
    (tmp_path / "secrets").chmod(0o755)
    with pytest.raises(SecretMissing, match="open to others"):
        store.read("image_token")


@pytest.mark.parametrize("name", ["../image_token", "/etc/shadow", "", "a/b", ".hidden"])
def test_names_cannot_leave_the_folder(store: SecretStore, name: str) -> None:
    with pytest.raises(SecretMissing, match="no name"):
        store.read(name)
    with pytest.raises(SecretMissing, match="no name"):
        store.bmc_password(name, create=True)


def test_the_delivery_is_read_by_node(store: SecretStore, tmp_path: Path) -> None:
    write(tmp_path, "factory.csv", HEADER + f"n1,SER1,root, pass word ,{PIN}\nn2,SER2,admin,pw-of-n2,\n")
    user, password = store.factory_login("n1")
    # Blanks may belong to a password.
    assert (user, password.reveal()) == ("root", " pass word ")
    assert store.factory_certificate("n1") == "ab" * 32 and store.factory_certificate("n2") is None
    assert store.factory_serial("n2") == "SER2" and store.factory_serial("n3") is None
    assert store.has_factory_login("n1") and not store.has_factory_login("n3")
    with pytest.raises(SecretMissing, match="n3 has no row"):
        store.factory_login("n3")


def test_a_delivery_that_grows_is_read_again_and_may_lie_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "delivery.csv"
    path.write_text(HEADER)
    path.chmod(0o600)
    store = SecretStore(tmp_path, environment={"RACKRAY_FACTORY_CSV": str(path)})
    assert not store.has_factory_login("n1")
    path.write_text(HEADER + "n1,SER1,root,pw-of-n1,\n")
    assert store.has_factory_login("n1")


def test_every_fault_of_a_delivery_is_told_with_its_line_and_no_password(store: SecretStore, tmp_path: Path) -> None:
    write(tmp_path, "factory.csv", HEADER + "n1,SER1,root,Canary-1,xyz\nn1,SER2,root,Canary-2,\n,SER3,root,,\n")
    with pytest.raises(BadInput) as bad:
        store.has_factory_login("n1")
    said = str(bad.value)
    assert [problem.line for problem in bad.value.problems] == [2, 3, 4, 4]
    assert "second row for n1" in said and "no SHA-256" in said and "Canary" not in said
    write(tmp_path, "factory.csv", "node,password\nn1,Canary-1\n")
    with pytest.raises(BadInput, match="no column serial, username"):
        store.has_factory_login("n1")


def test_what_was_handed_out_is_taken_out_of_text(store: SecretStore, tmp_path: Path) -> None:
    write(tmp_path, "image_token", "s3cret-token")
    token = store.read("image_token")
    assert store.redact(f"Bearer {token.reveal()} refused") == "Bearer *** refused"
