"""What must hold at every moment of a simulated history, whatever fails: functions over the site and the journal's state.

The names in brackets are those of the project's list of invariants. `site` is the truth: machines as they are. `state` is the
fold over what is on disk. Each function answers with a sentence per breach.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from orchestrator.domain.event import Event
from orchestrator.domain.node import IN_SERVICE, SETTLED, NodeRecord, NodeState, can_move
from orchestrator.domain.operation import MUTATING, Action, Operation
from orchestrator.domain.rollout import is_untouched
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.state import ClusterState
from orchestrator.lab.machine import PowerState
from orchestrator.lab.simulation import Deed, SimulatedSite

ONCE_ONLY = frozenset({Action.BMC_POWER, Action.BMC_UPDATE, Action.BMC_BOOT_ONCE, Action.BMC_CREDENTIAL, Action.CELL_JOIN})
DARK_SLACK_S = 600.0
"""After a feed loss, evidence gathered before it may still be on its way into the journal."""
Breaches = Iterator[str]


@dataclass
class Past:
    """What the watcher remembers of a history."""

    spec: ClusterSpec
    touched: set[str] = field(default_factory=set)
    """Nodes that any exchange was begun with in their present proof."""
    over_budget_at_s: float = float("inf")
    """Since when more nodes have failed than the budget allows."""
    deeds: dict[tuple[str, Action], float] = field(default_factory=dict)
    """When each action last really happened at each node."""
    intended_at_s: dict[str, float] = field(default_factory=dict)
    """When each intent was on disk, by the site's time: the journal's may be years off, in histories with clock jumps."""
    powered_on_s: dict[str, float] = field(default_factory=dict)
    resets: Counter[str] = field(default_factory=Counter)
    """How often each node was switched off since its last update."""


# ---------------------------------------------------------------------- after every commit
def power_stays_within_every_limit(site: SimulatedSite, state: ClusterState, past: Past) -> Breaches:
    """[I9] Machines that are on, each at its largest draw, and at its inrush while it starts, per rack and feed."""
    policy = past.spec.rollout
    rack_w: Counter[str] = Counter()
    feed_w: Counter[str] = Counter()
    for name, node in site.nodes.items():
        # Nodes were delivered switched off; asking a machine costs more than knowing that.
        if (name in past.powered_on_s or node.machine.spec.is_equipment) and node.is_on:
            rushing = site.now_s - past.powered_on_s.get(name, float("-inf")) < policy.inrush_s
            watts = node.sku.max_w * (policy.inrush_factor if rushing else 1.0)
            rack_w[node.node.rack] += watts  # type: ignore[assignment]
            feed_w[node.feed] += watts  # type: ignore[assignment]
    for rack, watts in rack_w.items():
        if watts > past.spec.racks[rack].limit_w + 1:
            yield f"rack {rack} carries {watts} W of {past.spec.racks[rack].limit_w} W"
    for feed, watts in feed_w.items():
        if watts > past.spec.feeds[feed].limit_w + 1:
            yield f"feed {feed} carries {watts} W of {past.spec.feeds[feed].limit_w} W"


def nodes_in_flight_stay_within_the_limits(site: SimulatedSite, state: ClusterState, past: Past) -> Breaches:
    """[I8] Open intents in all, and power and firmware steps per rack."""
    policy = past.spec.rollout
    busy = [record for record in state.nodes.values() if record.open is not None]
    if len(busy) > policy.max_in_flight:
        yield f"{len(busy)} nodes have an open intent, the limit is {policy.max_in_flight}"
    down = Counter(site.nodes[name].node.rack for name in starting(site, state, past)) if policy.down_per_rack else Counter()
    for rack, count in down.items():
        if policy.down_per_rack and count > policy.down_per_rack:
            yield f"{count} machines of rack {rack} are starting at once, the limit is {policy.down_per_rack}"


def one_half_of_a_pair_is_down_at_a_time(site: SimulatedSite, state: ClusterState, past: Past) -> Breaches:
    """[I8] Never two halves of a redundancy pair."""
    halves: dict[str, str] = {}
    for name in starting(site, state, past):
        pair = site.nodes[name].node.pair
        if pair is not None and (other := halves.setdefault(pair, name)) != name:
            yield f"{name} and {other}, both of the pair {pair}, are starting at once"


def starting(site: SimulatedSite, state: ClusterState, past: Past) -> list[str]:
    """Machines that were switched on and are not up yet, by the controller's doing alone."""
    found = []
    for name in past.powered_on_s:
        node, record = site.nodes[name], state.nodes.get(name)
        # In `configured` a host is reset once, where its firmware asks for it.
        early = (NodeState.CREDENTIALED, NodeState.POWERED, NodeState.CONFIGURED)
        is_early = record is not None and record.state in early
        is_its_own_fault = node.feed in site.dark_until_s or "reset_ignored" in _faults(site, name)
        if is_early and not node.is_up and not is_its_own_fault and node.is_on:
            found.append(name)
    return found


