"""Continues text or completes code with a trained checkpoint: `python -m model.generate RUN.json --prompt "def main("`.

The text goes to stdout, the speed to stderr.  The checkpoint is one that its manifest vouches for; whatever layout wrote
it, it is read into one process.  Keys and values of tokens already seen are kept (`model/kv_cache.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from model.contract import ContractError, ExitCode, RunSpec
from model.corpus import END_OF_TEXT, DataError, is_prepared, open_corpus, prepared_folder
from model.kv_cache import KeyValueCache
from model.resumption import CheckpointError, changes_of_text
from model.transformer import Transformer
from model.weights import Weights, model_with, open_weights

Chooser = Callable[[Tensor], Tensor]
"""Logits of the next token (B, V) -> its id (B,)."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What one call of `continue_tokens` gave."""

    tokens: list[list[int]]
    """Of each sample, without the prompt and without the token it ended at."""
    prompt_s: float
    """For reading the prompt and choosing the first token."""
    rest_s: float
    """For all further tokens."""
    passes: int
    """Through the model, the prompt's included: the longest sample's tokens."""

    def speed(self, prompt_tokens: int) -> dict[str, float]:
        """Tokens per second of all samples together: read, and made after the first."""
        samples = len(self.tokens)
        made = samples * (self.passes - 1)
        return {
            "read_tokens_per_s": samples * prompt_tokens / self.prompt_s,
            "made_tokens_per_s": made / self.rest_s if made else 0.0,
        }


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the process's exit code."""
    given = _arguments(arguments)
    try:
        spec = RunSpec.from_json(given.run.read_text(encoding="utf-8"))
        weights = open_weights(given.checkpoint or Path(spec.checkpoint.directory))
        model = model_with(weights)
        tokenizer = _tokenizer(spec, weights)
    except (ContractError, CheckpointError, DataError, OSError, UnicodeDecodeError) as error:
        print(f"{given.run}: {error}", file=sys.stderr)
        return ExitCode.BAD_CHECKPOINT if isinstance(error, CheckpointError) else ExitCode.BAD_RUN
    text = sys.stdin.read() if given.prompt is None else given.prompt
    end = tokenizer.token_to_id(END_OF_TEXT) or 0
    prompt = tokenizer.encode(text).ids or [end]
    positions = model.recipe.shape.positions
    room = positions - given.tokens
    if room < 1:
        print(f"--tokens {given.tokens}: the model has {positions} positions; at most {positions - 1}", file=sys.stderr)
        return ExitCode.BAD_RUN
    if len(prompt) > room:
        print(
            f"of the prompt's {len(prompt)} tokens the last {room} are read: the model has {positions} positions", file=sys.stderr
        )
    prompt = prompt[-room:]
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    choose = chooser(given.temperature, given.top_p, given.seed)
    found = continue_tokens(
        model, prompt, limit=given.tokens, choose=choose, end=end, samples=given.samples, cached=not given.uncached
    )
    texts = [tokenizer.decode(tokens) for tokens in found.tokens]
    speed = found.speed(len(prompt))
    if given.json:
        sys.stdout.write(json.dumps({"prompt": text, "continuations": texts, "seed": given.seed, **speed}) + "\n")
    else:
        sys.stdout.write("\n\n".join(text + continuation for continuation in texts) + "\n")
        print(", ".join(f"{name} {value:,.1f}" for name, value in speed.items()), file=sys.stderr)
    return ExitCode.DONE


