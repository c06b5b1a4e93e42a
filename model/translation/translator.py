"""From a run's checkpoints to a translator: verified weights, averaged where asked, and the vocabulary they were trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from model.contract import RunSpec
from model.encoder_decoder import EncoderDecoder
from model.layers import Recipe
from model.manifest import Manifest, ManifestError, step_folders, verify_manifest
from model.resumption import CheckpointError
from model.shape import EncoderDecoderShape
from model.state import StateReader
from model.translation.corpus import decode_sentence, encode_sentences, open_tokenizer, prepared_parallel_folder, vocabulary_facts
from model.translation.decoding import translate_tokens
from model.weights import Weights


class TranslationError(Exception):
    """Nothing can be translated; `problems` holds every reason found, each with a way out."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class Translator:
    """A model with its vocabulary."""

    model: EncoderDecoder
    tokenizer: Tokenizer
    steps: tuple[int, ...]
    """Of the checkpoints whose weights were averaged, newest first."""

    def encode(self, sentences: Sequence[str], where: str = "the text") -> list[list[int]]:
        """Token ids of each sentence.  Raises TranslationError naming every line that is too long for the model."""
        positions = self.model.recipe.shape.positions
        ids = encode_sentences(self.tokenizer, list(sentences))
        long = [
            f"{where}, line {number}: {len(each) + 1} tokens with its end, the model reads at most {positions}; split it"
            for number, each in enumerate(ids, 1)
            if len(each) + 1 > positions
        ]
        if long:
            raise TranslationError(*long)
        return ids

    def translate(
        self, sentences: Sequence[str], *, beams: int = 4, alpha: float = 0.6, batch_tokens: int = 4096, where: str = "the text"
    ) -> list[str]:
        """A translation of each sentence, in order.  Raises TranslationError as `encode` does, before any is translated."""
        found = translate_tokens(self.model, self.encode(sentences, where), beams=beams, alpha=alpha, batch_tokens=batch_tokens)
        return [decode_sentence(self.tokenizer, each.tokens) for each in found]


def load_translator(
    spec: RunSpec, *, average: int = 1, step: int | None = None, vocabulary: Path | None = None, pair: str = ""
) -> Translator:
    """The run's model with the mean of its `average` newest complete checkpoints (up to `step`, if given).

    `vocabulary` is a tokenizer.json; without it the one of the run's prepared text.  `pair` is what the caller wants, such as
    en-de.  Raises TranslationError for a run without an encoder, too few whole checkpoints, checkpoints of another model, a
    vocabulary other than the one of the training, and a pair that the model was not trained for.
    """
    shape = spec.model.shape()
    if not isinstance(shape, EncoderDecoderShape):
        raise TranslationError(
            "model.encoder_layers is 0: a decoder alone does not translate; give the RUN.json of an encoder-decoder"
        )
    trained = f"{spec.data.source_language}-{spec.data.target_language}"
    if pair and pair != trained:
        raise TranslationError(
            f"the pair {pair} is not in this model, which translates {trained}; give {trained}, or another run"
        )
    chosen = _complete_checkpoints(Path(spec.checkpoint.directory), average, step)
    tokenizer = _vocabulary(spec, vocabulary)
    try:
        readers = [StateReader(folder) for folder, _ in chosen]
        for (folder, manifest), reader in zip(chosen, readers, strict=True):
            _check(spec, folder, manifest, reader, tokenizer)
        model = EncoderDecoder(Recipe(shape, seed=None))
        load_average(model, readers)
    except CheckpointError as error:
        raise TranslationError(str(error)) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Translator(model.to(device).eval(), tokenizer, tuple(manifest.step for _, manifest in chosen))


@torch.no_grad()
def load_average(model: torch.nn.Module, readers: Sequence[StateReader]) -> None:
    """Gives every parameter the mean of its values in the checkpoints (Vaswani et al. 2017, section 6.1), one at a time.

    Raises StateError where a checkpoint lacks one or has it in another shape.
    """
    for name, parameter in model.named_parameters():
        total = readers[0].whole(name)
        for reader in readers[1:]:
            total += reader.whole(name)
        parameter.copy_(total / len(readers))


def _complete_checkpoints(directory: Path, number: int, step: int | None) -> list[tuple[Path, Manifest]]:
    chosen: list[tuple[Path, Manifest]] = []
    damaged = []
    for each, folder in step_folders(directory):
        if len(chosen) == number:
            break
        if step is not None and each > step:
            continue
        try:
            chosen.append((folder, verify_manifest(folder)))
        except ManifestError as error:
            damaged.append(str(error))
    if len(chosen) < number or (step is not None and chosen[0][1].step != step):
        there = ", ".join(folder.name for _, folder in step_folders(directory)) or "none"
        wanted = f"{number} whole checkpoints" if number > 1 else "a whole checkpoint"
        upto = f" up to step {step}" if step is not None else ""
        reasons = f"; passed over: {'; '.join(damaged)}" if damaged else ""
        raise TranslationError(
            f"{directory}: {wanted}{upto} wanted, there: {there}{reasons}; train first, or ask for what is there"
        )
    return chosen


def _vocabulary(spec: RunSpec, vocabulary: Path | None) -> Tokenizer:
    path = vocabulary or prepared_parallel_folder(spec) / "tokenizer.json"
    if not path.is_file():
        raise TranslationError(f"{path} is missing; give the tokenizer.json of the training with --vocabulary")
    try:
        return open_tokenizer(path)
    except Exception as error:  # tokenizers raises plain Exception for whatever is no tokenizer
        raise TranslationError(f"{path} is not a tokenizer.json: {error}") from error


def _check(spec: RunSpec, folder: Path, manifest: Manifest, reader: StateReader, tokenizer: Tokenizer) -> None:
    # Read as a model section, so that an option that came later has the value that it had before it came.
    written, wanted = asdict(Weights(folder, manifest, reader).model), asdict(spec.model)
    if written != wanted:
        differing = [name for name, value in wanted.items() if written[name] != value]
        raise TranslationError(
            f"{folder} holds another model than the run's: {', '.join(differing)} differ; give the RUN.json it is of"
        )
    facts = vocabulary_facts(tokenizer, spec.data.source_language, spec.data.target_language)
    trained = reader.notes.get("text", {})
    for name, what in (
        ("vocabulary_sha256", "vocabulary"),
        ("source_language", "language pair"),
        ("target_language", "language pair"),
    ):
        if trained.get(name) != facts[name]:
            raise TranslationError(
                f"{folder} was trained with another {what} ({trained.get(name)!s:.12}, not {facts[name]:.12}); "
                "give the tokenizer.json and the RUN.json of that training"
            )
