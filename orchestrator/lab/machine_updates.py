"""Firmware parts and update tasks of a simulated machine."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from urllib.parse import urlsplit

from orchestrator.lab.machine_faults import ActiveFaults
from orchestrator.lab.machine_nouns import FirmwarePart, NoSuchThing, NotSupportedHere, PartBusy

NEW_SHARE_OF_UPDATE = 0.05
"""The part of `update_s` in which a task is New: the image is being fetched."""

FINISHED_TASKS_KEPT = 50
"""Older ones are forgotten, as on real BMCs (`CompletedTaskOverWritePolicy: Oldest`)."""

FirmwareCatalog = Mapping[str, tuple[str, str]]
"""Path of an image's URI → (part id, version) that the file at that path holds."""

Record = Callable[[float, str, str, str], None]
"""(at_s, severity, message, part id) into the event log."""


class TaskState(StrEnum):
    """The values of Redfish's `TaskState` that an update takes."""

    NEW = "New"
    """Accepted; nothing has been written."""
    PENDING = "Pending"
    """It waits for something; nothing has been written."""
    RUNNING = "Running"
    COMPLETED = "Completed"
    """The BMC says it is done. Whether the version changed is another question."""
    EXCEPTION = "Exception"

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self in (TaskState.COMPLETED, TaskState.EXCEPTION)


@dataclass(frozen=True, slots=True)
class UpdateTask:
    """One update, as the BMC tells it."""

    id: str
    part_id: str
    """Empty if the image was not understood."""
    version: str
    image_uri: str
    started_s: float
    state: TaskState = TaskState.NEW
    percent: int = 0
    message: str = "The update was accepted."
    ended_s: float | None = None
    needs_reset: bool = False
    is_scheduled: bool = False
    """It begins when the host boots next."""


@dataclass(slots=True)
class _Job:
    """A task and what will become of it, settled when it starts."""

    task: UpdateTask
    outcome: Callable[[UpdateTask, float], UpdateTask]
    ends_s: float
    begun_s: float | None = None
    """When a scheduled update began; the others begin when they are accepted."""


@dataclass(slots=True)
class _Installed:
    """A part as it is now."""

    part: FirmwarePart
    is_broken: bool = False
    pending_version: str | None = None


@dataclass(frozen=True, slots=True)
class PartView:
    """A part as the firmware inventory tells it."""

    id: str
    name: str
    version: str
    updateable: bool
    health: str
    """OK or Critical; Critical after an update was cut in the middle."""
    pending_version: str | None = field(default=None)