def every_node_of_the_spec_has_one_record(site: SimulatedSite, state: ClusterState, past: Past) -> Breaches:
    """[I19] Nobody is forgotten, nobody is counted twice; equipment is a machine like any other."""
    if state.spec is not None and set(state.nodes) != {machine.name for machine in state.spec.managed()}:
        yield "the records are not those of the spec's machines"


AFTER_COMMIT: Mapping[str, Callable[[SimulatedSite, ClusterState, Past], Breaches]] = {
    check.__name__: check
    for check in (
        power_stays_within_every_limit,
        nodes_in_flight_stay_within_the_limits,
        one_half_of_a_pair_is_down_at_a_time,
        every_node_of_the_spec_has_one_record,
    )
}


# ---------------------------------------------------------------------- for every event, against the state before it
def epochs_never_go_back(event: Event, state: ClusterState, site: SimulatedSite, past: Past) -> Breaches:
    """[I2] A stale controller writes nothing."""
    if event.epoch and event.epoch < state.epoch:
        yield f"{event.kind} of epoch {event.epoch} after epoch {state.epoch} took over"


def moves_are_legal(event: Event, state: ClusterState, site: SimulatedSite, past: Past) -> Breaches:
    """The lifecycle's table."""
    if event.kind == "node.moved":
        record, new = state.nodes[event.subject], NodeState(event.data["to"])
        old = record.state
        if not can_move(old, new, record.kind) or str(old) != event.data["from"]:
            yield f"{event.subject} went from {old} (said: {event.data['from']}) to {new}"


def one_exchange_at_a_time_and_a_look_after_a_lost_one(
    event: Event, state: ClusterState, site: SimulatedSite, past: Past
) -> Breaches:
    """[I3, I5] One at a time, and after a lost answer a look comes first."""
    if event.kind == "node.intended":
        record = state.nodes[event.subject]
        if record.open is not None:
            yield f"{event.subject}: {event.data['action']} was begun while {record.open.action} was open"
        if record.lost is not None:
            yield f"{event.subject}: {event.data['action']} was begun while the answer to {record.lost.action} was lost"


def what_is_settled_as_done_was_done(event: Event, state: ClusterState, site: SimulatedSite, past: Past) -> Breaches:
    """[I5] Unknown is never success: the site knows whether it happened."""
    if event.kind == "node.settled" and event.data["done"]:
        lost = state.nodes[event.subject].lost
        if lost is not None and past.deeds.get((event.subject, lost.action), 0.0) < past.intended_at_s[lost.id]:
            yield f"{event.subject}: {lost.action} is said to have taken effect, but it never happened"


def ready_means_sound(event: Event, state: ClusterState, site: SimulatedSite, past: Past) -> Breaches:
    """[I4] Every check passed, on evidence newer than the last power event and firmware change; and the machine is so."""
    if event.kind != "node.moved" or event.data["to"] != NodeState.READY:
        return
    record, node = state.nodes[event.subject], site.nodes[event.subject]
    disturbed_s = max(record.fact_at_s(Action.BMC_POWER), record.fact_at_s(Action.BMC_UPDATE))
    is_equipment = node.machine.spec.is_equipment
    for check in (Action.BMC_OBSERVE,) if is_equipment else (Action.NODE_PROBE, Action.NODE_COMPUTE):
        if record.fact_at_s(check) <= disturbed_s:
            yield f"{record.name} became ready on a {check} older than its last power event or firmware change"
    if node.sick_gpus and not is_equipment:
        yield f"{record.name} became ready with sick GPUs"
    others = [other for other in state.nodes.values() if not other.is_equipment and other is not record]
    serving = [other.name for other in others if other.state in IN_SERVICE]
    if not is_equipment and (twins := [name for name in serving if site.nodes[name].gpus_of == node.gpus_of]):
        yield f"{record.name} became ready with the GPUs of {twins[0]}"
    if node.machine.serial != node.node.serial:
        yield f"{record.name} became ready with the serial {node.machine.serial}"
    baseline = past.spec.firmware.get(node.node.sku, {})
    for part in node.machine.firmware(site.now_s):
        if part.id in baseline and part.version not in baseline[part.id].approved:
            yield f"{record.name} became ready with {part.id} {part.version}"
    if not node.is_up and not is_equipment and not site.dark_until_s:
        yield f"{record.name} became ready while its system is down"