@torch.inference_mode()
def continue_tokens(
    model: Transformer, prompt: list[int], *, limit: int, choose: Chooser, end: int, samples: int = 1, cached: bool = True
) -> Continuation:
    """`samples` continuations of `prompt` by at most `limit` tokens, each up to the token `end`.

    `prompt` is not empty, `limit` at least 1, and both together fit the model's positions.
    """
    weight = next(model.parameters())
    shape, tokens = model.recipe.shape, len(prompt) + limit
    cache = KeyValueCache(shape, sequences=samples, tokens=tokens, dtype=weight.dtype, device=weight.device) if cached else None
    all_BT = unread_BT = torch.tensor([prompt] * samples, device=weight.device)
    ended_B = torch.zeros(samples, dtype=torch.bool, device=weight.device)
    begun_s = time.perf_counter()
    prompt_s = 0.0
    for _ in range(limit):
        logits_BV = model.logits(all_BT if cache is None else unread_BT, cache, last_only=True)[:, -1]
        unread_BT = choose(logits_BV).unsqueeze(1)
        all_BT = torch.cat([all_BT, unread_BT], dim=1)
        ended_B |= unread_BT[:, 0] == end
        is_over = bool(ended_B.all())
        prompt_s = prompt_s or time.perf_counter() - begun_s
        if is_over:
            break
    made = [row[len(prompt) :] for row in all_BT.tolist()]
    kept = [row[: row.index(end)] if end in row else row for row in made]
    return Continuation(kept, prompt_s, time.perf_counter() - begun_s - prompt_s, len(made[0]))


def chooser(temperature: float, top_p: float, seed: int) -> Chooser:
    """Temperature 0: the likeliest token.  Otherwise one is drawn from softmax(logits / temperature), restricted to the
    likeliest tokens that together reach `top_p` (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751)."""
    if temperature == 0.0:
        return lambda logits_BV: logits_BV.argmax(dim=-1)
    generator: torch.Generator | None = None

    def draw(logits_BV: Tensor) -> Tensor:
        nonlocal generator
        generator = generator or torch.Generator(logits_BV.device).manual_seed(seed)
        shares_BV, ids_BV = (logits_BV.float() / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        before_BV = shares_BV.cumsum(dim=-1) - shares_BV
        drawn_B1 = torch.multinomial(shares_BV.masked_fill(before_BV >= top_p, 0.0), 1, generator=generator)
        return ids_BV.gather(1, drawn_B1).squeeze(1)

    return draw


def _tokenizer(spec: RunSpec, weights: Weights) -> Tokenizer:
    """The run's tokenizer, from its prepared corpus.  Raises DataError where that is gone or has not as many tokens as the
    model, and CheckpointError where they are others than those that the model learnt."""
    folder = prepared_folder(spec)
    if not is_prepared(folder):
        raise DataError(f"{folder} holds no prepared corpus, and the tokenizer is part of it; is data.directory right?")
    corpus = open_corpus(folder)
    there, here = corpus.facts.vocabulary, weights.model.vocabulary
    if there != here:
        raise DataError(f"the tokenizer in {folder} has {there} tokens, the checkpoint's model {here}; they are not of one run")
    changes_of_text(weights.folder, weights.reader.notes.get("text", {}), corpus.notes())
    return corpus.tokenizer()


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m model.generate", description="Continue text with a trained checkpoint.")
    parser.add_argument("run", type=Path, metavar="RUN.json", help="the run whose checkpoints and tokenizer are used")
    parser.add_argument("--checkpoint", type=Path, help="a step-… folder, or a directory of them (default: the run's newest)")
    parser.add_argument("--prompt", help="text to continue; stdin if not given")
    parser.add_argument("--tokens", type=int, default=64, help="the most new tokens (default 64)")
    parser.add_argument("--samples", type=int, default=1, help="continuations of the same prompt (default 1)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): always the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest tokens that reach this probability")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--uncached", action="store_true", help="read everything again for each token, to compare speeds")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    given = parser.parse_args(arguments)
    if min(given.tokens, given.samples) < 1:
        parser.error("--tokens and --samples must be at least 1")
    if given.temperature < 0 or not 0 < given.top_p <= 1:
        parser.error("--temperature must be at least 0, --top-p above 0 and at most 1")
    return given


if __name__ == "__main__":
    sys.exit(main())
