"""Processes that hold Ray for the controller, which never imports it: one JSON line in per operation, one out per outcome.

    python -m orchestrator.worker shards ...    to the management Ray: SSH, Redfish and playbooks, in shard actors
    python -m orchestrator.worker cell ...      to a cell's Ray: membership, and ranks through one detached agent per node

Started by `drivers/door_process.py`. The first line of input is {"hello": {"db_url": ...}}; when input ends, so do they.
The token comes by RAY_AUTH_TOKEN_PATH; it and every other secret stay in files that only their readers open.
"""

import argparse
import asyncio
import importlib
import json
import os
import sys
import traceback
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import ray
from ray.exceptions import RayError

from orchestrator.agent.node_agent import NAMESPACE, THREADS, NodeAgent, agent_name
from orchestrator.domain.operation import MUTATING, Action, Operation, Outcome, Status
from orchestrator.drivers.outcomes import ended, fenced, lost, never_sent

LINE_LIMIT_BYTES = 64 * 1024 * 1024
"""Longest line of input; a RUN.json travels in one."""
GATHER_S = 0.3
"""How long a playbook waits for more nodes: one run on many nodes costs little more than a run on one."""
PLAYBOOK_NODES = 50
"""Nodes in one playbook run; more are shared out among the shards."""
MEMBERS_AGE_S = 0.5
"""How old the cell's membership may be when it answers an observation."""
AGENT_LIMIT_S = 25.0
"""How long a node's agent may take to start: Ray starts a Python process for it."""
GRACE_S = 5.0
"""An exchange ends by itself at its timeout; this much later its shard is taken to hang."""


class Door(Protocol):
    """Performs operations; owes exactly one outcome for each, by calling `emit`."""

    async def take(self, operation: Operation) -> None: ...


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits 0 when input ends."""
    parser = argparse.ArgumentParser(prog="orchestrator.worker", description=__doc__)
    parser.add_argument("program", choices=("shards", "cell"))
    parser.add_argument("--home", type=Path, required=True, help="$RACKRAY_HOME")
    parser.add_argument("--gcs", required=True, help="ADDRESS:PORT of the Ray head")
    parser.add_argument("--address", required=True, help="address of the head's own node on this host")
    parser.add_argument("--wiring", default="orchestrator.wiring", help="module that builds the drivers")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--threads", type=int, default=32)
    options = parser.parse_args(argv)
    # Ray and its children print where they like: standard output is ours alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    ray.init(
        address=options.gcs,
        _node_ip_address=options.address,  # several Ray nodes may live on this host; this one is ours
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=False,
    )
    asyncio.run(serve(options, answers.write))


async def serve(options: argparse.Namespace, write: Callable[[str], Any]) -> None:
    """Opens the door, says ready, and performs what comes in; when input ends it ends the process."""
    reader = asyncio.StreamReader(limit=LINE_LIMIT_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    hello = json.loads(await reader.readline())["hello"]

    def emit(outcome: Outcome) -> None:
        write(json.dumps({"outcome": outcome.to_json()}) + "\n")

    door: Door
    if options.program == "shards":
        door = await ShardsDoor.open(options, hello["db_url"], emit)
    else:
        door = CellDoor(importlib.import_module(options.wiring).build_may_act(hello["db_url"]), emit)
    write(json.dumps({"ready": {"gcs": options.gcs, "pid": os.getpid()}}) + "\n")
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        operation = Operation.from_json(json.loads(line)["operation"])
        task = asyncio.create_task(_answer(door, operation, emit))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    # At once: a thread that waits for a hung Ray must not hold this process. The shards of this job end with it.
    os._exit(0)


async def _answer(door: Door, operation: Operation, emit: Callable[[Outcome], None]) -> None:
    try:
        await door.take(operation)
    except Exception as error:
        # Whatever broke here, the operation must not be lost; the traceback goes to the door's log.
        traceback.print_exc(file=sys.stderr)
        emit(lost(operation, f"the door broke: {_last_line(error)}"))


# ---------------------------------------------------------------------- shards
class Shard:
    """A Ray actor on a controller host: builds its own drivers, reads its own secrets, performs exchanges in threads."""

    def __init__(self, home: str, db_url: str, wiring: str) -> None:
        doors = importlib.import_module(wiring)
        self._may_act = doors.build_may_act(db_url)
        self._exchange = doors.build_exchange(Path(home), db_url)
        self._playbooks = doors.build_playbooks(Path(home))

    def ready(self) -> int:
        """The shard's pid, once its drivers are built."""
        return os.getpid()

    def perform(self, data: dict[str, Any]) -> dict[str, Any]:
        """One exchange; the epoch is asked immediately before it, inside."""
        operation = Operation.from_json(data)
        try:
            outcome: Outcome = self._exchange.perform(operation, self._may_act)
        except Exception as error:
            # An executor that breaks has perhaps sent something: UNKNOWN, and the reason in the outcome and in Ray's log.
            traceback.print_exc()
            outcome = lost(operation, f"the executor broke: {_last_line(error)}")
        return outcome.to_json()

    def run_playbook(self, playbook: str, batch: list[dict[str, Any]]) -> Any:
        """One playbook on several nodes: a generator of outcomes, each as its node ends."""
        allowed = []
        for operation in map(Operation.from_json, batch):
            if self._may_act(operation.epoch):
                allowed.append(operation)
            else:
                yield fenced(operation).to_json()
        if allowed:
            for outcome in self._playbooks.run(playbook, allowed):
                yield outcome.to_json()


