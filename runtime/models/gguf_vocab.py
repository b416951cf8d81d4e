"""A GGUF file's vocabulary, checked, and the `tokenizers` object built from it.

Two kinds are read, by llama.cpp's names: 'gpt2' (byte-level BPE with merges; how text is cut first is named by
`tokenizer.ggml.pre`) and 'llama' (SentencePiece BPE with scores: Llama 2, Mistral, Gemma), whose merges are recovered
from the vocabulary. Ids are those of transformers (tests compare them).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from ...wire.errors import ModelFileError

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # llama.cpp's token types that matter here
SPACE = "▁"  # how SentencePiece writes a space
MAX_TOKENS = 1 << 22  # the largest public vocabulary is 262,144
MAX_TOKEN_LENGTH = 4096  # characters

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _WORD_END
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _WORD_END
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_END = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = _CASED % ("", "") + r"|\p{N}|" + _CASED_END
_GPT4O = _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?") + r"|\p{N}{1,3}|" + _CASED_END

GPT2_KINDS = {"default", "gpt-2", "phi-2", "olmo", "jina-es", "jina-de", "gigachat", "mpt", "trillion"}
DIGIT_KINDS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
SPLITS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "smaug-bpe", "lfm2", "dbrx"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), _QWEN2),
    **dict.fromkeys(("tekken",), _TEKKEN),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
}
# A word that is a token as a whole is taken as it is, even where the merges don't lead to it.
WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken"}


@dataclass(frozen=True, slots=True)
class GgufVocab:
    """A vocabulary as the file gives it, its types checked: `tokens[id]`, `kinds[id]` (llama.cpp's token types)."""

    model: str  # "gpt2" | "llama"
    pre: str
    architecture: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float]  # empty: none
    merges: list[str]  # empty: none
    add_space_prefix: bool
    special_ids: dict[str, int]  # "bos", "eos", "unknown", "padding", "eot", "eom" -> id

    @property
    def control_ids(self) -> frozenset[int]:
        """Tokens that steer the model and stand for no text."""
        named = (self.special_ids[name] for name in ("bos", "eos", "unknown", "padding") if name in self.special_ids)
        return frozenset(i for i, kind in enumerate(self.kinds) if kind == CONTROL) | frozenset(named)

    @property
    def user_defined_ids(self) -> frozenset[int]:
        """Tokens that are always matched whole, but are text."""
        return frozenset(i for i, kind in enumerate(self.kinds) if kind == USER_DEFINED)


def read_vocab(metadata: Mapping[str, Any]) -> GgufVocab:
    """The vocabulary in a GGUF file's metadata. Raises ModelFileError."""
    tokens = _array(metadata, "tokens", str)
    if not tokens:
        raise ModelFileError("the file has no tokenizer.ggml.tokens")
    if len(tokens) > MAX_TOKENS:
        raise ModelFileError(f"the vocabulary has {len(tokens)} tokens, at most {MAX_TOKENS} are taken")
    for i, token in enumerate(tokens):
        if len(token) > MAX_TOKEN_LENGTH or not _is_utf8(token):
            raise ModelFileError(f"token {i} of the vocabulary is not UTF-8 text of at most {MAX_TOKEN_LENGTH} characters")
    kinds = _array(metadata, "token_type", int)[: len(tokens)]
    return GgufVocab(
        model=_text(metadata, "tokenizer.ggml.model", ""),
        pre=_text(metadata, "tokenizer.ggml.pre", "default"),
        architecture=_text(metadata, "general.architecture", ""),
        tokens=tokens,
        kinds=kinds + [NORMAL] * (len(tokens) - len(kinds)),
        scores=_array(metadata, "scores", float),
        merges=_array(metadata, "merges", str),
        add_space_prefix=metadata.get("tokenizer.ggml.add_space_prefix") is not False,
        special_ids=dict(_special_ids(metadata, len(tokens))),
    )


def build(vocab: GgufVocab) -> tokenizers.Tokenizer:
    """The tokenizer that this vocabulary means. Raises ModelFileError."""
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if vocab.model not in builders:
        raise ModelFileError(f"tokenizer kind {vocab.model[:40]!r} is not supported (gpt2 and llama are)")
    tokenizer = builders[vocab.model](vocab)
    for ids, special in ((vocab.control_ids, True), (vocab.user_defined_ids - vocab.control_ids, False)):
        texts = [vocab.tokens[i] for i in sorted(ids) if tokenizer.token_to_id(vocab.tokens[i]) == i]
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=special) for text in texts])
    return tokenizer


