"""Which nodes say one GPU or one host key is theirs: the index beside the records."""

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.event import Event
from orchestrator.domain.identities import IdentityBook, identities_of, is_one
from orchestrator.domain.node import Fact, NodeRecord, NodeState, changed
from orchestrator.domain.operation import Action
from orchestrator.domain.state import ClusterState

NAMES = ("a", "b", "c")


def probed(name: str, *uuids: str, state: NodeState = NodeState.FIRMWARE_OK, at_s: float = 1.0) -> NodeRecord:
    gpus = [{"uuid": uuid, "serial": "0"} for uuid in uuids]  # a serial that nobody set
    return NodeRecord(name, state, facts={Action.NODE_PROBE: Fact(at_s, {"gpus": gpus})})


def test_who_says_it_second_is_the_twin_and_both_names_are_in_the_sentence() -> None:
    book = IdentityBook()
    book.follow(probed("a", "GPU-12", "GPU-34"))
    book.follow(probed("b", "GPU-56", "GPU-34"))
    assert book.twin_of("a", NAMES) is None
    assert str(book.twin_of("b", NAMES)).startswith("b and a both say GPU UUID GPU-34, a first; one GPU cannot be in two nodes")


def test_a_node_out_of_service_and_a_node_out_of_the_spec_claim_nothing() -> None:
    book = IdentityBook()
    first = probed("a", "GPU-12")
    book.follow(first)
    book.follow(probed("b", "GPU-12"))
    assert book.twin_of("b", ("b", "c")) is None, "a has left the spec"
    book.follow(changed(first, state=NodeState.QUARANTINED))
    assert book.twin_of("b", NAMES) is None
    book.follow(first)
    assert book.twin_of("b", NAMES) is None and book.twin_of("a", NAMES) is not None, "now a is the later one"


def test_a_word_that_every_node_says_costs_no_more_per_node() -> None:
    book, count = IdentityBook(), 20_000
    for number in range(count):
        book.follow(probed(f"n{number}", "GPU-12"))
    names = {f"n{number}" for number in range(count)}
    assert (twin := book.twin_of(f"n{count - 1}", names)) is not None and twin.other == "n0"
    for number in range(count - 1):
        book.follow(probed(f"n{number}", "GPU-12", state=NodeState.RETIRED))
    assert book.twin_of(f"n{count - 1}", names) is None


def test_placeholders_name_nothing() -> None:
    assert not any(map(is_one, ("", "0", "0000-0000", "N/A", "unknown", "ffffffff")))
    assert is_one("1650000000001") and is_one("00000000-0000-4000-8000-000000000001")
    book = IdentityBook()
    for name in NAMES:
        book.follow(probed(name, "GPU-00000000-0000-0000-0000-000000000000"))
    assert [book.twin_of(name, NAMES) for name in NAMES] == [None] * 3


def test_one_host_key_on_two_nodes_is_noticed_when_the_image_service_reports_it() -> None:
    state = ClusterState(nodes={name: NodeRecord(name, NodeState.POWERED) for name in NAMES})
    for name in ("a", "b"):
        facts = {"installed": True, "ssh_host_key": "ssh-ed25519 AAAA"}
        data = {"operation": "1", "action": "image.report", "status": "done", "facts": facts}
        state.apply(Event("node.ended", name, data, at_s=5.0))
    twin = state.identities.twin_of("b", NAMES)
    assert twin is not None and (twin.other, twin.kind) == ("a", "SSH host key")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(NAMES),
            st.lists(st.sampled_from(("GPU-12", "GPU-34", "GPU-56")), max_size=3),
            st.sampled_from((NodeState.FIRMWARE_OK, NodeState.READY, NodeState.QUARANTINED)),
        ),
        max_size=20,
    )
)
def test_the_index_says_what_a_scan_over_all_records_says(changes: list[tuple[str, list[str], NodeState]]) -> None:
    book, records = IdentityBook(), dict[str, NodeRecord]()
    for name, uuids, state in changes:
        records[name] = probed(name, *uuids, state=state)
        book.follow(records[name])
        claims = {
            each.name: {said for said in identities_of(each) if is_one(said[1])}
            for each in records.values()
            if each.state is not NodeState.QUARANTINED
        }
        for one in NAMES:
            shared = [other for other in claims if other != one and one in claims and claims[one] & claims[other]]
            twin = book.twin_of(one, NAMES)
            assert twin is None or twin.other in shared
            if shared and twin is None:
                assert any(book.twin_of(other, NAMES) is not None for other in shared), "one of them is the later"
        again = IdentityBook()
        again.follow_all(records.values())
        assert again._first.keys() == book._first.keys() and again._later.keys() == book._later.keys()
