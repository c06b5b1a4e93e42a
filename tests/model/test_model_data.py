from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_launch import tiny_spec

from model.contract import RunSpec
from model.data import (
    END_OF_TEXT,
    Batches,
    Corpus,
    DataError,
    TextFile,
    open_corpus,
    prepare_corpus,
    prepared_folder,
    split_files,
    standard_library_files,
    unigram_cross_entropy_nats,
    unigram_entropy_nats,
    write_corpus,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[TextFile]:
    """Eighty small Python files out of a fixed recipe."""
    folder = tmp_path_factory.mktemp("sources")
    for number in range(80):
        lines = [f"def f{number}_{i}(x):\n    return x * {number * i} + len('word{i}')\n" for i in range(40)]
        (folder / f"module_{number:02d}.py").write_text("\n".join(lines))
    return [TextFile(path.name, path) for path in sorted(folder.iterdir())]


def a_spec(folder: Path, **changes: Any) -> RunSpec:
    return tiny_spec(folder / "run", **{"model": {"vocabulary": 300}, "data": {"heldout_fraction": 0.2}, **changes})


@pytest.fixture(scope="module")
def corpus(files: list[TextFile], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("prepared") / "corpus"
    write_corpus(folder, a_spec(folder.parent), files)
    return open_corpus(folder)


def test_the_same_files_give_the_same_bytes(corpus: Corpus, files: list[TextFile], tmp_path: Path) -> None:
    write_corpus(tmp_path / "again", a_spec(tmp_path), files)
    again = open_corpus(tmp_path / "again")
    assert again.facts == corpus.facts
    for name in ("tokenizer.json", "train.bin", "heldout.bin"):
        assert (again.folder / name).read_bytes() == (corpus.folder / name).read_bytes()


def test_heldout_files_are_kept_apart_and_every_file_is_on_one_side(corpus: Corpus, files: list[TextFile]) -> None:
    train, heldout = split_files(files, 0.2)
    assert {f.name for f in train} | {f.name for f in heldout} == {f.name for f in files}
    assert not {f.name for f in train} & {f.name for f in heldout}
    assert corpus.facts.heldout_files == tuple(f.name for f in heldout)
    text = corpus.tokenizer().decode(corpus.train_N.tolist(), skip_special_tokens=False)
    assert text == "".join(f.path.read_text() + END_OF_TEXT for f in train)
    # A file's side is its own: taking others away moves no one.
    assert {f.name for f in split_files(files[::2], 0.2)[1]} <= {f.name for f in heldout}


def test_replicas_together_see_the_global_batch_in_the_same_order_in_every_layout(corpus: Corpus, tmp_path: Path) -> None:
    def micro_batches(data: int, step: int) -> list[list[list[int]]]:
        spec = a_spec(tmp_path, layout={"data": data})
        of_replicas = [Batches(corpus, spec, replica).of_step(step) for replica in range(data)]
        rows = [[batch.tokens_BT.tolist() for batch in batches] for batches in of_replicas]
        return [batch for turn in zip(*rows, strict=True) for batch in turn]

    for step in (1, 2, 400):
        assert micro_batches(1, step) == micro_batches(2, step) == micro_batches(4, step)
    assert micro_batches(1, 1) != micro_batches(1, 2)


def test_one_epoch_sees_every_window_once_and_targets_are_the_next_tokens(corpus: Corpus, tmp_path: Path) -> None:
    spec = a_spec(tmp_path, batch={"global_sequences": 1, "micro_sequences": 1})
    batches = Batches(corpus, spec, 0)
    windows = (len(corpus.train_N) - 17) // 16
    seen = [batches.of_step(step)[0] for step in range(1, windows + 1)]
    rows = {batch.tokens_BT.tobytes() for batch in seen}
    grids = []
    for shift in range(16):
        starts = range(shift, shift + 16 * windows, 16)
        grids.append({corpus.train_N[s : s + 16].astype(np.int64).tobytes() for s in starts})
    assert rows in grids
    first = seen[0]
    assert first.tokens_BT[0, 1:].tolist() == first.targets_BT[0, :-1].tolist()
    second_epoch = {batches.of_step(windows + step)[0].tokens_BT.tobytes() for step in range(1, windows + 1)}
    assert second_epoch in grids
    assert second_epoch != rows


def test_a_resumed_run_finds_its_place_without_the_steps_before(corpus: Corpus, tmp_path: Path) -> None:
    spec = a_spec(tmp_path)
    walked = Batches(corpus, spec, 0)
    for step in range(1, 500):
        walked.of_step(step)
    jumped = Batches(corpus, spec, 0).of_step(500)
    assert [b.tokens_BT.tolist() for b in jumped] == [b.tokens_BT.tolist() for b in walked.of_step(500)]


def test_another_seed_is_another_order_and_the_heldout_text_stays_the_same(corpus: Corpus, tmp_path: Path) -> None:
    one, two = (Batches(corpus, a_spec(tmp_path, seed=seed), 0) for seed in (1, 2))
    assert one.of_step(1)[0].tokens_BT.tolist() != two.of_step(1)[0].tokens_BT.tolist()
    assert [b.tokens_BT.tolist() for b in one.heldout()] == [b.tokens_BT.tolist() for b in two.heldout()]


def test_too_little_heldout_text_is_refused_with_the_setting_to_change(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"an evaluation needs 80000 .* raise data.heldout_fraction"):
        Batches(corpus, a_spec(tmp_path, evaluate_batches=10_000), 0)


def test_a_vocabulary_the_text_cannot_fill_is_refused(files: list[TextFile], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not 50000; set model.vocabulary to \d+"):
        write_corpus(tmp_path / "corpus", a_spec(tmp_path, model={"vocabulary": 50_000}), files)


def test_unigram_entropies_are_those_of_a_coin() -> None:
    fair, biased = np.array([5, 5, 0]), np.array([8, 2, 0])
    assert unigram_entropy_nats(fair) == pytest.approx(math.log(2))
    assert unigram_entropy_nats(biased) == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))
    # Training counts with one added: 6/13, 6/13, 1/13.
    expected = -(0.8 + 0.2) * math.log(6 / 13)
    assert unigram_cross_entropy_nats(fair, biased) == pytest.approx(expected)


def test_the_standard_library_is_prepared_once_and_two_at_once_do_no_harm(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec(runs / "data-test")
    corpus = prepare_corpus(spec)
    assert corpus.facts.unigram_entropy_nats > 3
    assert {"os.py", "typing.py"} < {file.name for file in standard_library_files()}
    before = prepared_folder(spec).stat().st_ino

    # A second preparer that had begun before the first one finished: its draft must give way.
    small = standard_library_files()[:40]
    looked = []

    def not_there_yet(path: Path) -> bool:
        looked.append(path)
        return len(looked) > 1

    monkeypatch.setattr("model.data.standard_library_files", lambda: small)
    monkeypatch.setattr(Path, "is_file", not_there_yet)
    again = prepare_corpus(spec)
    monkeypatch.undo()
    assert again.facts == corpus.facts
    assert prepared_folder(spec).stat().st_ino == before
    assert [path.name for path in prepared_folder(spec).parent.iterdir()] == [prepared_folder(spec).name]


def test_a_prepared_corpus_that_is_not_whole_is_refused(corpus: Corpus, files: list[TextFile], tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    write_corpus(folder, a_spec(tmp_path), files)
    with (folder / "train.bin").open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(DataError, match="delete it to remake it"):
        open_corpus(folder)
    (folder / "corpus.json").write_text("{")
    with pytest.raises(DataError, match="is not a prepared corpus"):
        open_corpus(folder)
