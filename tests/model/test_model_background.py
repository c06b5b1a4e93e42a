from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model import background
from model.background import BackgroundFile
from model.manifest import describe_file


def test_what_changes_after_the_start_is_not_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write = threading.Event()
    real = background.save_file

    def slow(*arguments: Any) -> None:
        assert may_write.wait(60)
        real(*arguments)

    monkeypatch.setattr(background, "save_file", slow)
    weights = torch.arange(4.0)
    file = BackgroundFile()
    file.start(tmp_path / "a", {"weights": weights})
    weights += 100
    assert file.is_busy
    may_write.set()
    assert file.finish() == describe_file(tmp_path, "a")
    assert not file.is_busy
    assert load_file(tmp_path / "a")["weights"].tolist() == [0, 1, 2, 3]


def test_memory_stays_at_one_copy(tmp_path: Path) -> None:
    file = BackgroundFile()
    weights = torch.arange(4.0)
    addresses = set()
    for name in ("a", "b", "c"):
        file.start(tmp_path / name, {"weights": weights})
        file.finish()
        addresses.add(file._buffers["weights"].data_ptr())
    assert len(addresses) == 1


def test_a_second_start_before_the_first_has_ended_is_refused(tmp_path: Path) -> None:
    file = BackgroundFile()
    file.start(tmp_path / "a", {"weights": torch.ones(1)})
    with pytest.raises(RuntimeError, match="not finished"):
        file.start(tmp_path / "b", {"weights": torch.ones(1)})
    file.finish()


def test_a_disk_that_does_not_take_it_is_told_where_it_can_be_acted_on(tmp_path: Path) -> None:
    file = BackgroundFile()
    (tmp_path / "taken").write_text("a file where a folder should be")
    file.start(tmp_path / "taken" / "a", {"weights": torch.ones(1)})
    with pytest.raises(OSError, match="taken"):
        file.finish()
    # And the next one may try again.
    file.start(tmp_path / "a", {"weights": torch.ones(1)})
    assert file.finish().size_bytes > 4
