"""Ways to break a BMC of the lab: its own faults, and what others do to it behind our back."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from orchestrator.domain.operation import Action, Status
from tests.wire.faults import Inject, Met
from tests.wire.neighbours import Wire

SYSTEMS, SESSIONS = "/redfish/v1/Systems", "/redfish/v1/SessionService/Sessions"
IMAGE = "https://127.3.0.1:8480/firmware/nic1-28.39.1002.bin"
OBSERVE, POWER, FIRMWARE, TASK = Action.BMC_OBSERVE, Action.BMC_POWER, Action.BMC_FIRMWARE, Action.BMC_TASK
NIC = {"component": "NIC1", "image_uri": IMAGE, "version": "28.39.1002"}
ON = {"reset": "On"}
SILENT_S = 1.5
"""Deadline of exchanges that nothing but their deadline ends."""
UPDATED = {
    Action.BMC_UPDATE: {**NIC, "task": "/redfish/v1/TaskService/Tasks/1"},
    TASK: {"state": "Completed", "messages": ["done"]},
}
"""The record of a node whose update has just ended."""


def lab(fault: str, args: Mapping[str, Any] | None = None, *, heal: bool = True, **arguments: object) -> Inject:
    """A fault of the lab, planted in a BMC that we are logged in to."""

    def inject(wire: Wire) -> Iterator[Met]:
        node, target = wire.credentialed()
        wire.break_bmc(node, fault, **arguments)
        yield Met(node, target, args or {})
        if heal:
            wire.heal_bmc(node, fault)

    return inject


def http(status: int, path: str = SYSTEMS, args: Mapping[str, Any] | None = None, **arguments: object) -> Inject:
    """An HTTP status below a path."""
    return lab("http_error", args, status=status, path_prefix=path, **arguments)


def password_changed_by_others(wire: Wire) -> Iterator[Met]:
    """Somebody gives our account another password: the session ends, and the login with it."""
    node, target = wire.credentialed()
    machine = wire.bmcs.machines[node]
    ours = wire.store.bmc_password(node).reveal()
    account = next(one for one in machine.accounts.all() if one.username == target.bmc_user)
    wire.bmcs.loop.call(lambda: machine.accounts.set_password(account.id, "Changed-Behind-Us-1"))
    end_sessions(wire, node)
    yield Met(node, target)
    wire.bmcs.loop.call(lambda: machine.accounts.set_password(account.id, ours))


def end_sessions(wire: Wire, node: str) -> None:
    """A short restart of the BMC's service: every session is forgotten."""
    wire.break_bmc(node, "bmc_gone")
    wire.heal_bmc(node, "bmc_gone")


def session_expired(wire: Wire) -> Iterator[Met]:
    node, target = wire.credentialed()
    end_sessions(wire, node)
    yield Met(node, target)


def weak_role(wire: Wire) -> Iterator[Met]:
    node, target = wire.credentialed()
    accounts = wire.bmcs.machines[node].accounts
    account = next(one for one in accounts.all() if one.username == target.bmc_user)
    wire.bmcs.loop.call(lambda: accounts.set_role(account.id, "ReadOnly"))
    yield Met(node, target, ON)
    wire.bmcs.loop.call(lambda: accounts.set_role(account.id, "Administrator"))


def etag_changes(wire: Wire) -> Iterator[Met]:
    """Between our look and our write somebody else has written: 412, once."""
    node, target = wire.credentialed()
    wire.break_bmc(node, "http_error", status=412, path_prefix=SYSTEMS, method="PATCH", remaining=1)
    yield Met(node, target, {"target": "Pxe"})


def update(fault: str = "", wait_for: Callable[[Mapping[str, Any]], bool] = lambda task: True, **arguments: object) -> Inject:
    """An update on a faulty BMC, as far as `wait_for`; what is asked then is its task."""

    def inject(wire: Wire) -> Iterator[Met]:
        node, target = wire.credentialed(on=True)
        if fault:
            wire.break_bmc(node, fault, **arguments)
        started = wire.ask(node, target, Action.BMC_UPDATE, **NIC)
        task = {"task": started.facts["task"]}
        end_s = time.monotonic() + 5
        while not wait_for(wire.ask(node, target, TASK, **task).facts):
            assert time.monotonic() < end_s, "the task never came to where it should"
            time.sleep(0.03)
        yield Met(node, target, task)
        if fault:
            wire.heal_bmc(node, fault)

    return inject


