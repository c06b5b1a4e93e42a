"""Failures inside the objective: what they take of a run, and what that changes in a plan."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.shape import PRESETS
from orchestrator.domain.layout import Layout
from orchestrator.planning.parallel.cluster import GpuCluster, PlanJob, cluster_by_hand
from orchestrator.planning.parallel.goodput import checkpoint_s, goodput_of
from orchestrator.planning.parallel.planner import other_fleets, plan, predict
from orchestrator.planning.parallel.search import cases_of

JOB = PlanJob(shape=PRESETS["llama-70b"], global_sequences=2048, sequence_tokens=4096, steps=100_000, framework="megatron-core")


def cases_on(cluster: GpuCluster, zero: int = 1):  # type: ignore[no-untyped-def]
    return cases_of([(cluster.gpus // 32, 8, 4, 1, 1, zero, 1, 0, 0)], JOB, cluster)


@given(nodes=st.integers(1, 20_000), failures=st.floats(0.0, 1.0), restart_s=st.floats(0.0, 7200.0), gb_s=st.floats(0.01, 100.0))
def test_shares_of_time_add_up_and_more_trouble_never_keeps_more(
    nodes: int, failures: float, restart_s: float, gb_s: float
) -> None:
    cluster = replace(
        cluster_by_hand("H100", nodes), failures_per_node_day=failures, restart_s=restart_s, storage_gb_s_per_node=gb_s
    )
    found = goodput_of(cases_on(cluster), cluster)
    total = found.kept + found.checkpoints + found.again + found.restarts
    assert total == pytest.approx(1.0)
    assert min(float(part[0]) for part in (found.kept, found.checkpoints, found.again, found.restarts)) >= 0.0
    for worse in (
        replace(cluster, failures_per_node_day=2.0 * failures),
        replace(cluster, restart_s=2.0 * restart_s),
        replace(cluster, storage_gb_s_per_node=gb_s / 2.0),
    ):
        assert goodput_of(cases_on(worse), worse).kept[0] <= found.kept[0] * (1 + 1e-9)


def test_the_interval_is_the_one_that_keeps_most() -> None:
    cluster = cluster_by_hand("H100", 512)
    found, cases = goodput_of(cases_on(cluster), cluster), cases_on(cluster)
    rate = cluster.nodes * cluster.failures_per_node_day / 86_400.0
    every_s = found.every_s[0] * np.array([0.5, 1.0, 2.0])
    kept = every_s * rate * np.exp(-rate * cluster.restart_s) / np.expm1(rate * (every_s + checkpoint_s(cases, cluster)[0]))
    assert kept[1] == max(kept)
    assert kept[1] == pytest.approx(found.kept[0])


def test_one_replica_writes_a_checkpoint_more_slowly_than_shards_of_all_ranks() -> None:
    cluster = cluster_by_hand("H100", 64)
    assert checkpoint_s(cases_on(cluster, zero=0), cluster)[0] > 5.0 * checkpoint_s(cases_on(cluster, zero=1), cluster)[0]


def test_without_failures_all_time_is_kept() -> None:
    cluster = replace(cluster_by_hand("H100", 64), failures_per_node_day=0.0)
    found = predict(JOB, cluster, Layout(data=16, tensor=8, pipeline=4))
    assert found.goodput == 1.0
    assert found.run_s == pytest.approx(JOB.steps * found.step_s)


def test_plans_are_ranked_by_the_time_of_the_whole_run() -> None:
    """With disks this slow, ZeRO-0 (one replica writes) loses to ZeRO-1 although its step is as fast."""
    cluster = replace(cluster_by_hand("H100", 64), failures_per_node_day=0.2, storage_gb_s_per_node=0.05)
    ranked = plan(JOB, cluster, keep=20).ranked
    assert [row.run_s for row in ranked[:4]] == sorted(row.run_s for row in ranked[:4])
    for row in ranked:
        assert row.goodput + sum(row.lost.values()) == pytest.approx(1.0)
        assert row.run_s == pytest.approx(JOB.steps * row.step_s / row.goodput)
    assert ranked[0].layout.zero == 1


def test_a_larger_fleet_is_faster_but_keeps_less() -> None:
    cluster = cluster_by_hand("H100", 64)
    sizes = other_fleets(plan(JOB, cluster))
    assert [nodes for nodes, _ in sizes] == [16, 32, 128, 256]
    kept = [row.goodput for _, row in sizes]
    assert kept == sorted(kept, reverse=True)
    days = [row.run_s for _, row in sizes]
    assert days == sorted(days, reverse=True)
    assert days[0] / days[-1] < 16.0
