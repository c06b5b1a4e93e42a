"""The operating system image of the lab: made once, laid on a node's disk by the network boot.

The image is a directory: a copy of this machine's /etc without its secrets, the login user, sshd's settings, a sudo, and the
NVML library in /usr/local/lib. Its digest is the SHA-256 of its manifest: one line per file with kind, mode, owner, path and
the SHA-256 of the content. Laying it means: delete the disk, copy, hash again what lies on the disk, then write what is this
node's alone (hostname, machine id, SSH host key), and last of all the stamp. A disk without a stamp does not boot.
"""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.lab.errors import LabError
from orchestrator.lab.namespaces import AS_ROOT, NODE_ENVIRONMENT
from orchestrator.lab.nvml.library import SONAME, compile_library
from orchestrator.lab.plan import NodePaths, NodePlan

FILES = Path(__file__).parent / "files"
STAMP = "etc/rackray-image.json"
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
USER_UID = 20001 if AS_ROOT else os.getuid()
COMMAND_LIMIT_S = 60.0

# What an image must not take from the machine it is made on: its passwords, its keys, its names, its place in a network.
_NOT_COPIED = {
    "passwd", "passwd-", "group", "group-", "shadow", "shadow-", "gshadow", "gshadow-", "hostname", "hosts", "machine-id",
    "ssh", "sudoers", "sudoers.d", "subuid", "subuid-", "subgid", "subgid-", "ld.so.cache", "resolv.conf", "mtab",
    "docker", "kubernetes", "rancher", "NetworkManager", "wireguard", "letsencrypt", "krb5.keytab", ".git", ".pwd.lock",
}  # fmt: skip
_NOT_COPIED_BELOW = {"ssl/private"}
_PAM_OPEN = "auth sufficient pam_permit.so\naccount sufficient pam_permit.so\nsession sufficient pam_permit.so\n"


@dataclass(frozen=True, slots=True)
class Image:
    """An image as the image service publishes it."""

    name: str
    digest: str
    """`sha256:` and 64 hex digits."""
    directory: Path


@dataclass(frozen=True, slots=True)
class LaidImage:
    """What the network boot reports about one node."""

    image: str
    digest: str
    ssh_host_key: str
    """`ssh-ed25519 BASE64`, as in a known_hosts line."""
    installed_at: str
    """UTC, ISO 8601."""


def build_image(name: str, directory: Path, user: str, operator_public_key: str) -> Image:
    """Makes the image, from scratch, and hashes it. Takes about 0.5 s.

    Raises: LabError when something it needs is not on this machine.
    """
    draft = directory.with_name(directory.name + ".draft")
    remove_tree(draft)
    remove_tree(directory)
    for part in ("opt", "home", "root", "local/bin", "local/lib", "local/sbin", "var"):
        (draft / part).mkdir(parents=True)
    shutil.copytree("/etc", draft / "etc", symlinks=True, ignore=_ignored, copy_function=_copy_if_readable)
    _write_accounts(draft, user)
    _write_ssh(draft, user, operator_public_key)
    _write_sudo(draft)
    _write_var(draft)
    library = draft / "local/lib" / f"{SONAME}.lab"
    compile_library(library)
    (draft / "local/lib" / SONAME).symlink_to(library.name)
    _copy_local_python_library(draft / "local/lib")
    _index_libraries(draft)
    draft.replace(directory)
    return Image(name=name, digest=digest_of(directory), directory=directory)


