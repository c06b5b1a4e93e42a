"""Collectives level by level: more bandwidth is never slower, more hops are never faster."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.planning.parallel.cases import Cases
from orchestrator.planning.parallel.communication import boundary_s, collective_s, data_s, tensor_s
from orchestrator.planning.parallel.constants import resolve
from orchestrator.planning.parallel.fitted import MEMORY, STEP_TIME
from orchestrator.planning.parallel.memory import memory_of
from orchestrator.planning.parallel.nccl import fastest_s
from tests.planning.parallel.test_rows_and_scores import a_row, study_of

SIZES = st.floats(1e3, 1e11)
RANKS = st.sampled_from([2, 4, 8, 16, 64, 256, 1024, 4096])


def a_case(**changed: float) -> Cases:
    case = study_of([a_row(n_gpus=512, dp=512)]).cases
    return case.with_columns(**{name: np.array([float(value)]) for name, value in changed.items()})


def seconds(size: float, ranks: float, stride: float = 1.0, rounds: float = 2.0, **changed: float) -> float:
    case = a_case(**changed)
    k = resolve(STEP_TIME, case)
    found = collective_s(case, k, np.array([size]), np.array([float(ranks)]), np.array([stride]), rounds)
    return float(found[0])


@given(
    size=SIZES, ranks=RANKS, stride=st.sampled_from([1.0, 2.0, 8.0]), rounds=st.sampled_from([1.0, 2.0]), more=st.floats(1.0, 8.0)
)
def test_more_bandwidth_is_never_slower(size: float, ranks: int, stride: float, rounds: float, more: float) -> None:
    case = a_case()
    plain = seconds(size, ranks, stride, rounds)
    for name in ("nvlink", "network"):
        assert seconds(size, ranks, stride, rounds, **{name: more * float(case.columns[name][0])}) <= plain * (1 + 1e-12)
    assert seconds(size, ranks, stride, rounds, spine_share=1.0 / more) >= plain * (1 - 1e-12)


@given(size=SIZES, ranks=RANKS, rounds=st.sampled_from([1.0, 2.0]))
def test_more_bytes_more_ranks_and_more_hops_are_never_faster(size: float, ranks: int, rounds: float) -> None:
    plain = seconds(size, ranks, rounds=rounds)
    assert seconds(2.0 * size, ranks, rounds=rounds) >= plain
    assert seconds(size, 2 * ranks, rounds=rounds) >= plain * (1 - 1e-12)
    assert seconds(size, ranks, rounds=rounds, leaf_gpus=8.0) >= plain * (1 - 1e-12)
    # The same ranks on nodes of one GPU each: every step crosses the network.
    assert seconds(size, ranks, rounds=rounds, domain=1.0, per_node=1.0) >= plain * (1 - 1e-12)


@given(wire_s=st.floats(0.0, 10.0), ranks=RANKS, nodes=RANKS)
def test_nccl_takes_the_fastest_way(wire_s: float, ranks: int, nodes: int) -> None:
    nodes = min(nodes, ranks)
    one, two = (
        float(fastest_s(np.array([wire_s]), rounds, np.array([float(ranks)]), np.array([float(nodes)]), np.zeros(1))[0])
        for rounds in (1.0, 2.0)
    )
    assert one >= wire_s
    # Trees: an all-reduce of a few bytes over thousands of nodes does not wait for a ring around all of them.
    if nodes == ranks >= 256 and wire_s < 1e-6:
        assert two < one


def test_small_messages_wait_for_latency_and_large_ones_for_the_wire() -> None:
    assert seconds(8.0, 8) == pytest.approx(seconds(8e3, 8), rel=0.1)
    assert seconds(8e9, 8) == pytest.approx(10.0 * seconds(8e8, 8), rel=0.1)


def test_an_oversubscribed_spine_slows_what_crosses_it_and_nothing_else() -> None:
    across, below = dict(leaf_gpus=64.0, spine_share=0.25), dict(leaf_gpus=64.0)
    assert seconds(1e9, 512, **across) > 2.0 * seconds(1e9, 512, **below)
    assert seconds(1e9, 64, **across) == seconds(1e9, 64, **below)


def test_terms_of_a_step_feel_their_level() -> None:
    case = a_case(tp=8, dp=64, pp=1)
    k = resolve(STEP_TIME, case)
    slow_net, slow_link = (case.with_columns(**{name: case.columns[name] / 4.0}) for name in ("network", "nvlink"))
    weights = np.array([1e9])
    assert data_s(slow_net, k, weights, np.ones(1))[0] > data_s(case, k, weights, np.ones(1))[0]
    assert tensor_s(slow_net, k)[0] == tensor_s(case, k)[0]
    assert tensor_s(slow_link, k)[0] > tensor_s(case, k)[0]
    piped = a_case(tp=8, dp=8, pp=8)
    assert boundary_s(piped.with_columns(network=piped.columns["network"] / 4.0), k)[0] > boundary_s(piped, k)[0]


def test_a_shard_group_keeps_gathers_on_nvlink_and_costs_the_memory_of_its_replicas() -> None:
    def case(framework: str, network_gbit: float) -> Cases:
        row = a_row(
            framework=framework, n_gpus=64, dp=64, tp=1, zero_stage=3, micro_batch=1, internode_gbit_s_per_node=network_gbit
        )
        return study_of([row]).cases

    def exchange_s(framework: str, network_gbit: float) -> float:
        at = case(framework, network_gbit)
        return float(data_s(at, resolve(STEP_TIME, at), np.array([8e9]), np.array([4.0]))[0])

    whole, hybrid = case("FSDP", 800), case("FSDP (hybrid)", 800)
    assert (whole.shard_ranks[0], hybrid.shard_ranks[0]) == (64, 8)
    assert exchange_s("FSDP (hybrid)", 800) < 0.7 * exchange_s("FSDP", 800)
    # A network of no end leaves what the wires inside a node take, which both pay.
    assert exchange_s("FSDP (hybrid)", 1e9) == pytest.approx(exchange_s("FSDP", 1e9), rel=0.25)
    state = {name: memory_of(at, MEMORY).state_bytes[0] for name, at in (("whole", whole), ("hybrid", hybrid))}
    assert state["hybrid"] == pytest.approx(8.0 * state["whole"])
