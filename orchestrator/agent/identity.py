"""Who this machine is. Sent over SSH and run as `python3 -` by the system's interpreter: standard library only, Python 3.6 on.

Prints one line that starts with MARKER (whatever the login shell printed before is noise) and goes on with a JSON object:
serial, serial_source ("dmi" | "image" | null), boot_id, image_digest, image, hostname, kernel, python, uptime_s,
clock_s (what it takes the time to be, in seconds since the epoch).
"""

import json
import os
import platform
import socket
import subprocess
import time

MARKER = "rackray-identity:"
DMI_SERIAL = "/sys/class/dmi/id/product_serial"
IMAGE_FILE = "/etc/rackray-image.json"
BLANK_SERIALS = ("", "0", "none", "not specified", "system serial number", "to be filled by o.e.m.", "default string")
"""What boards say whose maker never set a serial."""


def main() -> None:
    """Print the one line."""
    image = read_image(IMAGE_FILE)
    serial, source = read_serial(image)
    facts = {
        "serial": serial,
        "serial_source": source,
        "boot_id": read_text("/proc/sys/kernel/random/boot_id"),
        "image": image.get("image"),
        "image_digest": image.get("digest"),
        "hostname": socket.gethostname(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "uptime_s": read_uptime_s(),
        "clock_s": time.time(),
    }
    print(MARKER + json.dumps(facts))


def read_serial(image: dict) -> tuple:
    """The serial and where it comes from: the board's DMI table, which only root may read, or the image's own record.

    The image's record is used only where the kernel shows no DMI table at all: where there is one, it is the truth.
    """
    if os.path.exists(DMI_SERIAL):
        serial = read_text(DMI_SERIAL) if os.access(DMI_SERIAL, os.R_OK) else read_as_root(DMI_SERIAL)
        return (None, None) if serial is None or serial.lower() in BLANK_SERIALS else (serial, "dmi")
    recorded = image.get("serial")
    return (recorded, "image") if recorded else (None, None)


def read_as_root(path: str) -> "str | None":
    """The file through sudo without a password; None where that is not allowed."""
    try:
        # "sudo" by name: it lies in /usr/bin on most systems, in /usr/local/bin on some.
        done = subprocess.run(  # noqa: S603 - fixed words and a constant path
            ["sudo", "-n", "cat", path],  # noqa: S607 - see above
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def read_image(path: str) -> dict:
    """What the image step wrote about itself; empty if there is nothing or nonsense."""
    text = read_text(path)
    if text is None:
        return {}
    try:
        image = json.loads(text)
    except ValueError:
        return {}
    return image if isinstance(image, dict) else {}


def read_text(path: str) -> "str | None":
    """The file's text, stripped; None if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def read_uptime_s() -> "float | None":
    """Seconds since boot."""
    text = read_text("/proc/uptime")
    return float(text.split()[0]) if text else None


if __name__ == "__main__":
    main()
