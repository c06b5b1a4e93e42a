"""Trains one run, as one rank: `python -m model.train RUN.json`, under torchrun or with the rank environment by hand.

    torchrun --nproc-per-node 2 -m model.train RUN.json

Exit codes are in `model.contract.ExitCode`.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from model.contract import ContractError, ExitCode, RunSpec
from model.guard import Guard
from model.progress import Reporter, ReportError, complain, furthest_step
from model.ranks import RankEnvironment
from model.resumption import CheckpointError, Resumption, changes_of_text

if TYPE_CHECKING:
    from model.checkpoint import Checkpoints, Saved
    from model.corpora import AnyBatches, AnyCorpus
    from model.engine import Engine, StepResult

COLLECTIVE_TIMEOUT_S = 1800.0
"""How long a rank waits for the others before it gives up; hangs are found sooner, by the heartbeats."""
_WAY_OUT = {
    "nan": "Lower optimizer.lr or raise optimizer.warmup_steps, and resume; guard.on_nan: skip passes over single steps",
    "spike": "Resume with guard.on_spike: skip or ignore, or with a lower optimizer.lr",
}


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m model.train", description="Train one run, as one rank of it.")
    parser.add_argument("run", type=Path, metavar="RUN.json", help="the run; its fields are in model/contract.py")
    path: Path = parser.parse_args(arguments).run
    stop = StopRequest()
    signal.signal(signal.SIGTERM, stop.raise_flag)
    try:
        spec = RunSpec.from_json(path.read_text(encoding="utf-8"))
        ranks = RankEnvironment.from_environment(os.environ)
        spec.check_world(ranks.world_size)
    except (ContractError, OSError, UnicodeDecodeError) as error:
        for problem in error.problems if isinstance(error, ContractError) else (str(error),):
            print(f"{path}: {problem}", file=sys.stderr)
        return ExitCode.BAD_RUN
    os.environ.update(ranks.as_environment())
    try:
        report = Reporter(spec, ranks.rank)
    except ReportError as error:
        return _fail(ranks, error, ExitCode.BAD_RUN)
    try:
        try:
            report.beat("starting", 0)
            return _run(spec, ranks, report, stop)
        finally:
            report.close()
    except ReportError as error:
        return _fail(ranks, error, ExitCode.CRASHED)


class StopRequest:
    """SIGTERM only raises this flag; the loop sees it between two steps."""

    def __init__(self) -> None:
        self.requested = False

    def raise_flag(self, signal_number: int, frame: FrameType | None) -> None:
        self.requested = True


def _run(spec: RunSpec, ranks: RankEnvironment, report: Reporter, stop: StopRequest) -> ExitCode:
    """Everything from the data to the end, with the errors an operator can act on told apart."""
    # numpy, torch and deepspeed take seconds to import, which a bad RUN.json should not cost.
    from model.corpora import prepare
    from model.corpus import DataError

    try:
        if ranks.rank == 0:
            report.beat("data")
            prepare(spec)
        from model.checkpoint import Checkpoints
        from model.engine import build_engine
        from model.engine_config import gpu_problems
        from model.engine_ranks import PeerLost, as_peer_lost, join_ranks, leave_ranks
    except DataError as error:
        return _fail(ranks, error, ExitCode.BAD_DATA)
    if problems := gpu_problems(spec):
        return _fail(ranks, ContractError(tuple(problems)), ExitCode.BAD_RUN)

    try:
        with as_peer_lost():
            join_ranks(COLLECTIVE_TIMEOUT_S)
            report.beat("data")
            corpus = _same_corpus(spec, ranks.rank)
            checkpoints = Checkpoints(spec, ranks.rank, ranks.world_size)
            resumption = checkpoints.find()
            report.beat("engine")
            engine = build_engine(spec, is_drawn=resumption.choice is None)
            report.peak_tflops = engine.peak_tflops()
            outcome = train(spec, engine, corpus, checkpoints, resumption, report, stop)
            checkpoints.close()
            engine.close()
            leave_ranks()
            return outcome
    except DataError as error:
        return _fail(ranks, error, ExitCode.BAD_DATA)
    except CheckpointError as error:
        return _fail(ranks, error, ExitCode.BAD_CHECKPOINT)
    except PeerLost as error:
        return _fail(ranks, error, ExitCode.PEER_LOST)


def train(
    spec: RunSpec,
    engine: Engine,
    corpus: AnyCorpus,
    checkpoints: Checkpoints,
    resumption: Resumption,
    report: Reporter,
    stop: StopRequest,
) -> ExitCode:
    """The loop.  Collective; every rank returns the same."""
    from model.corpora import batches_of  # late: numpy and tokenizers

    batches = batches_of(corpus, spec, engine.replica)
    guard, text = Guard(spec.guard), corpus.notes()
    _start(spec, engine, guard, corpus, resumption, report)
    heldout: float | None = None
    for step in range(resumption.step + 1, spec.steps + 1):
        with report.phase("data"):
            micro_batches = batches.of_step(step)
        result = engine.train_step(step, micro_batches, guard)
        report.spent(forward_backward=result.forward_backward_s, update=result.update_s)
        report.beat("step", step)
        if result.verdict.trouble:
            _tell_trouble(result, report)
        if result.verdict.is_end:
            _tell_saved(checkpoints.finish(), report)
            complain(report.rank, f"step {step}: {result.verdict.because}; not applied. {_WAY_OUT[result.verdict.trouble]}")
            return ExitCode.LOSS_SPIKE if result.verdict.trouble == "spike" else ExitCode.NOT_A_NUMBER
        last = step == spec.steps
        heldout = _evaluate(engine, batches, corpus, report) if last or _due(step, spec.evaluate_every_steps) else None
        if heldout is not None and not math.isfinite(heldout):
            # As text, for JSON has no NaN.
            report.event("nan", loss=str(result.loss), grad_norm=str(result.grad_norm), heldout_loss=str(heldout))
            _tell_saved(checkpoints.finish(), report)
            complain(report.rank, f"step {step}: the held-out loss is {heldout}. {_WAY_OUT['nan']}")
            return ExitCode.NOT_A_NUMBER
        if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
            report.step(step, result, memory_bytes=engine.memory_bytes(), heldout_loss=heldout)
        with report.phase("checkpoint"):
            _tell_saved(checkpoints.poll(engine), report)
        # Asked of all: a signal reaches the ranks at different steps, and all must leave after the same one.
        stopping = engine.any_rank(stop.requested)
        if stopping or last or _due(step, spec.checkpoint.every_steps):
            is_awaited = stopping or last or not spec.checkpoint.background
            notes = {"guard": guard.to_json(), "text": text}
            _save(engine, checkpoints, notes, step, report, is_awaited)
        if stopping and not last:
            report.event("stopped", because="SIGTERM", steps_left=spec.steps - step)
            return ExitCode.DONE
    _tell_saved(checkpoints.finish(), report)
    report.event("finished", heldout_loss=heldout, **_yardsticks(corpus))
    return ExitCode.DONE


def _start(spec: RunSpec, engine: Engine, guard: Guard, corpus: AnyCorpus, resumption: Resumption, report: Reporter) -> None:
    """Loads the checkpoint, if there is one, and tells what this attempt begins with."""
    furthest = furthest_step(spec)
    changes = resumption.changes(spec)
    if resumption.choice is not None:
        report.beat("resume", resumption.step)
        notes = engine.restore(resumption.choice.folder)
        guard.restore(notes.get("guard", {}))
        changes |= changes_of_text(resumption.choice.folder, notes.get("text", {}), corpus.notes())
    if "layout" in changes:
        then, now = changes["layout"]
        report.event("layout_changed", then=then, now=now, resumed_from=resumption.step)
    report.event(
        "started",
        run_id=spec.run_id,
        from_step=resumption.step,
        steps=spec.steps,
        resumed_from=resumption.choice.folder.name if resumption.choice else None,
        steps_lost=resumption.steps_lost(furthest) if spec.resume else 0,
        changes=changes,
        skipped_checkpoints=[asdict(skipped) for skipped in resumption.skipped],
        parameters=spec.model.shape().parameters().total,
        layout=asdict(spec.layout),
        precision=spec.precision,
        train_tokens=corpus.facts.train_tokens,
        heldout_tokens=corpus.facts.heldout_tokens,
        **_yardsticks(corpus),
    )


def _evaluate(engine: Engine, batches: AnyBatches, corpus: AnyCorpus, report: Reporter) -> float:
    report.beat("evaluate")
    with report.phase("evaluate"):
        loss = engine.evaluate(batches.heldout())
    report.event("heldout", heldout_loss=loss if math.isfinite(loss) else str(loss), **_yardsticks(corpus))
    return loss


def _tell_trouble(result: StepResult, report: Reporter) -> None:
    verdict = result.verdict
    done = "stop" if verdict.is_end else "skip" if not verdict.is_applied else "ignore"
    # As text, for JSON has no NaN.
    numbers = {"loss": str(result.loss), "grad_norm": str(result.grad_norm)}
    report.event(verdict.trouble, action=done, because=verdict.because, **numbers)


def _save(engine: Engine, checkpoints: Checkpoints, notes: dict[str, Any], step: int, report: Reporter, is_awaited: bool) -> None:
    report.beat("checkpoint")
    with report.phase("checkpoint"):
        _tell_saved(checkpoints.begin(engine, step, notes), report)
        if is_awaited:
            _tell_saved(checkpoints.finish(), report)


def _tell_saved(saved: Saved | None, report: Reporter) -> None:
    if saved is not None:
        report.event_at(saved.step, "checkpoint", size_bytes=saved.size_bytes, save_s=saved.save_s, held_s=saved.held_s)


def _yardsticks(corpus: AnyCorpus) -> dict[str, float]:
    """What knowing the frequencies of tokens and nothing else would reach, in nat/token."""
    facts = corpus.facts
    return {"unigram_entropy_nats": facts.unigram_entropy_nats, "unigram_heldout_nats": facts.unigram_heldout_nats}


def _same_corpus(spec: RunSpec, rank: int) -> AnyCorpus:
    """The prepared corpus, after every rank has found the same one.

    Rank 0 has made it before it met the others; a rank that does not see rank 0's disk makes its own here.
    """
    # late: numpy, tokenizers, torch and deepspeed
    from model.corpora import folder_of, open_or_prepare
    from model.corpus import DataError
    from model.engine_ranks import from_every_rank, from_rank_zero

    found: AnyCorpus | DataError
    try:
        # Named by rank 0, for a rank on another machine may see the tokens and not the text.
        folder = from_rank_zero(folder_of(spec) if rank == 0 else None)
        found = open_or_prepare(spec, folder)
        words = found.facts.digest
    except DataError as error:
        found = error
        words = str(error)
    seen = from_every_rank(words)
    if isinstance(found, DataError):
        raise found
    for other, digest in enumerate(seen):
        if digest != seen[0]:
            raise DataError(
                f"rank {other} has another corpus than rank 0 ({digest:.80} instead of {seen[0]:.80}); "
                "use the same Python on every node, or a data.directory that all ranks share"
            )
    return found


def _due(step: int, every_steps: int) -> bool:
    return every_steps > 0 and step % every_steps == 0


def _fail(ranks: RankEnvironment, error: Exception, code: ExitCode) -> ExitCode:
    complain(ranks.rank, error)
    return code


def leave(code: int) -> NoReturn:
    """Ends the process with this code, without the interpreter's own clean-up.

    All that counts is on disk by now.  gloo's and DeepSpeed's native threads outlive the process group; one that needs the
    interpreter while that shuts down aborts the process ("terminate called without an active exception"), and a finished run
    would count as crashed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
