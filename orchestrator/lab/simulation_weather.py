"""What a simulated site meets: each node's pace, and which faults strike where. Everything follows from the seed.

A node's draws depend on the seed and its name alone: neither the order of submission nor other nodes change them.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.domain.operation import MUTATING, Action, Operation
from orchestrator.domain.rehearsal import FaultProfile, StageTimes
from orchestrator.domain.spec import ClusterSpec, Machine

FLAKY_SILENCE = 0.25
"""Chance that a flaky BMC does not answer one exchange."""
STALE_VERSION = "0.0.1"
BMC_RESTART_S, BMC_FLAP_S, STALE_POWER_S = 120.0, 20.0, 8.0
"""How long a BMC is away after an update, one period of its flapping, and how old the power state is that it tells."""
BY_BMC = frozenset(action for action in Action if action.startswith("bmc."))


@dataclass(frozen=True, slots=True)
class Fate:
    """What one node will be like."""

    pace: float
    """How many times the profile's times it takes."""
    is_dead: bool
    is_flaky: bool
    faults: Mapping[str, Mapping[str, str | int | float]]
    """Faults of its machine, by the names `rackray lab fault` uses, with their arguments."""
    sick_gpu: bool
    gpus_of: str = ""
    """Serial of the node whose GPUs it reports as its own; empty where they are its own."""


class Weather:
    """The profile, applied to one spec under one seed."""

    def __init__(self, profile: FaultProfile, spec: ClusterSpec, seed: int) -> None:
        """Raises KeyError when a feed loss names a feed that the spec does not have."""
        self.profile, self.times, self._seed = profile, profile.times, seed
        for loss in profile.feed_losses:
            spec.feeds[loss.feed]
        racks = sorted(spec.racks)
        self._dead_racks = frozenset(self._dice("racks").sample(racks, min(profile.dead_racks, len(racks))))

    def fate(self, spec: ClusterSpec, node: Machine) -> Fate:
        """What `node` will be like."""
        dice, profile, times = self._dice(node.name), self.profile, self.times
        pace = dice.uniform(1 - times.spread, 1 + times.spread)
        pace *= times.slow_factor if dice.random() < times.slow_share else 1.0
        faults: dict[str, Mapping[str, str | int | float]] = {}
        if dice.random() < profile.wrong_serial:
            faults["wrong_serial"] = {"serial": f"X{node.serial}"}
        parts = sorted(key for key, part in spec.firmware.get(node.sku, {}).items() if part.image)
        stale, failing = dice.random() < profile.stale_firmware, dice.random() < profile.failed_flash
        if parts and (stale or failing):
            faults["stale_firmware"] = {"part": dice.choice(parts), "version": STALE_VERSION}
        if failing:
            faults["update_fails"] = {"percent": 40}
        if dice.random() < profile.ignored_reset:
            faults["reset_ignored"] = {}
        dead = dice.random() < profile.dead_bmc or node.rack in self._dead_racks
        flaky, sick_gpu = dice.random() < profile.flaky_bmc, dice.random() < profile.sick_gpu
        # Drawn last, so that older profiles keep their histories.
        for share, fault, arguments in (
            (profile.rebooting_bmc, "bmc_restarts_after_update", {"seconds": BMC_RESTART_S}),
            (profile.flapping_bmc, "bmc_flaps_after_update", {"period_s": BMC_FLAP_S, "seconds": 10 * BMC_FLAP_S}),
            (profile.stale_power, "power_state_stale", {"seconds": STALE_POWER_S}),
            (profile.pending_reset, "update_needs_reset", {}),
        ):
            if dice.random() < share:
                faults[fault] = arguments
        gpus_of = dice.choice(spec.nodes).serial if dice.random() < profile.twin_gpus else ""
        return Fate(pace, dead, flaky, faults, sick_gpu, gpus_of)

    def duration_s(self, fate: Fate, action: Action) -> float:
        """How long this node takes for one exchange."""
        return duration_s(self.times, action) * fate.pace

    def chain_s(self, fate: Fate, actions: Sequence[tuple[Action, str]]) -> float:
        """The shortest time this node can take for `actions` (each with its reset kind or ""), one after the other."""
        total_s = sum(self.duration_s(fate, action) for action, _ in actions)
        total_s += sum(fate.pace * self.times.update_s for action, _ in actions if action is Action.BMC_UPDATE)
        boots = sum(1 for action, reset in actions if action is Action.BMC_POWER and reset == "On")
        images = sum(1 for action, _ in actions if action is Action.BMC_BOOT_ONCE)
        return total_s + fate.pace * (boots * (self.times.self_test_s + self.times.system_boot_s) + images * self.times.image_s)

    def is_silent(self, fate: Fate, operation: Operation, dice: random.Random) -> bool:
        """Whether the BMC does not answer this exchange: nothing is sent."""
        if operation.action not in BY_BMC:
            return False
        return fate.is_dead or (fate.is_flaky and dice.random() < FLAKY_SILENCE)

    def loses(self, operation: Operation, dice: random.Random) -> bool:
        """Whether this exchange is carried out and its answer lost; of reading ones that is no different from silence."""
        return operation.action in MUTATING and dice.random() < self.profile.lost_answer

    def _dice(self, name: str) -> random.Random:
        return random.Random(f"{self._seed}/{name}")  # noqa: S311 - a simulation has to be repeatable, not secret


def duration_s(times: StageTimes, action: Action) -> float:
    """How long an exchange of this kind takes at the profile's pace, in seconds."""
    long = {Action.PLAYBOOK: times.playbook_s, Action.NODE_COMPUTE: times.compute_s, Action.CELL_JOIN: times.join_s}
    return long.get(action, times.exchange_s)


def usual_profile(spec: ClusterSpec) -> FaultProfile:
    """Nothing goes wrong; machines of a spec with a `lab:` section are as quick as the lab's on the wire."""
    if spec.lab is None:
        return FaultProfile()
    quick = StageTimes(self_test_s=spec.lab.boot_s, image_s=2, system_boot_s=1, playbook_s=20, compute_s=5, join_s=8)
    return FaultProfile(times=quick.model_copy(update={"update_s": spec.lab.update_s}))
