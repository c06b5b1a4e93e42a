"""Which rank this process is: the environment that torchrun sets, or that anyone sets by hand.  Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from model.contract import ContractError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnvironment:
    """The five variables of torch's static rendezvous (docs.pytorch.org/docs/stable/elastic/run.html)."""

    rank: int
    world_size: int
    local_rank: int
    """Index of this rank's GPU on its machine; 0 where one rank runs per machine."""
    master_address: str
    master_port: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """With none of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set: one rank by itself, on a free port.

        Raises ContractError naming every variable that is missing or unusable.
        """
        given = {name: environment[name].strip() for name in _NAMES if name in environment}
        if not given.keys() - {"LOCAL_RANK"}:
            return cls(rank=0, world_size=1, local_rank=0, master_address="127.0.0.1", master_port=0)
        problems = [f"{name} is not set, though others of {', '.join(_NAMES)} are" for name in _NAMES if name not in given]
        numbers: dict[str, int] = {}
        for name in given.keys() - {"MASTER_ADDR"}:
            if given[name].isdecimal():
                numbers[name] = int(given[name])
            else:
                problems.append(f"{name} is {given[name]!r}; it must be a whole number of at least 0")
        if {"RANK", "WORLD_SIZE"} <= numbers.keys() and numbers["RANK"] >= numbers["WORLD_SIZE"]:
            problems.append(f"RANK is {numbers['RANK']} with WORLD_SIZE {numbers['WORLD_SIZE']}; ranks count from 0")
        if numbers.get("MASTER_PORT", 0) > 65_535:
            problems.append(f"MASTER_PORT is {numbers['MASTER_PORT']}; the highest port is 65535")
        if problems:
            raise ContractError(tuple(sorted(problems)))
        return cls(
            rank=numbers["RANK"],
            world_size=numbers["WORLD_SIZE"],
            local_rank=numbers["LOCAL_RANK"],
            master_address=given["MASTER_ADDR"],
            master_port=numbers["MASTER_PORT"],
        )

    def as_environment(self) -> dict[str, str]:
        """The variables as torch and DeepSpeed read them."""
        values = (self.rank, self.world_size, self.local_rank, self.master_address, self.master_port)
        return dict(zip(_NAMES, map(str, values), strict=True))
