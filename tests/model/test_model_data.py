from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from training_launch import tiny_spec

from model.contract import RunSpec
from model.corpus import (
    END_OF_TEXT,
    Corpus,
    DataError,
    TextFile,
    corpus_files,
    open_corpus,
    prepare_corpus,
    prepared_folder,
    split_files,
    standard_library_files,
    unigram_cross_entropy_nats,
    unigram_entropy_nats,
    write_corpus,
)
from model.data import Batches, shuffled
from model.tokens import Tokens, TokenWriter


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[TextFile]:
    """Eighty small Python files out of a fixed recipe."""
    folder = tmp_path_factory.mktemp("sources")
    for number in range(80):
        lines = [f"def f{number}_{i}(x):\n    return x * {number * i} + len('word{i}')\n" for i in range(40)]
        (folder / f"module_{number:02d}.py").write_text("\n".join(lines))
    return [TextFile(path.name, path) for path in sorted(folder.iterdir())]


def whole(tokens: Tokens) -> NDArray[np.int64]:
    return tokens.read(0, len(tokens))


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
    for name in ("tokenizer.json", "train-00000.bin", "heldout-00000.bin"):
        assert (again.folder / name).read_bytes() == (corpus.folder / name).read_bytes()


def test_heldout_files_are_kept_apart_and_every_file_is_on_one_side(corpus: Corpus, files: list[TextFile]) -> None:
    train, heldout = split_files(files, 0.2)
    assert {f.name for f in train} | {f.name for f in heldout} == {f.name for f in files}
    assert not {f.name for f in train} & {f.name for f in heldout}
    assert corpus.facts.heldout_files == tuple(f.name for f in heldout)
    text = corpus.tokenizer().decode(whole(corpus.train).tolist(), skip_special_tokens=False)
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
    windows = (len(corpus.train) - 17) // 16
    seen = [batches.of_step(step)[0] for step in range(1, windows + 1)]
    rows = {batch.tokens_BT.tobytes() for batch in seen}
    grids = []
    for shift in range(16):
        starts = range(shift, shift + 16 * windows, 16)
        grids.append({corpus.train.read(s, 16).tobytes() for s in starts})
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

    monkeypatch.setattr("model.corpus.standard_library_files", lambda: small)
    monkeypatch.setattr(Path, "is_file", not_there_yet)
    again = prepare_corpus(spec)
    monkeypatch.undo()
    assert again.facts == corpus.facts
    assert prepared_folder(spec).stat().st_ino == before
    assert [path.name for path in prepared_folder(spec).parent.iterdir()] == [prepared_folder(spec).name]


def test_a_prepared_corpus_that_is_not_whole_is_refused(corpus: Corpus, files: list[TextFile], tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    write_corpus(folder, a_spec(tmp_path), files)
    with (folder / "train-00000.bin").open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(DataError, match="delete it to remake it"):
        open_corpus(folder)
    (folder / "corpus.json").write_text("{")
    with pytest.raises(DataError, match="is not a prepared corpus"):
        open_corpus(folder)


@given(st.integers(1, 3000), st.integers(0, 9))
def test_a_shuffle_puts_everything_in_one_place_each_and_needs_no_table(size: int, seed: int) -> None:
    places = shuffled(np.arange(size), size, f"{seed}/0")
    assert sorted(places.tolist()) == list(range(size))
    some = np.array([size // 2, 0, size - 1])
    assert shuffled(some, size, f"{seed}/0").tolist() == places[some].tolist()


def test_a_shuffle_leaves_no_order_behind() -> None:
    size = 10_000
    places = shuffled(np.arange(size), size, "7/0")
    other = shuffled(np.arange(size), size, "7/1")
    # Independent uniform places are size/3 apart on average, and correlate by about 1/sqrt(size).
    assert np.abs(np.diff(places)).mean() == pytest.approx(size / 3, rel=0.05)
    for pair in ((np.arange(size), places), (places, other), (places[:-1], places[1:])):
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.05
    # Far beyond what a table could hold.
    assert 0 <= shuffled(np.array([10**15]), 10**16, "7/0")[0] < 10**16


@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=60), st.integers(1, 25), st.data())
def test_tokens_in_several_files_read_as_one_sequence(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], shard_tokens: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("tokens")
    with TokenWriter(folder, "train", 70_001, shard_tokens) as writer:
        for first in range(0, len(ids), 7):
            writer.write(np.array(ids[first : first + 7], dtype=np.int64))
    tokens = Tokens.open(folder, "train", 70_001)
    assert len(tokens) == len(ids)
    assert len(list(folder.iterdir())) == math.ceil(len(ids) / shard_tokens)
    start = data.draw(st.integers(0, len(ids)))
    count = data.draw(st.integers(0, len(ids) - start))
    assert tokens.read(start, count).tolist() == ids[start : start + count]
    with pytest.raises(IndexError):
        tokens.read(start, len(ids) - start + 1)


def test_how_the_tokens_are_cut_into_files_changes_no_batch(corpus: Corpus, files: list[TextFile], tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", a_spec(tmp_path), files, shard_tokens=1000)
    cut = open_corpus(tmp_path / "corpus")
    assert len(cut.train.shards) > 5
    assert cut.facts == corpus.facts
    for step in (1, 30):
        one, other = (Batches(c, a_spec(tmp_path), 0).of_step(step) for c in (corpus, cut))
        assert [b.tokens_BT.tolist() for b in one] == [b.tokens_BT.tolist() for b in other]


@pytest.fixture
def texts(files: list[TextFile], tmp_path: Path) -> Path:
    """A folder of text files with what does not belong to it."""
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for file in files:
        (folder / "deep" / file.name.replace(".py", ".txt")).write_bytes(file.path.read_bytes())
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    (folder / ".hidden").write_text("x")
    return folder


def test_a_folder_of_text_files_is_a_corpus_and_a_changed_one_another(texts: Path, tmp_path: Path) -> None:
    spec = a_spec(tmp_path, data={"corpus": str(texts)})
    corpus = prepare_corpus(spec)
    assert corpus.facts.train_files + len(corpus.facts.heldout_files) == 80
    assert all(name.startswith("deep/") for name in corpus.facts.heldout_files)
    first = prepared_folder(spec)
    assert first.name.startswith("texts-")
    (texts / "more.txt").write_text("one more file")
    assert prepared_folder(spec) != first


def test_one_long_file_is_cut_at_its_lines_so_that_some_can_be_held_out(
    files: list[TextFile], tmp_path: Path, corpus: Corpus
) -> None:
    folder = tmp_path / "book"
    folder.mkdir()
    text = "".join(file.path.read_text() for file in files)
    (folder / "book.txt").write_text(text)
    spec = a_spec(tmp_path, data={"corpus": str(folder)})
    parts = corpus_files(spec)
    assert len(parts) == 32
    joined = b"".join(part.path.read_bytes()[part.start : part.stop] for part in parts)
    assert joined.decode() == text
    assert all(text.encode()[part.start - 1 : part.start] in (b"", b"\n") for part in parts)
    made = prepare_corpus(spec)
    assert 0 < made.facts.heldout_bytes < made.facts.train_bytes
    assert made.facts.train_bytes + made.facts.heldout_bytes == len(text)
    assert int((whole(made.train) == 0).sum() + (whole(made.heldout) == 0).sum()) == 1, "one end of text"


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_a_corpus_that_is_not_there_is_told(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "texts")
    with pytest.raises(DataError, match=r"data\.corpus: .*texts"):
        prepare_corpus(a_spec(tmp_path, data={"corpus": str(tmp_path / "texts")}))
