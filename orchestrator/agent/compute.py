"""A short compute check on every CUDA device, or on the CPU where there is none, which it says.

Run on the node as `python -m orchestrator.agent.compute --seconds S`. Prints one line, MARKER and a JSON object:
device ("cuda" | "cpu"), gflops (of the slowest device), repeatable (every matrix product gave the same bits on every try, and
every device the same bits as the first), seconds, devices: [{index, name, gflops, repeatable, dtype, rounds, error}].

Silent data corruption shows as a product that differs from itself: hardware is deterministic for one kernel, one shape and one
input (Dixit et al., "Silent Data Corruptions at Scale", 2021, arXiv 2102.11245).
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from typing import Any

MARKER = "rackray-compute:"
CUDA_SIZE = 8192
CPU_SIZE = 512
SEED = 20260101


@dataclass(frozen=True)
class DeviceResult:
    """What one device did."""

    index: int
    name: str
    dtype: str
    gflops: float
    repeatable: bool
    rounds: int
    """Products computed and compared."""
    error: str = ""
    """Why the device could not be used; empty if it could."""
    checksum: str = ""
    """Of the product, to compare equal devices with one another."""


def main(argv: list[str] | None = None) -> None:
    """Print the one line."""
    parser = argparse.ArgumentParser(description="short compute check of this node")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to compute on each device")
    print(MARKER + json.dumps(check(parser.parse_args(argv).seconds)))


def check(seconds: float) -> dict[str, Any]:
    """Facts of `Action.NODE_COMPUTE`, after about `seconds` on each device."""
    import torch  # heavy: seconds to import, so only where it is needed

    started_s = time.monotonic()
    if torch.cuda.is_available():
        device = "cuda"
        results = [_check_device(torch, f"cuda:{index}", index, seconds) for index in range(torch.cuda.device_count())]
    else:
        device = "cpu"
        results = [_check_device(torch, "cpu", 0, seconds)]
    alike: dict[str, set[str]] = {}
    for result in results:
        alike.setdefault(result.name, set()).add(result.checksum)
    return {
        "device": device,
        "gflops": round(min(result.gflops for result in results), 1),
        "repeatable": all(result.repeatable for result in results) and all(len(sums) == 1 for sums in alike.values()),
        "seconds": round(time.monotonic() - started_s, 3),
        "devices": [asdict(result) for result in results],
    }


def _check_device(torch: Any, device: str, index: int, seconds: float) -> DeviceResult:
    """Multiply the same two matrices for `seconds`, comparing every product with the first, bit by bit."""
    is_cuda = device != "cpu"
    dtype = torch.bfloat16 if is_cuda else torch.float32
    size = CUDA_SIZE if is_cuda else CPU_SIZE
    name = torch.cuda.get_device_name(index) if is_cuda else "cpu"
    try:
        # Drawn on the CPU, so that every device multiplies the same numbers.
        generator = torch.Generator().manual_seed(SEED)
        a_NN, b_NN = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
        first_NN = a_NN @ b_NN
        rounds, differing, busy_s = 0, 0, 0.0
        end_s = time.monotonic() + seconds
        while rounds == 0 or time.monotonic() < end_s:
            _settle(torch, device)
            before_s = time.perf_counter()
            product_NN = a_NN @ b_NN
            _settle(torch, device)
            busy_s += time.perf_counter() - before_s
            differing += not torch.equal(product_NN, first_NN)
            rounds += 1
        checksum = f"{first_NN.double().sum().item():.17g}"
    except RuntimeError as error:
        # A sick GPU fails here in many ways (ECC, lost, out of memory): the check reports it and goes on to the next.
        return DeviceResult(index, name, str(dtype), 0.0, False, 0, " ".join(str(error).split())[:300], f"failed-{index}")
    gflops = 2 * size**3 * rounds / busy_s / 1e9
    return DeviceResult(index, name, str(dtype), round(gflops, 1), differing == 0, rounds, "", checksum)


def _settle(torch: Any, device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
