"""Text to token ids and back, by the model's own vocabulary.

Text reaches a model in two ways. A template's own pieces may contain control tokens (`specials=True`); what a user or a
tool wrote may not: there the same characters stay plain text (`specials=False`).
"""

import copy
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from ...wire.errors import BadRequest, ModelFileError
from . import gguf_vocab

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
LETTER_OF = gguf_vocab.alphabet()
BYTE_OF = {letter: byte for byte, letter in LETTER_OF.items()}
# Control tokens that end a turn; files often name only one of theirs.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>")

# Control tokens that an answer's form is made of: whoever reads the answer must see them.
MARKS = frozenset(("<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>", "<|python_tag|>"))
MARKS |= {"[TOOL_CALLS]", "<start_function_call>", "<end_function_call>", "<escape>"}

Span = tuple[int, int]  # [start, end) in characters


class Tokenizer:
    """A model's tokenizer. Safe to use from several threads."""

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        tokens: Sequence[str | None],
        *,
        control_ids: Collection[int],
        bos_id: int | None,
        eos_ids: Sequence[int],
    ) -> None:
        """`tokens[id]` is a token as the vocabulary writes it; `control_ids` are those that stand for no text."""
        core.no_truncation()
        core.no_padding()
        self._core = core
        self._tokens = tokens
        self._bytes: dict[int, bytes] = {}  # by id, of the tokens that were spelled so far
        self._control_ids = frozenset(control_ids)
        self._lock = Lock()  # `core` has modes; one call at a time sets and uses them
        self._first = core.pre_tokenizer
        self._later = _without_prefix(core)
        self._scanner = _Scanner(core)
        self._unknown_id = core.token_to_id(getattr(core.model, "unk_token", None) or "")
        self._added_ids = frozenset(core.get_added_tokens_decoder())
        self._byte_level = b"ByteLevel" in _state(core.decoder)
        self.bos_id = bos_id
        self.eos_ids = tuple(dict.fromkeys(eos_ids))

    @property
    def vocab_size(self) -> int:
        """How many ids the vocabulary has."""
        return len(self._tokens)

    def encode(self, text: str, *, specials: bool) -> list[int]:
        """The ids of `text`, without a beginning-of-sequence token; with `specials=False`, control tokens written in the
        text stay plain text. Raises BadRequest for lone surrogates."""
        return self._encode(text, specials=specials, first=True)

    def encode_around(self, text: str, protected: Sequence[Span]) -> list[int]:
        """As `encode(text, specials=True)`, but control tokens that lie in a protected span stay plain text.

        `protected` are non-overlapping spans in order. Text is cut at the control tokens outside of them, which is what
        the tokenizer itself does, so that apart from the protected ones the ids are the same.
        """
        if not protected:
            return self.encode(text, specials=True)
        ids, at = [], 0
        for start, end, control in self._controls_outside(text, protected):
            if start > at:
                ids += self._encode(text[at:start], specials=False, first=at == 0)
            ids.append(control)
            at = end
        return ids + (self._encode(text[at:], specials=False, first=at == 0) if at < len(text) else [])

    def controls(self, text: str, protected: Sequence[Span]) -> list[int]:
        """The control tokens among `encode_around(text, protected)`."""
        return [control for _, _, control in self._controls_outside(text, protected)]

    def control_spans(self, text: str) -> list[Span]:
        """Where `text` contains control tokens."""
        return [(start, end) for start, end, _ in self._scanner.find(text)]

    def control_starts(self, text: str) -> list[Span]:
        """Where `text` contains a character that a control token starts with."""
        return [match.span() for match in self._scanner.starts.finditer(text)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; incomplete UTF-8 becomes U+FFFD."""
        return self._core.decode(ids, skip_special_tokens=skip_special)

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes that a token stands for: a part of a character perhaps, nothing for most control tokens."""
        if (known := self._bytes.get(id)) is None:
            known = self._bytes[id] = self._spelled(id)
        return known

    @property
    def longest_token(self) -> int:
        """No token stands for more bytes than this."""
        return max((len(token.encode("utf-8", "surrogatepass")) for token in self._tokens if token), default=1)

    def _spelled(self, id: int) -> bytes:
        token = self._tokens[id] if 0 <= id < len(self._tokens) else None
        if token is None or (id in self._control_ids and token not in MARKS):
            return b""
        if self._byte_level:
            spelled = None if id in self._added_ids else [BYTE_OF.get(letter) for letter in token]
            return token.encode() if spelled is None or None in spelled else bytes(b for b in spelled if b is not None)
        byte = BYTE_TOKEN.fullmatch(token)
        return bytes.fromhex(byte[1]) if byte else token.replace(gguf_vocab.SPACE, " ").encode()

    def is_special(self, id: int) -> bool:
        """Whether it is a control token."""
        return id in self._control_ids

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it."""
        return self._core.token_to_id(token)

    def _encode(self, text: str, *, specials: bool, first: bool) -> list[int]:
        with self._lock:
            self._core.encode_special_tokens = not specials
            if self._later is not None:
                self._core.pre_tokenizer = self._first if first else self._later
            try:
                ids = self._core.encode(text, add_special_tokens=False).ids
            except (UnicodeEncodeError, TypeError) as e:
                raise BadRequest("The text is not valid Unicode.") from e
            return ids if specials else self._spelled_out(ids)

    def _spelled_out(self, ids: list[int]) -> list[int]:
        """`ids` of plain text, which are no control tokens even where the vocabulary joins ordinary tokens into one."""
        controls = self._control_ids.intersection(ids) - {self._unknown_id}
        spelled = {i: self._letters(i) for i in controls}
        return [piece for i in ids for piece in spelled.get(i, (i,))] if controls else ids

    def _letters(self, control: int) -> list[int]:
        token = self._tokens[control] or ""
        letters = [LETTER_OF[byte] for byte in token.encode()] if self._byte_level else token
        return [t.id for letter in letters for t in self._core.model.tokenize(letter) if t.id not in self._control_ids]

    def _controls_outside(self, text: str, protected: Sequence[Span]) -> list[tuple[int, int, int]]:
        found, at = [], 0
        for start, end in [*protected, (len(text), len(text))]:
            found += [(at + a, at + b, control) for a, b, control in self._scanner.find(text[at:start])]
            at = end
        return found


class _Scanner:
    """Finds control tokens in text the way the tokenizer does, without the cost of encoding it."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        controls = {id: token for id, token in core.get_added_tokens_decoder().items() if token.special}
        self._scan = tokenizers.Tokenizer(models.BPE())
        self._scan.add_tokens(list(controls.values()))
        self._ids = {self._scan.token_to_id(token.content): id for id, token in controls.items()}
        texts = [token.content for token in controls.values()]
        self.starts = _any_of({text[:1] for text in texts})
        self._heads = _any_of({text[:2] for text in texts})

    def find(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, id) of each control token, in order."""
        if not self._heads.search(text):  # as in most texts; the scan is slower than this
            return []
        try:
            seen = self._scan.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as e:
            raise BadRequest("The text is not valid Unicode.") from e
        return [(*span, self._ids[i]) for i, span in zip(seen.ids, seen.offsets, strict=True)]


def _any_of(heads: set[str]) -> re.Pattern[str]:
    """Matches each of `heads`, texts of one or two characters."""
    seconds: dict[str, str] = {}
    for head in heads:
        seconds[head[0]] = seconds.get(head[0], "") + head[1:]
    alone = {head for head in heads if len(head) == 1}
    choices = (re.escape(a) + ("" if a in alone else f"[{re.escape(b)}]") for a, b in seconds.items())
    return re.compile("|".join(choices) or r"(?!)")


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in a GGUF file's metadata. Raises ModelFileError."""
    vocab = gguf_vocab.read_vocab(metadata)
    core = _guarded(lambda: gguf_vocab.build(vocab))
    ends = [vocab.special_ids[name] for name in ("eos", "eot", "eom") if name in vocab.special_ids]
    turn_ends = [i for i in sorted(vocab.control_ids) if vocab.tokens[i] in TURN_ENDS]
    return Tokenizer(
        core,
        vocab.tokens,
        control_ids=vocab.control_ids,
        bos_id=vocab.special_ids.get("bos"),
        eos_ids=[*ends, *turn_ends],
    )


def tokenizer_from_json(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json, and the named tokens of tokenizer_config.json. Raises
    ModelFileError."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelFileError(f"{folder.name} has no tokenizer.json")
    core = _guarded(lambda: tokenizers.Tokenizer.from_file(str(path)))
    named = named_tokens(folder)
    known = [text for text in named.values() if core.token_to_id(text) is not None]
    core.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in known])
    tokens: list[str | None] = [None] * (max(core.get_vocab().values(), default=-1) + 1)
    for token, id in core.get_vocab().items():
        tokens[id] = token
    controls = {id for id, token in core.get_added_tokens_decoder().items() if token.special}
    eos = core.token_to_id(named.get("eos_token", ""))
    return Tokenizer(
        core,
        tokens,
        control_ids=controls,
        bos_id=core.token_to_id(named.get("bos_token", "")),
        eos_ids=[*([eos] if eos is not None else []), *(i for i in sorted(controls) if tokens[i] in TURN_ENDS)],
    )