def failures_are_counted_whole(event: Event, state: ClusterState, site: SimulatedSite, past: Past) -> Breaches:
    """[I19] What the rollout reports at its end adds up."""
    if event.kind == "rollout.finished":
        said, count = sum(event.data[key] for key in ("ready", "quarantined", "left")), sum(map(len, state.rollout.waves))
        if said > count:
            yield f"the rollout reports {said} nodes and has {count}"


EVERY_EVENT: Mapping[str, Callable[[Event, ClusterState, SimulatedSite, Past], Breaches]] = {
    check.__name__: check
    for check in (
        epochs_never_go_back,
        moves_are_legal,
        one_exchange_at_a_time_and_a_look_after_a_lost_one,
        what_is_settled_as_done_was_done,
        ready_means_sound,
        failures_are_counted_whole,
    )
}


# ---------------------------------------------------------------------- for every exchange that is begun
def only_the_present_epoch_acts(operation: Operation, state: ClusterState, site: SimulatedSite, past: Past) -> Breaches:
    """[I2] A zombie reaches nobody."""
    if operation.epoch != state.epoch:
        yield f"{operation.action} on {operation.node} was sent by epoch {operation.epoch}, epoch {state.epoch} decides"


def intents_are_journaled_first(operation: Operation, state: ClusterState, site: SimulatedSite, past: Past) -> Breaches:
    """[I1, I16] Otherwise a killed controller would not know what it had begun."""
    opened = state.nodes[operation.node].open
    if operation.action in MUTATING and (opened is None or opened.id != operation.id):
        yield f"{operation.action} on {operation.node} was sent before its intent was on disk"


def nodes_at_rest_are_left_alone(operation: Operation, state: ClusterState, site: SimulatedSite, past: Past) -> Breaches:
    """[I6] Nobody changes a node that is in service, in quarantine or in a person's hands."""
    record = state.nodes[operation.node]
    if operation.action in MUTATING and record.state in SETTLED:
        yield f"{operation.action} on {operation.node}, which is {record.state}"


def later_waves_wait(operation: Operation, state: ClusterState, site: SimulatedSite, past: Past) -> Breaches:
    """[I7] A node is not begun while a node of an earlier wave is on its way."""
    if operation.node in past.touched:
        return
    for wave in state.rollout.waves:
        if operation.node in wave:
            return
        moving = [name for name in wave if not state.rollout.is_resting(state.nodes[name])]
        if moving:
            yield f"{operation.node} was begun while {moving[0]} of an earlier wave is {state.nodes[moving[0]].state}"
            return


def nothing_starts_over_the_budget(operation: Operation, state: ClusterState, site: SimulatedSite, past: Past) -> Breaches:
    """[I7] Once more nodes have failed than the budget allows, no further node is begun; those in flight may end."""
    untouched = operation.node not in past.touched and is_untouched(state.nodes[operation.node])
    if untouched and operation.node not in state.rollout.called and site.now_s > past.over_budget_at_s:
        yield f"{operation.node} was begun {site.now_s - past.over_budget_at_s:.1f} s after the failure budget was used up"


EVERY_EXCHANGE: Mapping[str, Callable[[Operation, ClusterState, SimulatedSite, Past], Breaches]] = {
    check.__name__: check
    for check in (
        only_the_present_epoch_acts,
        intents_are_journaled_first,
        nodes_at_rest_are_left_alone,
        later_waves_wait,
        nothing_starts_over_the_budget,
    )
}