class ShardsDoor:
    """Spreads operations over the shards: one node always to the same shard, so that sessions and connections are reused."""

    def __init__(self, shards: list[Any], threads: int, emit: Callable[[Outcome], None]) -> None:
        self._shards, self._emit = shards, emit
        # What waits here is not under way: its time does not run yet.
        self._places = [asyncio.Semaphore(threads) for _ in shards]
        self._gathering: dict[str, list[Operation]] = defaultdict(list)
        self._runs = [0] * len(shards)

    @staticmethod
    async def open(options: argparse.Namespace, db_url: str, emit: Callable[[Outcome], None]) -> "ShardsDoor":
        """Starts the shards and waits until they have built their drivers. Raises RayError."""
        # max_restarts: a shard that dies comes back by itself; max_task_retries=0: an exchange is never repeated by Ray.
        shard = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=options.threads + 4)(Shard)
        shards = [shard.remote(str(options.home), db_url, options.wiring) for _ in range(options.shards)]
        await asyncio.gather(*(one.ready.remote() for one in shards))
        return ShardsDoor(shards, options.threads, emit)

    async def take(self, operation: Operation) -> None:
        """One exchange, or a place in the next run of its playbook."""
        if operation.action is Action.PLAYBOOK:
            return await self._gather(operation)
        index = crc32(operation.node.encode()) % len(self._shards)
        async with self._places[index]:
            call = self._shards[index].perform.remote(operation.to_json())
            try:
                self._emit(Outcome.from_json(await asyncio.wait_for(_value(call), operation.timeout_s + GRACE_S)))
            except TimeoutError:
                self._emit(
                    lost(operation, f"no answer within {operation.timeout_s + GRACE_S:.0f} s, and the exchange does not end")
                )
            except RayError as error:
                self._emit(lost(operation, f"its shard ended during the exchange: {_last_line(error)}"))

    async def _gather(self, operation: Operation) -> None:
        playbook = str(operation.args.get("playbook"))
        first = not self._gathering[playbook]
        self._gathering[playbook].append(operation)
        if not first:
            return
        await asyncio.sleep(GATHER_S)
        batch = self._gathering.pop(playbook)
        parts = [batch[start : start + PLAYBOOK_NODES] for start in range(0, len(batch), PLAYBOOK_NODES)]
        await asyncio.gather(*(self._run_playbook(playbook, part) for part in parts))

    async def _run_playbook(self, playbook: str, batch: list[Operation]) -> None:
        open_ones = {operation.id: operation for operation in batch}
        index = self._runs.index(min(self._runs))
        self._runs[index] += 1
        reason = "the playbook run ended without a word about this node"
        limit_s = batch[0].timeout_s + GRACE_S
        try:
            method = self._shards[index].run_playbook.options(num_returns="streaming")
            async with asyncio.timeout(limit_s):
                async for call in method.remote(playbook, [operation.to_json() for operation in batch]):
                    outcome = Outcome.from_json(await _value(call))
                    if open_ones.pop(outcome.operation, None) is not None:
                        self._emit(outcome)
        except TimeoutError:
            reason = f"the playbook run did not end within {limit_s:.0f} s"
        except RayError as error:
            reason = f"the playbook run broke: {_last_line(error)}"
        finally:
            self._runs[index] -= 1
            for operation in open_ones.values():
                self._emit(lost(operation, reason))