def alphabet() -> dict[int, str]:
    """How GPT-2 writes each of the 256 bytes as one printable character."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spelling = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        spelling.setdefault(byte, chr(256 + len(spelling) - len(printable)))
    return spelling


# ------------------------------------------------------------------------------------------------ the two kinds


def _byte_level(vocab: GgufVocab) -> tokenizers.Tokenizer:
    spelling = alphabet()
    letters = set(spelling.values())
    ids: dict[str, int] = {}
    for i, token in enumerate(vocab.tokens):
        if vocab.kinds[i] in (CONTROL, USER_DEFINED) or letters.issuperset(token):
            ids[token] = i
        else:  # some files write such tokens as plain text
            ids["".join(spelling[b] for b in token.encode())] = i
    bpe = models.BPE(ids, _merges(vocab, ids), ignore_merges=vocab.pre in WHOLE_WORDS)
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = _pre_tokenizer(vocab.pre)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(pre: str) -> Any:
    if pre in GPT2_KINDS:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in DIGIT_KINDS:
        first, regex = pre_tokenizers.Digits(individual_digits=True), True
    elif pre in SPLITS:
        first, regex = pre_tokenizers.Split(Regex(SPLITS[pre]), behavior="isolated"), False
    else:
        raise ModelFileError(f"pre-tokenizer {pre[:40]!r} is not known: its text would be cut wrongly")
    return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)])


def _sentencepiece(vocab: GgufVocab) -> tokenizers.Tokenizer:
    gemma = vocab.architecture.startswith("gemma")
    # Gemma's files write a token of several spaces as spaces, where its text has them as "▁".
    tokens = [SPACE * len(t) if gemma and t.isspace() and not t.strip(" ") else t for t in vocab.tokens]
    ids = {token: i for i, token in enumerate(tokens)}
    if vocab.merges:
        merges = _merges(vocab, ids)
    elif gemma:  # its scores don't follow the order of its merges; the tokens' order does
        merges = _implied_merges(ids, vocab.control_ids)
    else:
        merges = _scored_merges(vocab, ids)
    unknown = tokens[vocab.special_ids["unknown"]] if gemma and "unknown" in vocab.special_ids else None
    bpe = models.BPE(ids, merges, fuse_unk=True, byte_fallback=True, **({"unk_token": unknown} if unknown else {}))
    tokenizer = tokenizers.Tokenizer(bpe)
    prefix = not gemma and vocab.add_space_prefix
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        scheme = "first" if prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    pieces = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(pieces)
    return tokenizer


def _merges(vocab: GgufVocab, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges that the file lists."""
    merges = []
    for i, merge in enumerate(vocab.merges):
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise ModelFileError(f"merge {i} of the vocabulary does not join two of its tokens into a third")
        merges.append((left, right))
    return merges


def _implied_merges(ids: Mapping[str, int], skip: frozenset[int]) -> list[tuple[str, str]]:
    """Every way to cut a token into two others, the tokens in order. Control tokens are never made out of text."""
    merges: list[tuple[str, str]] = []
    for token, i in ids.items():
        if i not in skip:
            cuts = range(len(token) - 1, 0, -1)
            merges += [(left, right) for c in cuts if (left := token[:c]) in ids and (right := token[c:]) in ids]
    return merges


def _scored_merges(vocab: GgufVocab, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    if len(vocab.scores) < len(vocab.tokens):
        raise ModelFileError("the vocabulary has neither merges nor a score for each token")
    found = _implied_merges(ids, vocab.control_ids)
    scores = vocab.scores
    return sorted(found, key=lambda m: (scores[ids[m[0] + m[1]]], len(m[0]), len(m[1])), reverse=True)


# ------------------------------------------------------------------------------------------------ reading metadata


def _array(metadata: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{name}", ())
    items = value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, list | tuple) else None
    accepted = (int, float) if kind is float else kind
    if not isinstance(items, list) or not all(isinstance(item, accepted) for item in items):
        raise ModelFileError(f"tokenizer.ggml.{name} is not a list of {kind.__name__}")
    return items


def _text(metadata: Mapping[str, Any], key: str, default: str) -> str:
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise ModelFileError(f"{key} is not text")
    return value


def _special_ids(metadata: Mapping[str, Any], n_tokens: int) -> Iterator[tuple[str, int]]:
    for name in ("bos", "eos", "unknown", "padding", "eot", "eom"):
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            continue
        if not isinstance(value, int) or not 0 <= value < n_tokens:
            raise ModelFileError(f"tokenizer.ggml.{name}_token_id is not the id of one of the {n_tokens} tokens")
        yield name, value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates, as a lenient reader leaves them
        return False
    return True