def ended(task: Mapping[str, Any]) -> bool:
    return task["state"] not in ("New", "Running")


def busy_part(wire: Wire) -> Iterator[Met]:
    """A second update of a part while the first one runs."""
    node, target = wire.credentialed(on=True)
    wire.break_bmc(node, "update_stuck")
    wire.ask(node, target, Action.BMC_UPDATE, **NIC)
    yield Met(node, target, NIC)


def bmc_restarts(wire: Wire) -> Iterator[Met]:
    node, target = wire.credentialed(on=True)
    wire.break_bmc(node, "bmc_restarts_after_update", seconds=30.0)
    wire.ask(node, target, Action.BMC_UPDATE, **NIC)
    end_s = time.monotonic() + 5
    while wire.bmcs.machines[node].faults.get("bmc_gone") is None:
        assert time.monotonic() < end_s
        time.sleep(0.02)
    wire.bmcs.loop.call(wire.bmcs.farm.tick)
    yield Met(node, target)
    wire.heal_bmc(node, "bmc_gone")


def few_connections(wire: Wire) -> Iterator[Met]:
    """A BMC that resets the third connection, asked six things at once."""
    node, target = wire.credentialed()
    wire.break_bmc(node, "connections_limited", most=2)
    busy = [wire.begin(node, target, FIRMWARE) for _ in range(6)]
    yield Met(node, target)
    assert {wire.wait(one).status for one in busy} == {Status.DONE}


def expired_certificate(wire: Wire) -> Iterator[Met]:
    """Self-signed, expired, in the name of another host: it is the pinned one, and that is all that counts."""
    bmc, node, target = wire.odd()
    pin = bmc.show_expired_certificate()
    yield Met(node, dataclasses.replace(target, bmc_certificate_sha256=pin))


def other_certificate(wire: Wire) -> Iterator[Met]:
    node, target = wire.credentialed()
    yield Met(node, dataclasses.replace(target, bmc_certificate_sha256="ab" * 32))


def factory_fresh(wire: Wire) -> Iterator[Met]:
    node, target = wire.delivered()
    yield Met(node, target)
    wire.ask(node, target, Action.BMC_CREDENTIAL)


def no_valid_image(wire: Wire) -> Iterator[Met]:
    """One part whose version is a complaint; the other one is as it should be."""
    node, target = wire.credentialed()
    wire.break_bmc(node, "stale_firmware", part="NIC1", version="28.39.1002")
    wire.break_bmc(node, "stale_firmware", part="BMC", version="no valid golden_image_arm!!!!")
    yield Met(node, target)
    wire.heal_bmc(node, "stale_firmware")


def full_pool(wire: Wire) -> Iterator[Met]:
    node, target = wire.credentialed()
    end_sessions(wire, node)
    wire.break_bmc(node, "session_pool_full")
    yield Met(node, target)
    wire.heal_bmc(node, "session_pool_full")


def power_when_fresh(wire: Wire) -> Iterator[Met]:
    node, target = wire.delivered()
    yield Met(node, target, ON)


def slow_power(wire: Wire) -> Iterator[Met]:
    node, target = wire.credentialed()
    wire.ask(node, target, OBSERVE)
    wire.break_bmc(node, "bmc_slow", seconds=30, path_prefix=f"{SYSTEMS}/1/Actions", method="POST")
    yield Met(node, target, ON)


def stale_power(wire: Wire) -> Iterator[Met]:
    node, target = wire.credentialed()
    wire.break_bmc(node, "power_state_stale", seconds=60)
    assert wire.ask(node, target, POWER, **ON).status is Status.DONE
    yield Met(node, target)
    wire.heal_bmc(node, "power_state_stale")
