"""Pipelines played event by event."""

import pytest

from orchestrator.planning.parallel.simulate import Chunk, pipeline_s, play


def stages(*times: float, virtual: int = 1) -> list[list[Chunk]]:
    return [[Chunk(time, 2 * time) for time in times] for _ in range(virtual)]


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 4), (2, 4), (4, 4), (4, 16), (8, 24)])
def test_equal_stages_have_the_textbook_bubble(ranks: int, micro_batches: int) -> None:
    played = play(stages(*[1.0] * ranks), micro_batches, send_s=0.0)
    assert played.makespan_s == pytest.approx(3.0 * (micro_batches + ranks - 1))


@pytest.mark.parametrize("virtual", [2, 4])
def test_interleaving_divides_the_bubble(virtual: int) -> None:
    ranks, micro_batches = 4, 16
    played = play(stages(*[1.0 / virtual] * ranks, virtual=virtual), micro_batches, send_s=0.0)
    assert played.makespan_s == pytest.approx(3.0 * (micro_batches + (ranks - 1) / virtual))


def test_the_slowest_stage_sets_the_beat() -> None:
    assert play(stages(1.0, 1.0, 1.0, 2.0), 64, 0.0).makespan_s > 64 * 6.0
    assert play(stages(1.0, 1.0, 1.0, 2.0), 64, 0.0).makespan_s < 64 * 6.0 + 3 * 6.0


def test_sends_lengthen_a_step_and_never_shorten_it() -> None:
    assert play(stages(1.0, 1.0), 4, 0.5).makespan_s > play(stages(1.0, 1.0), 4, 0.0).makespan_s


def test_a_long_step_is_extrapolated_to_what_playing_it_all_gives() -> None:
    for chunks in (stages(1.0, 1.2, 0.9, 1.5), stages(0.5, 0.6, 0.5, 0.7, virtual=2)):
        assert pipeline_s(chunks, 80, 0.1) == pytest.approx(play(chunks, 80, 0.1).makespan_s, rel=1e-3)


def test_interleaving_wants_micro_batches_that_divide() -> None:
    with pytest.raises(ValueError, match="must divide"):
        play(stages(1.0, 1.0, virtual=2), 3, 0.0)
