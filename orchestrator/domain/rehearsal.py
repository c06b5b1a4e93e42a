"""What may go wrong in a rehearsal, and how long things take there: the profile that `rackray rehearse --faults` reads.

Shares are chances per node, drawn once for each; everything is drawn from the seed, so that one seed is one history.
"""

from typing import Annotated

from pydantic import Field

from orchestrator.domain.spec_words import Name, Strict

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class StageTimes(Strict):
    """How long a node takes, in seconds. Replace them by what your own machines were seen to take."""

    self_test_s: Seconds = 240.0
    """Power-on to the hand-over to the operating system or the network."""
    image_s: Seconds = 180.0
    """Laying the image down and reporting it."""
    system_boot_s: Seconds = 60.0
    """From the hand-over until SSH answers."""
    playbook_s: Seconds = 240.0
    """The bring-up playbook."""
    update_s: Seconds = 300.0
    """Writing one firmware component."""
    compute_s: Seconds = 30.0
    """The compute check."""
    join_s: Seconds = 10.0
    """Joining the cell."""
    exchange_s: Seconds = 0.5
    """Any other exchange with a BMC, the image service or a node."""
    no_answer_s: Seconds = 10.0
    """How long it takes to find out that nobody answers."""
    spread: Annotated[float, Field(ge=0, le=0.9)] = 0.2
    """Each node has a pace of its own, this share faster or slower at most."""
    slow_share: Share = 0.0
    """Share of nodes in the slow tail."""
    slow_factor: Annotated[float, Field(ge=1, le=1000)] = 3.0
    """How many times longer the slow ones take."""


class FeedLoss(Strict):
    """A power feed goes dark."""

    feed: Name
    """Which one."""
    at_s: Seconds
    """When, in seconds after the beginning."""
    for_s: Seconds = 300.0
    """How long; afterwards its machines are off and their BMCs answer again."""


class FaultProfile(Strict):
    """What goes wrong in a rehearsal. Left out: nothing does."""

    times: StageTimes = StageTimes()
    """How long things take."""
    wrong_serial: Share = 0.0
    """Share of BMCs behind which another machine answers (swapped cables)."""
    dead_bmc: Share = 0.0
    """Share of BMCs that never answer."""
    flaky_bmc: Share = 0.0
    """Share of BMCs that do not answer one exchange in four."""
    dead_racks: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Racks of which no BMC ever answers."""
    stale_firmware: Share = 0.0
    """Share of nodes with one component below the baseline; only components that have an image."""
    failed_flash: Share = 0.0
    """Share of nodes on which every firmware update fails half-way."""
    sick_gpu: Share = 0.0
    """Share of nodes with a GPU that fails its check."""
    ignored_reset: Share = 0.0
    """Share of nodes whose BMC accepts power commands and does nothing."""
    rebooting_bmc: Share = 0.0
    """Share of BMCs that are away for two minutes after each firmware update."""
    flapping_bmc: Share = 0.0
    """Share of BMCs that come and go for minutes after each firmware update."""
    stale_power: Share = 0.0
    """Share of BMCs that tell a power state eight seconds old."""
    pending_reset: Share = 0.0
    """Share of nodes whose firmware updates take effect only when the host is reset."""
    twin_gpus: Share = 0.0
    """Share of nodes that report the GPUs of another node as theirs."""
    lost_answer: Share = 0.0
    """Share of exchanges that are carried out and whose answer never comes."""
    feed_losses: Annotated[tuple[FeedLoss, ...], Field(strict=False)] = ()
    """Feeds that go dark while it runs."""
