"""The words of tables of runs, however they are spelled: precisions, recomputation, architectures."""

import re

PRECISIONS = (
    (r"fp4|f4|e2m1", 2),
    (r"fp8|f8|int8|e4m3|e5m2", 1),
    (r"fp32|tf32|float32|f32|^(float|single|full|32(-?bit)?)$", -1),
    (r"16|mixed|amp|half|bfloat", 0),
)
"""Pattern → code of precision, the lowest first: "bf16 with fp8 products" is fp8."""
NOT_SAID = frozenset({"", "-", "--", "?", "n/a", "na", "nan", "unknown", "unspecified", "not stated", "null", "auto", "default"})
FULL = r"full|all|block|uniform|whole|every|^(true|yes|y|1|1\.0|on|layers?|enabled|ckpt|checkpoint(ing)?|gc)$"
SELECTIVE = r"selective|partial|attn|attention|sac|some|half|core|^op"
NONE = r"none|^(false|no|n|0|0\.0|off|disabled|without)$|^no[ -]"


def precision_code(precision: str | None) -> int | None:
    """0: 16 bit (also where nothing is stated), 1: 8 bit, 2: 4 bit, -1: 32 bit; None: not understood."""
    word = _word(precision)
    if word in NOT_SAID:
        return 0
    return next((code for pattern, code in PRECISIONS if re.search(pattern, word)), None)


def recompute_word(said: str | None) -> str | None:
    """ "none", "selective" or "full"; "" where nothing is said, None for what is not understood."""
    word = _word(said)
    if word in NOT_SAID and word != "none":
        return ""
    for pattern, meaning in ((SELECTIVE, "selective"), (NONE, "none"), (FULL, "full")):
        if re.search(pattern, word):
            return meaning
    # A number of layers, or a share of them, is recomputed.
    return "selective" if re.match(r"[\d./]+", word) else None


def is_dense(arch: str) -> bool:
    """Whether an architecture's name is one of the dense Transformers that are modelled."""
    word = _word(arch)
    return word in NOT_SAID or (
        re.search(r"dense|gpt|llama|decoder|transformer|causal", word) is not None and not _is_other(word)
    )


def _is_other(word: str) -> bool:
    return bool(re.search(r"moe|mixture|expert|mamba|ssm|hybrid|encoder|t5|bert|vit|diffusion|rwkv", word))


def _word(text: str | None) -> str:
    return (text or "").strip().lower().replace("_", " ")