class Updates:
    """The firmware inventory and its update tasks; each part takes one update at a time."""

    def __init__(
        self,
        parts: tuple[FirmwarePart, ...],
        update_s: float,
        catalog: FirmwareCatalog,
        faults: ActiveFaults,
        record: Record,
    ) -> None:
        self._installed = {part.id: _Installed(part) for part in parts}
        self._update_s = update_s
        self._catalog = catalog
        self._faults = faults
        self._record = record
        self._jobs: dict[str, _Job] = {}
        self._open: dict[str, _Job] = {}
        self._numbers = itertools.count(1)
        self.finished: list[UpdateTask] = []
        """Tasks that ended since the owner last emptied this list."""

    def parts(self) -> tuple[PartView, ...]:
        """The firmware inventory."""
        return tuple(
            PartView(
                id=one.part.id,
                name=one.part.name,
                version=one.part.version,
                updateable=one.part.updateable,
                health="Critical" if one.is_broken else "OK",
                pending_version=one.pending_version,
            )
            for one in self._installed.values()
        )

    def part(self, part_id: str) -> PartView:
        """One part, or NoSuchThing."""
        found = next((part for part in self.parts() if part.id == part_id), None)
        if found is None:
            raise NoSuchThing(f"no firmware part is called {part_id}; there are {', '.join(self._installed)}")
        return found

    def set_version(self, part_id: str, version: str) -> str:
        """Plant a version (a fault, not an update); answers the version that was there."""
        before = self.part(part_id).version
        self._installed[part_id].part = replace(self._installed[part_id].part, version=version)
        return before

    def tasks(self) -> tuple[UpdateTask, ...]:
        """Every task that can still be asked for."""
        hidden = self._faults.get("task_vanishes") is not None
        return tuple(job.task for job in self._jobs.values() if not (hidden and job.task.state.is_final))

    def start(self, image_uri: str, targets: tuple[str, ...], now_s: float) -> UpdateTask:
        """Accept an update; an image that is not understood becomes a task that ends in Exception.

        targets: part ids the client named; empty means the image decides.
        Errors: NoSuchThing (unknown target), NotSupportedHere (part not updateable), PartBusy.
        """
        for target in targets:
            self._refuse_if_not_updateable(target)
        part_id, version = self._catalog.get(urlsplit(image_uri).path, ("", ""))
        problem = self._problem_with(image_uri, part_id, targets)
        if not problem:
            self._refuse_if_not_updateable(part_id)
            self._refuse_if_busy(part_id)
        task = UpdateTask(str(next(self._numbers)), "" if problem else part_id, version, image_uri, now_s)
        self._jobs[task.id] = self._open[task.id] = self._settle(task, problem, now_s)
        self._record(now_s, "OK", f"update task {task.id} accepted: {image_uri}", task.part_id or "System")
        return task

    @property
    def due_s(self) -> float:
        """When the next open task ends; infinity if none will."""
        return min((job.ends_s for job in self._open_jobs()), default=float("inf"))

    def advance(self, now_s: float) -> None:
        """Bring every open task to what it is at `now_s`."""
        for job in self._open_jobs():
            if job.task.is_scheduled:
                continue
            if now_s >= job.ends_s:
                self._end(job, job.outcome(job.task, job.ends_s))
            else:
                job.task = self._under_way(job, now_s)

    def host_power_lost(self, now_s: float) -> None:
        """Updates of parts that live on host power break; the part is Critical until it is updated again."""
        self.advance(now_s)
        for job in self._open_jobs():
            installed = self._installed.get(job.task.part_id)
            if installed is None or job.task.is_scheduled or installed.part.on_standby_power:
                continue
            installed.is_broken = True
            text = f"host power was lost at {job.task.percent} %; {job.task.part_id} must be updated again"
            self._end(job, self._failed(job.task, now_s, text))

    def host_booted(self, now_s: float) -> None:
        """Versions that waited for a reset take effect; updates that waited for one begin."""
        for part_id, installed in self._installed.items():
            if installed.pending_version is not None:
                self._install(part_id, installed.pending_version, now_s)
        for job in self._open_jobs():
            if job.task.is_scheduled:
                job.task, job.begun_s = replace(job.task, is_scheduled=False), now_s
                job.ends_s = now_s + self._update_s

    def _open_jobs(self) -> tuple[_Job, ...]:
        return tuple(self._open.values())

    def _problem_with(self, image_uri: str, part_id: str, targets: tuple[str, ...]) -> str:
        if not part_id:
            return f"the image at {image_uri} is unknown or damaged"
        if part_id not in self._installed:
            return f"the image is for {part_id}, which this machine does not have"
        if targets and targets != (part_id,):
            return f"the image is for {part_id}, not for {', '.join(targets)}"
        return ""

    def _refuse_if_not_updateable(self, part_id: str) -> None:
        if not self.part(part_id).updateable:
            raise NotSupportedHere(f"firmware part {part_id} cannot be updated")

    def _refuse_if_busy(self, part_id: str) -> None:
        for job in self._open_jobs():
            if job.task.part_id == part_id:
                raise PartBusy(f"task {job.task.id} is updating {part_id}; wait until it ends")

    def _settle(self, task: UpdateTask, problem: str, now_s: float) -> _Job:
        fetched_s = now_s + NEW_SHARE_OF_UPDATE * self._update_s
        if problem:
            return _Job(task, lambda t, at_s: self._failed(t, at_s, problem), fetched_s)
        if self._faults.concerning_part("update_stuck", task.part_id):
            return _Job(task, self._completed, float("inf"))
        if fails := self._faults.concerning_part("update_fails", task.part_id):
            percent = int(fails.number("percent"))
            ends_s = now_s + max(NEW_SHARE_OF_UPDATE, percent / 100) * self._update_s
            text = f"writing {task.part_id} failed at {percent} %: flash verification error"
            return _Job(task, lambda t, at_s: self._failed(replace(t, percent=percent), at_s, text), ends_s)
        if self._faults.concerning_part("update_completes_unchanged", task.part_id):
            return _Job(task, self._completed, now_s + self._update_s)
        if self._faults.concerning_part("update_needs_reset", task.part_id):
            return _Job(task, self._staged, now_s + self._update_s)
        if self._faults.concerning_part("update_scheduled", task.part_id):
            waiting = replace(task, state=TaskState.PENDING, message="Task successfully scheduled.", is_scheduled=True)
            return _Job(waiting, self._written, float("inf"))
        return _Job(task, self._written, now_s + self._update_s)

    def _under_way(self, job: _Job, now_s: float) -> UpdateTask:
        share = (now_s - (job.task.started_s if job.begun_s is None else job.begun_s)) / self._update_s
        if share < NEW_SHARE_OF_UPDATE:
            return replace(job.task, state=TaskState.NEW)
        percent = min(99, int(100 * share))
        return replace(
            job.task,
            state=TaskState.RUNNING,
            percent=percent,
            message=f"Writing {job.task.part_id}: {percent} %.",
        )

    def _end(self, job: _Job, task: UpdateTask) -> None:
        job.task = task
        del self._open[task.id]
        self.finished.append(task)
        closed = [one for one in self._jobs if one not in self._open]
        for oldest in closed[:-FINISHED_TASKS_KEPT]:
            del self._jobs[oldest]

    def _written(self, task: UpdateTask, at_s: float) -> UpdateTask:
        self._install(task.part_id, task.version, at_s)
        return self._completed(task, at_s)

    def _staged(self, task: UpdateTask, at_s: float) -> UpdateTask:
        self._installed[task.part_id].pending_version = task.version
        text = f"{task.part_id} {task.version} is staged; reset the host to apply it."
        return replace(self._completed(task, at_s), message=text, needs_reset=True)

    def _completed(self, task: UpdateTask, at_s: float) -> UpdateTask:
        self._record(at_s, "OK", f"update task {task.id} completed", task.part_id)
        text = f"The update of {task.part_id} completed."
        return replace(task, state=TaskState.COMPLETED, percent=100, message=text, ended_s=at_s)

    def _failed(self, task: UpdateTask, at_s: float, text: str) -> UpdateTask:
        self._record(at_s, "Critical", f"update task {task.id}: {text}", task.part_id or "System")
        return replace(task, state=TaskState.EXCEPTION, message=text[0].upper() + text[1:] + ".", ended_s=at_s)

    def _install(self, part_id: str, version: str, at_s: float) -> None:
        installed = self._installed[part_id]
        before = installed.part.version
        installed.part = replace(installed.part, version=version)
        installed.is_broken, installed.pending_version = False, None
        self._record(at_s, "OK", f"{part_id} went from {before} to {version}", part_id)