# ---------------------------------------------------------------------- for everything that really happens at a machine
def strangers_are_not_written_to(deed: Deed, site: SimulatedSite, past: Past) -> Breaches:
    """[I13] A machine with another serial than the spec's keeps what it has."""
    node = site.nodes[deed.node]
    if node.machine.serial != node.node.serial:
        yield f"{deed.action} changed {deed.node}, behind which is {node.machine.serial}"


def no_disruptive_step_is_made_twice(deed: Deed, site: SimulatedSite, past: Past) -> Breaches:
    """[I16] What has taken effect is not done again."""
    node = site.nodes[deed.node]
    power = node.machine.power_state(site.now_s)
    if deed.action is Action.BMC_POWER and deed.args["reset"] == "On" and power in (PowerState.ON, PowerState.POWERING_ON):
        yield f"{deed.node} was powered on again while it is {power}"
    if deed.action is Action.BMC_UPDATE:
        versions = {part.id: part.version for part in node.machine.firmware(site.now_s)}
        if versions.get(deed.args["component"]) == deed.args["version"]:
            yield f"{deed.node}: {deed.args['component']} was updated again to {deed.args['version']}, which it has"


def no_power_cut_during_an_update(deed: Deed, site: SimulatedSite, past: Past) -> Breaches:
    """[I18] Power stays on, and no second update begins, while a task is not at its end."""
    busy = [task.id for task in site.nodes[deed.node].machine.tasks(site.now_s) if not task.state.is_final]
    if busy and deed.action in (Action.BMC_POWER, Action.BMC_UPDATE):
        yield f"{deed.action} on {deed.node} while its update task {busy[0]} runs"


def a_host_is_reset_once_per_update(deed: Deed, site: SimulatedSite, past: Past) -> Breaches:
    """[I16] A reset that did not help is not tried again."""
    if deed.action is Action.BMC_UPDATE:
        past.resets.pop(deed.node, None)
    elif deed.action is Action.BMC_POWER and deed.args.get("reset") == "ForceOff" and site.nodes[deed.node].image_installed_at_s:
        if (deed.node, Action.BMC_UPDATE) in past.deeds:
            past.resets[deed.node] += 1
        if past.resets[deed.node] > 1:
            yield f"{deed.node} was switched off {past.resets[deed.node]} times after one update"


def updates_install_the_baseline(deed: Deed, site: SimulatedSite, past: Past) -> Breaches:
    """[I18] No component outside the baseline, no version but the approved one."""
    if deed.action is Action.BMC_UPDATE:
        part = past.spec.firmware[site.nodes[deed.node].node.sku].get(deed.args["component"])
        if part is None or part.approved[0] != deed.args["version"]:
            yield f"{deed.node}: {deed.args['component']} {deed.args['version']} is not the baseline's"


EVERY_DEED: Mapping[str, Callable[[Deed, SimulatedSite, Past], Breaches]] = {
    check.__name__: check
    for check in (
        strangers_are_not_written_to,
        no_disruptive_step_is_made_twice,
        no_power_cut_during_an_update,
        a_host_is_reset_once_per_update,
        updates_install_the_baseline,
    )
}


# ---------------------------------------------------------------------- at the end
def everybody_has_come_to_rest(state: ClusterState) -> Breaches:
    """[I10] Nothing stays "in progress" for ever."""
    for name, record in state.nodes.items():
        if not (state.rollout.is_resting(record) or is_untouched(record)):
            yield f"{name} is still {record.state}: {_doing(record)}"
    if state.requests:
        yield f"requests {sorted(state.requests)} were never answered"


def untouched_means_stopped(state: ClusterState) -> Breaches:
    """[I10] A node is left unbegun only where the rollout it belongs to says why."""
    waves = {name for wave in state.rollout.waves for name in wave}
    for name, record in state.nodes.items():
        if not is_untouched(record) or name in state.rollout.skipped:
            continue
        if name not in waves:
            yield f"{name} was never begun, and no rollout includes it"
        elif not state.rollout.why_not_begun(name):
            yield f"{name} was never begun, and nothing says why"


def _doing(record: NodeRecord) -> str:
    return f"open {record.open.action}" if record.open else record.last_problem or "nothing said why"


def _faults(site: SimulatedSite, name: str) -> Mapping[str, object]:
    fate = site.nodes[name].fate
    return fate.faults if fate else {}