# ---------------------------------------------------------------------- cell
class CellDoor:
    """What the cell's Ray says of a node, and what the node's agent does there."""

    def __init__(self, may_act: Callable[[int], bool], emit: Callable[[Outcome], None]) -> None:
        self._may_act, self._emit = may_act, emit
        self._agents: dict[str, Any] = {}
        self._agent_locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._members: dict[str, dict[str, Any]] = {}
        self._members_until_s = 0.0
        self._members_lock = asyncio.Lock()

    async def take(self, operation: Operation) -> None:
        """One look at the membership, or one call of the node's agent."""
        try:
            async with asyncio.timeout(operation.timeout_s):
                self._emit(
                    await (
                        self._observe(operation) if operation.action is Action.CELL_OBSERVE else self._through_agent(operation)
                    )
                )
        except TimeoutError:
            self._agents.pop(operation.node, None)
            self._emit(self._no_answer(operation, f"no answer from {operation.node} within {operation.timeout_s:.0f} s"))

    async def _observe(self, operation: Operation) -> Outcome:
        found = (await self._alive_members()).get(operation.node)
        facts = {
            "alive": found is not None,
            "node_id": found["NodeID"] if found else "",
            "labels": dict(found.get("Labels") or {}) if found else {},
            "resources": dict(found.get("Resources") or {}) if found else {},
        }
        return Outcome(operation.id, operation.node, operation.action, Status.DONE, facts=facts)

    async def _through_agent(self, operation: Operation) -> Outcome:
        outcome = await self._ask_agent(operation)
        if outcome.status is Status.UNREACHABLE and operation.action is Action.RANK_LOOK:
            # An agent that has died is made anew by the next call, and a look may always be repeated.
            outcome = await self._ask_agent(operation)
        return outcome

    async def _ask_agent(self, operation: Operation) -> Outcome:
        node = operation.node
        if node not in await self._alive_members():
            return never_sent(operation, f"{node} is not alive in the cell; nothing was sent")
        try:
            agent = await self._agent(node)
        except (RayError, TimeoutError, ValueError) as error:
            return never_sent(operation, f"the agent of {node} does not start: {_last_line(error)}")
        if not await _in_thread(lambda: self._may_act(operation.epoch)):
            return fenced(operation)
        method = {Action.RANK_START: agent.start, Action.RANK_LOOK: agent.look, Action.RANK_STOP: agent.stop}[operation.action]
        try:
            answer = await _value(method.remote(dict(operation.args)))
        except RayError as error:
            self._agents.pop(node, None)
            return self._no_answer(operation, f"the agent of {node} was lost during the call: {_last_line(error)}")
        if "refused" in answer:
            return ended(operation, Status.REFUSED, answer["refused"])
        return Outcome(operation.id, node, operation.action, Status.DONE, facts=answer["facts"])

    async def _agent(self, node: str) -> Any:
        """The node's agent, alive a moment ago: found, or made. Raises RayError, TimeoutError."""
        async with self._agent_locks[node]:
            if node in self._agents:
                return self._agents[node]
            make = ray.remote(NodeAgent).options(
                name=agent_name(node),
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=THREADS,
                label_selector={"node": node},
            )
            agent = await _in_thread(lambda: make.remote(node))
            # Only an agent that has answered gets work: a call to one that never starts would wait in Ray and run much later.
            await asyncio.wait_for(_value(agent.about.remote()), AGENT_LIMIT_S)
            self._agents[node] = agent
            return agent

    async def _alive_members(self) -> dict[str, dict[str, Any]]:
        """By node name, those the GCS says are alive; a node that came back has a dead entry too, which does not count."""
        async with self._members_lock:
            now_s = asyncio.get_running_loop().time()
            if now_s >= self._members_until_s:
                self._members = {entry["NodeName"]: entry for entry in await _in_thread(ray.nodes) if entry["Alive"]}
                self._members_until_s = asyncio.get_running_loop().time() + MEMBERS_AGE_S
            return self._members

    @staticmethod
    def _no_answer(operation: Operation, reason: str) -> Outcome:
        return lost(operation, reason) if operation.action in MUTATING else never_sent(operation, reason)


async def _value(call: Awaitable[Any]) -> Any:
    """Makes a coroutine of a Ray reference, so that time limits can be put on it."""
    return await call


async def _in_thread(ask: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, ask)


def _last_line(error: BaseException) -> str:
    """The last line of what the error says: Ray's errors carry whole tracebacks."""
    lines = [line for line in "".join(traceback.format_exception_only(error)).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__


if __name__ == "__main__":
    main()