def lay_image(image: Image, plan: NodePlan, paths: NodePaths, installed_at: str) -> LaidImage:
    """Replaces a node's disk by the image: what was on it is gone, SSH host key included. Takes about 0.3 s.

    Raises: LabError when the disk does not hold what the image holds after the copy.
    """
    remove_tree(paths.disk)
    _run(["cp", "-a", "--reflink=auto", str(image.directory), str(paths.disk)], "copy the image")
    laid = digest_of(paths.disk)
    if laid != image.digest:
        raise LabError(
            f"{plan.name}: the disk holds {laid} after the image {image.name} {image.digest} was copied",
            hint="look for a full or failing disk on this machine",
        )
    etc = paths.disk / "etc"
    (etc / "hostname").write_text(plan.name + "\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{plan.ssh_address} {plan.name}\n")
    (etc / "machine-id").write_text(hashlib.sha256(f"{plan.serial} {installed_at}".encode()).hexdigest()[:32] + "\n")
    key = make_ssh_key(paths.disk / HOST_KEY, f"root@{plan.name}")
    stamp = {"image": image.name, "digest": image.digest, "installed_at": installed_at, "serial": plan.serial}
    draft = paths.disk / (STAMP + ".draft")
    draft.write_text(json.dumps(stamp) + "\n")
    draft.replace(paths.disk / STAMP)
    return LaidImage(image=image.name, digest=laid, ssh_host_key=key, installed_at=installed_at)


def has_image(paths: NodePaths) -> bool:
    """Whether there is an operating system on the disk; an image half laid when the power went is none."""
    return (paths.disk / STAMP).exists()


def make_ssh_key(path: Path, comment: str) -> str:
    """A new ed25519 key pair at `path` (0600) and `path`.pub, by OpenSSH itself. Returns: `ssh-ed25519 BASE64`."""
    public = path.with_name(path.name + ".pub")
    path.unlink(missing_ok=True)
    public.unlink(missing_ok=True)
    _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)], "make an SSH key")
    return " ".join(public.read_text().split()[:2])


def digest_of(tree: Path) -> str:
    """SHA-256 over the manifest of a directory."""
    manifest = hashlib.sha256()
    for line in _manifest(tree, ""):
        manifest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return f"sha256:{manifest.hexdigest()}"


def remove_tree(tree: Path) -> None:
    """Deletes a directory, if it is there, also where its own modes forbid it."""

    def with_permission(function: object, path: str, _: object) -> None:
        Path(path).parent.chmod(0o700)
        Path(path).chmod(0o700, follow_symlinks=True)
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()

    if tree.exists():
        shutil.rmtree(tree, onerror=with_permission)


def _manifest(tree: Path, below: str) -> Iterator[str]:
    for entry in sorted(os.scandir(tree / below), key=lambda entry: entry.name):
        path = f"{below}/{entry.name}" if below else entry.name
        about = entry.stat(follow_symlinks=False)
        start = f"{stat.filemode(about.st_mode)} {about.st_uid}:{about.st_gid} {path}"
        if entry.is_symlink():
            yield f"{start} -> {os.readlink(entry.path)}"
        elif entry.is_dir():
            yield start
            yield from _manifest(tree, path)
        else:
            yield f"{start} {hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()}"


def _ignored(directory: str, names: list[str]) -> set[str]:
    inside = Path(directory).relative_to("/etc")
    if inside == Path("."):
        return _NOT_COPIED & set(names)
    # Sockets and the like cannot be copied; what this user cannot list, it cannot copy either.
    strange = {name for name in names if not _is_copied(Path(directory) / name)}
    return strange | {name for name in names if str(inside / name) in _NOT_COPIED_BELOW}


def _is_copied(path: Path) -> bool:
    kind = path.lstat().st_mode
    if stat.S_ISDIR(kind):
        return os.access(path, os.R_OK | os.X_OK)
    return stat.S_ISREG(kind) or stat.S_ISLNK(kind)


def _copy_if_readable(source: str, target: str) -> None:
    if os.access(source, os.R_OK):
        shutil.copy2(source, target, follow_symlinks=False)


