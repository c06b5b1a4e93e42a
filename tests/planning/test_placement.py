from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.node import NodeState
from orchestrator.planning.placement import CannotPlace, PlaceableNode, Placement, place
from tests.planning.run_world import a_job, a_node, four_nodes


@st.composite
def clusters(draw: st.DrawFn) -> dict[str, Any]:
    pipeline, data, tensor = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 4]))
    per_node = draw(st.sampled_from([each for each in (1, 2, 4) if pipeline * data * tensor % each == 0]))
    count = draw(st.integers(1, 24))
    states = st.sampled_from([NodeState.READY] * 4 + [NodeState.QUARANTINED, NodeState.ALLOCATED, NodeState.CONFIGURED])
    nodes = [
        a_node(f"n{i}", f"leaf-{draw(st.integers(1, 5))}", draw(st.sampled_from("AB")), state=draw(states), run="other-1")
        for i in range(count)
    ]
    names = [node.name for node in nodes]
    job = a_job(
        nodes=pipeline * data * tensor // per_node,
        ranks_per_node=per_node,
        spares=draw(st.integers(0, 3)),
        layout={"pipeline": pipeline, "tensor": tensor, "data": data, "zero": 1},
    )
    excluded = {name: "it crashed twice" for name in draw(st.sets(st.sampled_from(names), max_size=4))}
    held = {name: "other-1" for name in draw(st.sets(st.sampled_from(names), max_size=4))}
    return {"job": job, "nodes": nodes, "excluded": excluded, "held": held, "order": draw(st.permutations(nodes))}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(clusters())
def test_a_placement_is_a_permutation_on_free_nodes_and_does_not_depend_on_their_order(cluster: dict[str, Any]) -> None:
    job, nodes, excluded, held = (cluster[name] for name in ("job", "nodes", "excluded", "held"))
    free = {node.name for node in nodes if node.state is NodeState.READY} - excluded.keys() - held.keys()
    found = place(job, nodes, excluded, held)
    assert found == place(job, cluster["order"], excluded, held)
    if len(free) < job.nodes:
        assert isinstance(found, CannotPlace) and found.why and found.smallest_change
        assert f"needs {job.nodes} ready nodes and {len(free)} are free" in found.why
        return
    assert isinstance(found, Placement)
    assert [rank for rank, _ in found.ranks] == list(range(job.ranks))
    used = [node for _, node in found.ranks]
    assert {used.count(node) for node in used} == {job.ranks_per_node}
    assert set(used) | set(found.spares) <= free
    assert not set(used) & set(found.spares)
    assert len(found.spares) == min(job.spares, len(free) - job.nodes)


def test_the_stages_of_a_replica_share_a_leaf_and_the_replicas_are_spread() -> None:
    found = place(a_job(spares=2), four_nodes(spares=2), {}, {})
    assert isinstance(found, Placement)
    node_of = dict(found.ranks)
    assert [node_of[0], node_of[2]] == ["r01-n1", "r01-n2"]
    assert [node_of[1], node_of[3]] == ["r02-n1", "r02-n2"]
    assert found.spares == ("r01-n3", "r02-n3")


def test_tensor_ranks_share_a_node_and_the_stages_of_a_replica_a_leaf() -> None:
    layout = {"pipeline": 2, "tensor": 2, "data": 2, "zero": 1}
    found = place(a_job(ranks_per_node=2, layout=layout), four_nodes(), {}, {})
    assert isinstance(found, Placement)
    # rank = (stage x 2 + replica) x 2 + part
    assert [node for _, node in found.ranks] == ["r01-n1"] * 2 + ["r02-n1"] * 2 + ["r01-n2"] * 2 + ["r02-n2"] * 2


def test_sequence_ranks_stand_between_tensor_ranks_and_replicas() -> None:
    found = place(a_job(layout={"sequence": 2, "data": 2, "zero": 1}), four_nodes(), {}, {})
    assert isinstance(found, Placement)
    # rank = replica x 2 + part of the tokens; the two of a replica share a leaf
    assert [node for _, node in found.ranks] == ["r01-n1", "r01-n2", "r02-n1", "r02-n2"]


def test_a_ring_of_replicas_crosses_each_leaf_boundary_once() -> None:
    found = place(a_job(layout={"data": 4, "zero": 3}), four_nodes(), {}, {})
    assert isinstance(found, Placement)
    assert [node for _, node in found.ranks] == ["r01-n1", "r01-n2", "r02-n1", "r02-n2"]


def test_a_replica_that_no_leaf_can_hold_is_placed_across_leaves_and_says_so() -> None:
    nodes = [a_node(f"n{i}", f"leaf-{i}") for i in range(4)]
    found = place(a_job(), nodes, {}, {})
    assert isinstance(found, Placement) and "2 pipeline replicas span" in found.because


def test_a_run_may_be_placed_again_on_its_own_nodes() -> None:
    mine = [a_node(f"n{i}", state=NodeState.ALLOCATED, run="lm-1") for i in range(4)]
    assert isinstance(place(a_job(), mine, {}, {}, "lm-1"), Placement)
    assert isinstance(place(a_job(), mine, {}, {}, "lm-2"), CannotPlace)


def test_the_cheapest_change_is_named() -> None:
    def change(last: PlaceableNode, **arguments: Any) -> str:
        found = place(a_job(), [*four_nodes()[:3], last], arguments.get("excluded", {}), arguments.get("held", {}))
        assert isinstance(found, CannotPlace)
        return found.smallest_change

    assert "wait until run lm-zero3-1 ends" in change(a_node("x"), held={"x": "lm-zero3-1"})
    assert "rackray apply" in change(a_node("x", state=NodeState.CONFIGURED))
    quarantined = a_node("x", state=NodeState.QUARANTINED, because="GPU 1: row remap pending")
    assert "GPU 1: row remap pending" in change(quarantined) and "requalify x" in change(quarantined)
    assert "left the cell" in change(a_node("x"), excluded={"x": "left the cell"})
    short = place(a_job(), four_nodes()[:3], {}, {})
    assert isinstance(short, CannotPlace) and "add 1 more" in short.smallest_change
