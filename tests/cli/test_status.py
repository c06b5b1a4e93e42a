"""How `rackray status` shows few nodes and thousands."""

from orchestrator.cli.status import status_rows

TOLD = [
    {"name": f"r{rack:03}-n{node}", "state": "ready", "since": 1000.0 - rack, "because": "the cell lists it alive"}
    for rack in range(1, 51)
    for node in range(1, 5)
]
SICK = {"name": "r002-n3", "state": "quarantined", "since": 400.0, "because": "GPU 1 failed to remap a row"}


def test_of_many_nodes_those_alike_share_a_line_with_the_longest_time() -> None:
    told = [SICK if row["name"] == SICK["name"] else row for row in TOLD]
    rows = status_rows(told, 1000.0, together=True)
    assert [row[1:] for row in rows] == [
        ("ready", "50 s", "the cell lists it alive"),
        ("quarantined", "10 min", "GPU 1 failed to remap a row"),
    ]
    assert rows[0][0] == "r[001,003-050]-n[1-4],r002-n[1-2,4]" and rows[1][0] == "r002-n3"


def test_few_nodes_have_a_line_each() -> None:
    assert [row[0] for row in status_rows(TOLD[:4], 1000.0, together=False)] == ["r001-n1", "r001-n2", "r001-n3", "r001-n4"]
