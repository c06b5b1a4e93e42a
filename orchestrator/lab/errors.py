"""What can go wrong with the lab itself (never with a simulated machine: that is what the lab is for)."""

from orchestrator.domain.errors import RackrayError


class LabError(RackrayError):
    """The lab cannot do what was asked."""


class BadLabInput(LabError):
    """What was asked, or the spec, names what the lab does not have (a node, a fault, an address); nothing was changed."""

    exit_code = 2


class NamespacesRefused(LabError):
    """This system does not let us make the namespaces a lab node consists of; there is no second, weaker lab."""
