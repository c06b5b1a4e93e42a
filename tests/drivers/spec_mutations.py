"""The shipped specs with some bytes damaged, each read and checked within limits that the system enforces.

    python -m tests.drivers.spec_mutations SEED CASES FRONTIER_CASES

Prints one JSON object: how many were read, refused, and the slowest. Memory is limited by RLIMIT_AS, so that a case that wants
more ends in a MemoryError; time is this process's own processor time, which a busy machine does not stretch. A case that breaks a
limit, or ends in anything but a spec or a BadInput, ends the program with the seed and the case that replay it.
"""

import json
import random
import resource
import sys
import time
from pathlib import Path

from orchestrator.domain.errors import BadInput
from orchestrator.drivers.spec_reader import parse_spec
from orchestrator.planning.validation import check_spec

SPECS = Path(__file__).parents[2] / "cluster_specs"
FRONTIER = "frontier-100k.yaml"
MOST_S, MOST_BYTES = 2.0, 1 << 30
ALPHABET = [*b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFW[]{}():,.-_&*!|>%@'\"#~ \n\t", 0, 7, 0x80, 0xC3, 0xFF]


def damaged(data: bytes, dice: random.Random) -> bytes:
    """`data` with one to five places overwritten, filled, cut, repeated or swapped."""
    made = bytearray(data)
    for _ in range(dice.randint(1, 5)):
        at, size = dice.randrange(len(made) or 1), dice.randint(1, 6)
        new = bytes(dice.choice(ALPHABET) for _ in range(size))
        match dice.randrange(5):
            case 0:
                made[at : at + size] = new
            case 1:
                made[at:at] = new
            case 2:
                del made[at : at + size * dice.choice((1, 8, 40))]
            case 3:
                made[at:at] = made[max(0, at - 40 * size) : at]
            case _:
                lines = made.split(b"\n")
                one, other = dice.randrange(len(lines)), dice.randrange(len(lines))
                lines[one], lines[other] = lines[other], lines[one]
                made = bytearray(b"\n".join(lines))
    return bytes(made)


def main(seed: int, cases: int, frontier_cases: int) -> None:
    """Damage, read, measure."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    small = sorted(path for path in SPECS.glob("*.yaml") if path.name != FRONTIER)
    dice, files = random.Random(seed), {path: path.read_bytes() for path in [*small, SPECS / FRONTIER]}
    count, slowest_s = {"read": 0, "refused": 0}, {True: 0.0, False: 0.0}
    for case in range(cases + frontier_cases):
        path = small[case % len(small)] if case < cases else SPECS / FRONTIER
        data, name = damaged(files[path], dice), f"case {case} of seed {seed} ({path.name})"
        began_s = time.process_time()
        try:
            parse_spec(data, str(path), check_spec)
            count["read"] += 1
        except BadInput as error:
            count["refused"] += 1
            told = [str(problem) for problem in error.problems]
            if not told or any("\n" in line or not problem.hint for line, problem in zip(told, error.problems, strict=True)):
                raise SystemExit(f"{name}: {told}") from None
        except BaseException as error:
            raise SystemExit(f"{name} ended in {type(error).__name__}: {error}") from error
        spent_s = time.process_time() - began_s
        slowest_s[path.name == FRONTIER] = max(slowest_s[path.name == FRONTIER], spent_s)
        if spent_s > MOST_S:
            raise SystemExit(f"{name} took {spent_s:.1f} s of processor time, the limit is {MOST_S:.0f} s")
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**count, "slowest_s": slowest_s[False], "slowest_frontier_s": slowest_s[True], "peak_bytes": peak_bytes}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
