"""Translates with a trained encoder-decoder: `python -m model.translate RUN.json < text.en > text.de`.

    python -m model.translate RUN.json --average 5 --test              # BLEU and chrF of the run's test sentences
    python -m model.translate RUN.json -i text.en --reference text.de  # the same of a text of your own
    python -m model.translate RUN.json --attention heads.png <<< "Add another page"

RUN.json is the training's: it names the model, the prepared text with its vocabulary, and the checkpoints.  Translations go to
standard output or, whole or not at all, to a file; everything else is said on standard error.  Exit codes: 0, or 2 for bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from model.contract import ContractError, ExitCode, RunSpec
from model.translation.attention import attention_of, draw_attention
from model.translation.corpus import decode_sentence, open_parallel, prepared_parallel_folder
from model.translation.decoding import translate_tokens
from model.translation.scores import Score, score
from model.translation.special_tokens import BEGIN, END
from model.translation.translator import TranslationError, Translator, load_translator


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the process's exit code."""
    given = _parser().parse_args(arguments)
    try:
        spec = RunSpec.from_json(given.run.read_text(encoding="utf-8"))
        translator = load_translator(
            spec, average=given.average, step=given.step, vocabulary=given.vocabulary, pair=given.pair or ""
        )
        print(f"checkpoints of steps {', '.join(map(str, translator.steps))}", file=sys.stderr)
        if given.attention:
            _attention(translator, _lines(given.input), given)
            return ExitCode.DONE
        sources, references, where = _texts(spec, given)
        options = {"beams": given.beams, "alpha": given.alpha, "batch_tokens": given.batch_tokens, "where": where}
        translations = translator.translate(sources, **options)
        _write("".join(f"{line}\n" for line in translations), given.output)
        if references is not None:
            _tell(score(translations, references), given.json)
    except (ContractError, TranslationError) as error:
        for problem in error.problems:
            print(f"{given.run}: {problem}" if isinstance(error, ContractError) else problem, file=sys.stderr)
        return ExitCode.BAD_RUN
    except (OSError, UnicodeDecodeError, ValueError) as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_RUN
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.translate", description="Translate lines of text, one sentence a line."
    )
    parser.add_argument("run", type=Path, metavar="RUN.json", help="the run that trained the model")
    parser.add_argument("-i", "--input", type=Path, help="text to translate (default: standard input)")
    parser.add_argument("-o", "--output", type=Path, help="where the translations go (default: standard output)")
    parser.add_argument(
        "--average", type=_at_least(1), default=1, metavar="N", help="mean of the N newest checkpoints (default 1)"
    )
    parser.add_argument("--step", type=_at_least(1), help="the newest checkpoint to use (default: the newest)")
    parser.add_argument("--beams", type=_at_least(1), default=4, help="1 is greedy (default 4)")
    parser.add_argument("--alpha", type=_not_negative, default=0.6, help="strength of the length penalty (default 0.6)")
    parser.add_argument(
        "--batch-tokens", type=_at_least(1), default=4096, help="source tokens times beams at once (default 4096)"
    )
    parser.add_argument("--pair", metavar="en-de", help="refuse a model that translates another pair")
    parser.add_argument("--vocabulary", type=Path, help="tokenizer.json of the training (default: the prepared text's)")
    scored = parser.add_mutually_exclusive_group()
    scored.add_argument("--test", action="store_true", help="translate and score the run's test sentences")
    scored.add_argument("--reference", type=Path, help="score the translations against these lines")
    scored.add_argument("--attention", type=Path, metavar="PNG", help="draw what each head attends to, for one sentence")
    parser.add_argument("--json", action="store_true", help="say scores as JSON, on standard error")
    return parser


def _texts(spec: RunSpec, given: argparse.Namespace) -> tuple[list[str], list[str] | None, str]:
    """Sources, references if there are to be scores, and what to call the sources."""
    if given.test:
        if given.input:
            raise TranslationError("--test translates the run's own test sentences; leave --input out, or give --reference")
        sources, references = open_parallel(prepared_parallel_folder(spec)).sentences("test")
        return sources, references, "the test sentences"
    sources = _lines(given.input)
    if given.reference is None:
        return sources, None, str(given.input or "standard input")
    references = _lines(given.reference)
    if len(references) != len(sources):
        raise TranslationError(
            f"{given.reference} has {len(references):,} lines and the text has {len(sources):,}; "
            "line N of one must be the translation of line N of the other"
        )
    return sources, references, str(given.input or "standard input")


def _lines(path: Path | None) -> list[str]:
    text = path.read_text(encoding="utf-8") if path else sys.stdin.read()
    return text.split("\n")[:-1] if text.endswith("\n") else text.split("\n") if text else []


def _write(text: str, path: Path | None) -> None:
    if path is None:
        sys.stdout.write(text)
        return
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _tell(scores: list[Score], as_json: bool) -> None:
    if as_json:
        value: Any = {each.metric: {"value": each.value, "signature": each.signature} for each in scores}
        print(json.dumps(value), file=sys.stderr)
    else:
        for each in scores:
            print(f"{each.metric} = {each.value:.1f}   {each.signature}", file=sys.stderr)


def _attention(translator: Translator, sentences: list[str], given: argparse.Namespace) -> None:
    if len(sentences) != 1:
        raise TranslationError(f"--attention draws one sentence, and {len(sentences)} were given")
    (ids,) = translator.encode(sentences)
    (found,) = translate_tokens(translator.model, [ids], beams=given.beams, alpha=given.alpha)
    # One that the limit cut off may fill every position, and BEGIN comes before it.
    written = [token for token in found.tokens if token != END][: translator.model.recipe.shape.positions - 1]
    attention = attention_of(translator.model, [*ids, END], [BEGIN, *written])
    words = [[translator.tokenizer.decode([token]).strip() or "·" for token in side] for side in (ids, written)]
    draw_attention(attention, [*words[0], "END"], ["BEGIN", *words[1]], given.attention)
    print(decode_sentence(translator.tokenizer, written))


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least {least}")
        return int(text)

    return number


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
