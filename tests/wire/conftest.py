from collections.abc import Iterator

import pytest

from tests.wire.neighbours import Wire


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    wire = Wire(tmp_path_factory.mktemp("wire"))
    try:
        yield wire
    finally:
        wire.close()