def _write_accounts(image: Path, user: str) -> None:
    """The accounts of this machine plus the login user, who has no password; nobody has."""
    etc = image / "etc"
    passwd = [line for line in _lines("/etc/passwd") if line.split(":")[0] != user and line.split(":")[2] != str(USER_UID)]
    if not any(line.startswith("sshd:") for line in passwd):
        passwd.append("sshd:x:20000:65534::/run/sshd:/usr/sbin/nologin")  # sshd's privilege separation asks for it
    passwd.append(f"{user}:x:{USER_UID}:{USER_UID}::/home/{user}:/bin/sh")
    # Without group tty sshd gives a terminal to the user's own group; in a user namespace of one user it could not give it away.
    groups = [line for line in _lines("/etc/group") if line.split(":")[0] not in (user, "tty")]
    groups = [line for line in groups if line.split(":")[2] != str(USER_UID)] + [f"{user}:x:{USER_UID}:"]
    _write(etc / "passwd", "\n".join(passwd) + "\n")
    _write(etc / "group", "\n".join(groups) + "\n")
    _write(etc / "shadow", "".join(f"{line.split(':')[0]}:*:19000:0:99999:7:::\n" for line in passwd), 0o600)
    (etc / "pam.d").mkdir(exist_ok=True)
    _write(etc / "pam.d/su", _PAM_OPEN)
    home = image / "home" / user
    home.mkdir(mode=0o755)
    _own(home)
    # 0711: the base interpreter may be mounted below it (pyenv keeps it in /root), and the login user must reach it there.
    (image / "root").chmod(0o711)


def _write_ssh(image: Path, user: str, operator_public_key: str) -> None:
    keys = image / "etc/ssh/authorized_keys.d"
    keys.mkdir(parents=True)
    _write(keys / user, f"{operator_public_key} rackray operator\n")
    shutil.copyfile(FILES / "sshd.conf", image / "etc/ssh/sshd_config")


def _write_sudo(image: Path) -> None:
    sudo = image / "local/bin/sudo"
    shutil.copyfile(FILES / ("sudo_root.sh" if AS_ROOT else "sudo_user.sh"), sudo)
    sudo.chmod(0o755)


def _write_var(image: Path) -> None:
    for name in ("cache", "lib", "local", "log", "mail", "opt", "spool", "tmp"):
        (image / "var" / name).mkdir()
    (image / "var/tmp").chmod(0o1777)
    (image / "var/run").symlink_to("/run")
    (image / "var/lock").symlink_to("/run/lock")


def _copy_local_python_library(libraries: Path) -> None:
    """An interpreter under /usr/local needs its libpython there, and the node's /usr/local is its own."""
    if sys.base_prefix == "/usr/local":
        for library in Path(sysconfig.get_config_var("LIBDIR")).glob("libpython3*.so*"):
            shutil.copy2(library, libraries / library.name)


def _index_libraries(image: Path) -> None:
    """Writes the image's ld.so.cache, so that its own /usr/local/lib is found without any environment variable.

    ldconfig(8) looks at absolute paths, so it runs in a mount namespace where /usr/local is the image's; /var/cache is
    covered because ldconfig keeps notes there, and this machine's are not ours to change.
    """
    script = (
        'mount --bind "$1/local" /usr/local && mount -t tmpfs tmpfs /var/cache && mkdir /var/cache/ldconfig && '
        'exec /sbin/ldconfig -X -C "$1/etc/ld.so.cache"'
    )
    user = [] if AS_ROOT else ["--user", "--map-root-user"]
    _run(["unshare", *user, "--mount", "/bin/sh", "-c", script, "sh", str(image)], "index the image's libraries")


def _run(command: list[str], purpose: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed words and the lab's own paths
            command, capture_output=True, text=True, env=NODE_ENVIRONMENT, timeout=COMMAND_LIMIT_S
        )
    except FileNotFoundError:
        raise LabError(f"cannot {purpose}: {command[0]} is not installed") from None
    if done.returncode != 0:
        raise LabError(f"cannot {purpose}: {done.stderr.strip() or f'exit status {done.returncode}'}")


def _lines(path: str) -> list[str]:
    return [line for line in Path(path).read_text().splitlines() if line.count(":") >= 3]


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.write_text(text)
    path.chmod(mode)


def _own(path: Path) -> None:
    if AS_ROOT:
        os.chown(path, USER_UID, USER_UID)
