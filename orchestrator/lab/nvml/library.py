"""Compiles the lab's libnvidia-ml.so.1 with the system's C compiler against NVIDIA's own nvml.h."""

import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from orchestrator.lab.errors import LabError

SOURCES = Path(__file__).parent
SONAME = "libnvidia-ml.so.1"
COMPILE_LIMIT_S = 120.0


def find_header() -> Path:
    """The folder that holds nvml.h, from the nvidia-nvml-dev wheel of this environment.

    Raises: LabError when the wheel is not installed.
    """
    packages = Path(sysconfig.get_path("purelib"))
    found = sorted(packages.glob("nvidia/*/include/nvml.h"))
    if not found:
        raise LabError(
            f"nvml.h is not in {packages}/nvidia/*/include: the lab's NVML library cannot be compiled",
            hint="install the lab's dependency: pip install nvidia-nvml-dev",
        )
    return found[-1].parent


def find_compiler() -> str:
    """The path of the system's C compiler. Raises: LabError when there is none."""
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise LabError("no C compiler (cc, gcc, clang) is in PATH to compile the lab's NVML library with", hint="apt install gcc")


def compile_library(target: Path, without: Sequence[str] = ()) -> None:
    """Compiles the stub to `target`; takes about 0.2 s. Functions in `without` are left out, as in an older driver.

    Raises: LabError with the compiler's own words when it fails.
    """
    draft = target.with_suffix(".draft")
    command = [
        find_compiler(),
        *("-shared", "-fPIC", "-O1", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
        *(f"-D{name}=absent_{name}" for name in without),
        "-Wno-deprecated-declarations",  # pynvml still asks the functions that nvml.h calls deprecated
        f"-I{find_header()}",
        f"-Wl,-soname,{SONAME}",
        # Same bytes at every compilation: they are part of the image, whose digest nodes are compared by.
        "-Wl,--build-id=none",
        *("-o", str(draft)),
        *(str(source) for source in sorted(SOURCES.glob("*.c"))),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_LIMIT_S)  # noqa: S603 - our own sources
    if done.returncode != 0:
        raise LabError(f"the lab's NVML library does not compile: {done.stderr.strip()[-800:]}")
    draft.replace(target)
