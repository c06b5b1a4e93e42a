"""Turns fresh namespaces into one lab node, then stays as its pid 1.

Run by `unshare --mount --pid --fork --uts --ipc` with the system's /usr/bin/python3; the standard library alone, because
it starts before anything of rackray is visible and must also run on the oldest python3 we support (3.10).

    node_init.py BOOT.json <PIPE        (BOOT.json: see `orchestrator.lab.namespaces.BootOrder`)

Standard output says `ready PID` (PID as the daemon sees it) once the node can be entered; errors go to standard error.

Standard input is a pipe whose other end only the lab daemon holds. Its end is the power cord: when the daemon ends, however
it ends, the read below returns, pid 1 exits, and the kernel kills every process of the node, detached ones too.
"""

import ctypes
import json
import os
import socket
import sys
import uuid
from typing import Any

# <sys/mount.h>
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
# <linux/mount.h>: mount_setattr has one number on every architecture; glibc wraps it only since 2.36.
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1

libc = ctypes.CDLL(None, use_errno=True)


class MountAttr(ctypes.Structure):
    """struct mount_attr of <linux/mount.h>."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def checked(result: int, what: str) -> None:
    """Raises OSError with `what` when a libc call has failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    options = None if data is None else data.encode()
    checked(libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), options), f"mount {source} on {target}")


def bind(source: str, target: str) -> None:
    """Shows `source` at `target`, with everything mounted below it."""
    mount(source, target, flags=MS_BIND | MS_REC)


def make_read_only(target: str) -> None:
    """Read-only with everything mounted below; keeps the other flags, which a user namespace may not clear."""
    attributes = MountAttr(attr_set=MOUNT_ATTR_RDONLY)
    result = libc.syscall(
        SYS_MOUNT_SETATTR,
        AT_FDCWD,
        os.fsencode(target),
        AT_RECURSIVE,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )
    checked(result, f"make {target} read-only")


def at(root: str, path: str) -> str:
    """`path` of the node while its root is still mounted at `root`."""
    return os.path.join(root, path.lstrip("/"))


def make_place(target: str, like: str) -> None:
    """An empty file or directory to mount on, of the same kind as `like`."""
    if os.path.isdir(like):
        os.makedirs(target, exist_ok=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if not os.path.lexists(target):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))


def lay_skeleton(root: str, disk: str) -> None:
    """The node's root: memory for what power-off forgets, the system's /usr, and the node's own disk."""
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for place in ("usr", "proc", "sys", "dev", "tmp", "run/sshd", "mnt", "media", "srv"):
        os.makedirs(at(root, place))
    for link in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink("/" + link):
            os.symlink(os.readlink("/" + link), at(root, link))
    bind("/usr", at(root, "usr"))
    make_read_only(at(root, "usr"))
    for part in ("etc", "opt", "home", "root", "var"):
        os.makedirs(at(root, part))
        bind(os.path.join(disk, part), at(root, part))
    bind(os.path.join(disk, "local"), at(root, "usr/local"))
    os.chmod(at(root, "tmp"), 0o1777)  # noqa: S103 - what /tmp is everywhere


def lay_devices(root: str) -> None:
    """/dev of the host with shared memory of the node's own."""
    bind("/dev", at(root, "dev"))
    mount("tmpfs", at(root, "dev/shm"), "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")


def lay_sysfs(root: str, identity: dict[str, str]) -> None:
    """/sys of the host, read-only, except /sys/class/dmi/id: that is this machine's own.

    sysfs takes no new directories, and a virtual machine may have no dmi class at all, so /sys/class is rebuilt: an empty
    tmpfs in which every other class is bound at its old place (relative links inside the classes stay right).
    """
    bind("/sys", at(root, "sys"))
    classes = at(root, "sys/class")
    mount("tmpfs", classes, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for name in os.listdir("/sys/class"):
        if name != "dmi" and os.path.isdir("/sys/class/" + name):
            os.mkdir(os.path.join(classes, name))
            bind("/sys/class/" + name, os.path.join(classes, name))
    board = os.path.join(classes, "dmi/id")
    os.makedirs(board)
    for name, value in identity.items():
        path = os.path.join(board, name)
        # As the kernel does it: serials and the UUID are for root alone.
        mode = 0o400 if name.endswith(("_serial", "_uuid")) else 0o444
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "w") as file:
            file.write(value + "\n")
    make_read_only(at(root, "sys"))


def lay_proc(root: str) -> None:
    """/proc of the node's own processes, a boot id of this boot, and kernel settings nobody can change.

    In root mode /proc/sys is the host's: a playbook's `sysctl` would change the machine the lab runs on.
    """
    mount("proc", at(root, "proc"), "proc", MS_NOSUID | MS_NODEV)
    boot_id = at(root, "run/boot_id")
    with open(boot_id, "w") as file:
        file.write(str(uuid.uuid4()) + "\n")
    settings = at(root, "proc/sys")
    mount(settings, settings, flags=MS_BIND)
    mount(boot_id, os.path.join(settings, "kernel/random/boot_id"), flags=MS_BIND)
    make_read_only(settings)


def lay_shares(root: str, order: dict[str, Any]) -> None:
    """Everything the lab shows to the node from outside: runtime, hardware state, shared storage, console."""
    for share in order["binds"]:
        target = at(root, share["target"])
        make_place(target, share["source"])
        # Not recursive: the project may hold the lab's directory, and so this very root.
        mount(share["source"], target, flags=MS_BIND)
        if share["read_only"]:
            make_read_only(target)
    for path in order["hidden"]:
        target = at(root, path)
        if os.path.isdir(target):
            mount("tmpfs", target, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "mode=755,size=4k")


def enter(root: str) -> None:
    """Makes `root` the node's root directory and lets go of the host's."""
    os.mkdir(at(root, "old"))
    os.chdir(root)
    checked(libc.pivot_root(b".", b"old"), "pivot_root")
    os.chdir("/")
    checked(libc.umount2(b"/old", MNT_DETACH), "umount the host's root")
    os.rmdir("/old")


def stay(command_prefix: list[str]) -> None:
    """Waits as pid 1 until the lab lets go of the pipe; the kernel reaps, because nobody asks for exit codes."""
    waiter = "import os, signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nos.read(0, 1)\nos._exit(0)\n"
    command = [*command_prefix, "/usr/bin/python3", "-I", "-S", "-c", waiter, "rackray-lab-node"]
    os.execvp(command[0], command)  # noqa: S606 - the daemon's own argument list, no shell


def main(order_path: str) -> None:
    """Builds the node that the boot order describes and becomes its pid 1."""
    with open(order_path) as file:
        order = json.load(file)
    # Our pid as the daemon knows it: /proc is still the host's, and a link in it speaks of its own namespace.
    host_pid = os.readlink("/proc/self")
    root = order["root"]
    mount(None, "/", flags=MS_REC | MS_PRIVATE)
    lay_skeleton(root, order["disk"])
    lay_devices(root)
    lay_sysfs(root, order["identity"])
    lay_proc(root)
    lay_shares(root, order)
    socket.sethostname(order["hostname"])
    enter(root)
    os.write(1, f"ready {host_pid}\n".encode())
    os.dup2(2, 1)  # closes our end of the daemon's pipe: what follows goes to the console log
    stay(order["command_prefix"])


if __name__ == "__main__":
    main(sys.argv[1])