def named_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token, unk_token and pad_token, as tokenizer_config.json gives them."""
    config = read_json(folder / "tokenizer_config.json")
    values = {name: config.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in values.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file; empty where there is no such file. Raises ModelFileError."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ModelFileError(f"{path.name} is not JSON") from e
    if not isinstance(value, dict):
        raise ModelFileError(f"{path.name} is not a JSON object")
    return value


def _guarded(load: Callable[[], tokenizers.Tokenizer]) -> tokenizers.Tokenizer:
    """`tokenizers` raises plain Exception, and its panics are not even that."""
    try:
        return load()
    except ModelFileError:
        raise
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise ModelFileError(f"the tokenizer cannot be built: {str(e)[:200]}") from e


def _state(part: Any) -> bytes:
    return part.__getstate__() if part is not None else b""


def _without_prefix(core: tokenizers.Tokenizer) -> Any:
    """The pre-tokenizer for text that does not start the prompt; None where it is the same.

    SentencePiece vocabularies of the Llama 2 kind put a space before the prompt's first word only.
    """
    state = _state(core.pre_tokenizer)
    if b'"prepend_scheme":"first"' not in state:
        return None
    later = copy.deepcopy(core.pre_tokenizer)
    later.__setstate__(state.replace(b'"prepend_scheme":"first"', b'"prepend_scheme":"never"'))
    return later
