"""Ids equal transformers', bytes are exact, users' text makes no control tokens, bad vocabularies are refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Trained
from tokenizers import models, pre_tokenizers, trainers

from baseload.runtime.models import gguf_vocab
from baseload.runtime.models.load_gguf import open_gguf
from baseload.runtime.models.tokenizer import Tokenizer, tokenizer_from_gguf, tokenizer_from_json
from baseload.wire.errors import BadRequest, ModelFileError

DATA = Path(__file__).with_name("data")
HARD = json.loads((DATA / "hard_strings.json").read_text(encoding="utf-8"))
CONTROLS = ["<|end|>", "<|start|>", "<unk>", "<s>", "</s>", "<|endoftext|>"]
GEMMAS = ["<bos>", "<eos>", "<pad>", "<mask>"]  # transformers' Gemma class adds them where a vocabulary lacks them
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# Text with control tokens, and parts of them, in it.
MIXED = st.lists(st.one_of(st.sampled_from([*CONTROLS, "<|", "end|>", "</", "s>", "<think>", " ", "▁"]), TEXTS)).map("".join)


@cache
def learned(kind: str) -> tuple[list[str], list[str]]:
    """A small vocabulary learned from the hard strings: its tokens and merges."""
    trained = Trained(models.BPE())
    letters = sorted(gguf_vocab.alphabet().values()) if kind == "gpt2" else []
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if kind == "gpt2" else pre_tokenizers.Metaspace()
    trained.train_from_iterator(HARD * 2, trainers.BpeTrainer(vocab_size=900, initial_alphabet=letters, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(m) for m in model["merges"]]


def byte_level_metadata(pre: str = "gpt-2", **changes: Any) -> dict[str, Any]:
    """A byte-level vocabulary as a GGUF file's metadata: 6 control tokens, a user-defined one, then learned ones."""
    tokens, merges = learned("gpt2")
    given = {
        "model": "gpt2",
        "pre": pre,
        "tokens": [*CONTROLS, "<think>", *tokens],
        "token_type": [3] * 6 + [4] + [1] * len(tokens),
        "merges": merges,
        "bos_token_id": 1,
        "eos_token_id": 0,
        **changes,
    }
    return {"general.architecture": "llama"} | {f"tokenizer.ggml.{k}": v for k, v in given.items() if v is not None}


def sentencepiece_metadata(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary: <unk>, <s>, </s>, 256 bytes, then learned ones with falling scores."""
    learned_tokens, _ = learned("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *learned_tokens, "<think>", *GEMMAS]
    given = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(learned_tokens) + [4] + [3] * len(GEMMAS),
        "scores": [0.0] * 259 + [-float(i) for i in range(len(learned_tokens) + 1 + len(GEMMAS))],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **changes,
    }
    return {"general.architecture": architecture} | {f"tokenizer.ggml.{k}": v for k, v in given.items() if v is not None}


@cache
def toy(kind: str) -> Tokenizer:
    """One tokenizer of each kind, built once."""
    if kind == "gpt2":
        return tokenizer_from_gguf(byte_level_metadata())
    return tokenizer_from_gguf(sentencepiece_metadata(kind))


def judge(metadata: dict[str, Any]) -> Any:
    """transformers' own conversion of the same metadata."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    names = GGUF_TOKENIZER_MAPPING["tokenizer"]
    described = {new: metadata[f"tokenizer.{old}"] for old, new in names.items() if f"tokenizer.{old}" in metadata}
    return convert_gguf_tokenizer(metadata["general.architecture"], described)[0]


# ------------------------------------------------------------------------------------------------ equality


@pytest.mark.parametrize("pre", ["gpt-2", "default", "llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_byte_level_ids_equal_transformers(pre: str) -> None:
    metadata = byte_level_metadata(pre)
    ours, theirs = tokenizer_from_gguf(metadata), judge(metadata)
    for text in [*HARD, "".join(HARD)]:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, specials=True) == expected
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
        assert ours.decode(expected, skip_special=False) == theirs.decode(expected, skip_special_tokens=False)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_sentencepiece_ids_equal_transformers(architecture: str) -> None:
    metadata = sentencepiece_metadata(architecture)
    ours, theirs = tokenizer_from_gguf(metadata), judge(metadata)
    for text in [*HARD, "".join(HARD), "<s>[INST] a [/INST] b</s><s> c"]:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, specials=True) == expected
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)


def test_smollm2_ids_equal_transformers(smollm2: Path) -> None:
    metadata = dict(open_gguf(smollm2).metadata)
    expected = json.loads((DATA / "expected_ids_smollm2.json").read_text())
    # transformers reads this file's pre-tokenizer, "smollm", as GPT-2's. The model was trained with every numeral a word
    # of its own, which differs for numerals outside ASCII only.
    as_gpt2 = tokenizer_from_gguf(metadata | {"tokenizer.ggml.pre": "gpt-2"})
    assert [as_gpt2.encode(text, specials=True) for text in HARD] == expected
    ours = tokenizer_from_gguf(metadata)
    differ = [text for text, ids in zip(HARD, expected, strict=True) if ours.encode(text, specials=True) != ids]
    assert all(any(c.isnumeric() and not c.isascii() for c in text) for text in differ)
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids[0]) == (49152, 1, 2)


@pytest.mark.slow
def test_gemma_ids_equal_transformers(gemma3: Path) -> None:
    ours = tokenizer_from_gguf(open_gguf(gemma3).metadata)
    expected = json.loads((DATA / "expected_ids_gemma3.json").read_text())
    assert [ours.encode(text, specials=True) for text in HARD] == expected
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids) == (262144, 2, (1, 106))
    assert ours.token_bytes(ours.encode("\n\n", specials=True)[0]) == b"\n\n"


@pytest.mark.slow
def test_smollm2_ids_equal_a_live_transformers(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(smollm2.parent), gguf_file=smollm2.name)
    ours = tokenizer_from_gguf(open_gguf(smollm2).metadata)
    text = (Path(__file__).read_text() + "".join(s for s in HARD if "①" not in s and "½" not in s)) * 3
    ids = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text, specials=True) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    special = {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert {i for i in range(ours.vocab_size) if ours.is_special(i)} == special


# ------------------------------------------------------------------------------------------------ bytes


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3"])
@given(text=TEXTS)
def test_bytes_of_tokens_are_the_bytes_of_the_text(kind: str, text: str) -> None:
    tokenizer = toy(kind)
    joined = b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text, specials=False))
    expected = text.replace("▁", " ") if kind != "gpt2" else text  # SentencePiece can't tell these apart
    prefix = b" " if kind == "llama" and text else b""
    # A first word that has its space already gets no other.
    assert joined in (prefix + expected.encode(), expected.encode())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3"])
@given(text=MIXED)
def test_plain_text_never_becomes_a_control_token(kind: str, text: str) -> None:
    tokenizer = toy(kind)
    ids = tokenizer.encode(text, specials=False)
    assert not any(map(tokenizer.is_special, ids))
    joined = b"".join(map(tokenizer.token_bytes, ids))
    if kind == "gpt2":
        assert joined == text.encode()
    else:
        assert joined.strip(b" ") == text.replace("▁", " ").encode().strip(b" ")


def test_bytes_of_single_tokens() -> None:
    byte_level, spm = toy("gpt2"), toy("llama")
    assert [byte_level.token_bytes(i) for i in (0, 1, 6, -1, 10**9)] == [b"", b"", b"<think>", b"", b""]
    assert byte_level.token_bytes(byte_level.encode(" ", specials=True)[0]) == b" "
    assert {byte_level.token_bytes(i) for i in range(7, 263)} >= {bytes([b]) for b in range(256)}
    assert [spm.token_bytes(3 + b) for b in (0, 10, 255)] == [b"\0", b"\n", b"\xff"]
    assert [spm.token_bytes(i) for i in (0, 1, 2)] == [b"", b"", b""]


def test_plain_words_are_written_plainly() -> None:
    """Some files write a token as text where the rest is in the byte alphabet."""
    metadata = byte_level_metadata()
    tokens = [*metadata["tokenizer.ggml.tokens"], "naïve words", "｜end｜"]
    kinds = [*metadata["tokenizer.ggml.token_type"], 1, 3]
    tokenizer = tokenizer_from_gguf(metadata | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds})
    assert tokenizer.token_bytes(len(tokens) - 2).decode("utf-8", "replace") == "naïve words"
    assert tokenizer.encode("a｜end｜", specials=True)[-1] == len(tokens) - 1
    assert tokenizer.decode([len(tokens) - 1], skip_special=False) == "｜end｜"


# ------------------------------------------------------------------------------------------------ control tokens


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3"])
@given(text=MIXED)
def test_nothing_protected_is_the_whole_encoding(kind: str, text: str) -> None:
    tokenizer = toy(kind)
    whole = tokenizer.encode(text, specials=True)
    assert tokenizer.encode_around(text, []) == whole
    # Cutting at the control tokens by hand gives the same as well.
    assert tokenizer.encode_around(text, [(len(text), len(text))]) == whole


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3"])
@given(before=MIXED, inside=MIXED, after=MIXED)
def test_protected_text_adds_no_control_token(kind: str, before: str, inside: str, after: str) -> None:
    tokenizer = toy(kind)
    text, span = before + inside + after, (len(before), len(before) + len(inside))
    ids = tokenizer.encode_around(text, [span])
    outside = [i for part in (before, after) for i in tokenizer.encode(part, specials=True) if tokenizer.is_special(i)]
    assert [i for i in ids if tokenizer.is_special(i)] == outside == tokenizer.controls(text, [span])
    assert tokenizer.decode(ids, skip_special=False).replace("▁", " ").strip(" ") == text.replace("▁", " ").strip(" ")


def test_control_tokens_are_found() -> None:
    tokenizer = toy("gpt2")
    text = "a<|end|><|start|>é</s>"
    assert tokenizer.control_spans(text) == [(1, 8), (8, 17), (18, 22)]
    assert tokenizer.control_spans("a <|en d|> <think> end|>") == []
    assert tokenizer.control_starts("x <|y </s [") == [(2, 3), (6, 7)]
    assert tokenizer.is_special(0) and not tokenizer.is_special(6)


def test_a_vocabulary_whose_merges_spell_a_control_token() -> None:
    """`</` and `s>` are ordinary tokens and join to `</s>`: still, text never becomes it."""
    metadata = sentencepiece_metadata()
    tokens = [*metadata["tokenizer.ggml.tokens"], "</", "s>"]
    spelled = metadata | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [*metadata["tokenizer.ggml.scores"], 1.0, 2.0],
        "tokenizer.ggml.merges": ["< /", "s >", "</ s>"],
    }
    tokenizer = tokenizer_from_gguf(spelled)
    assert tokenizer.encode("</s>", specials=True) == [2]
    plain = tokenizer.encode("</s>", specials=False)
    assert 2 not in plain
    assert tokenizer.decode(plain) == "</s>"


def test_ends_of_a_turn_are_known_by_name() -> None:
    tokens = [*CONTROLS, "<|im_end|>", "<|eot_id|>", *learned("gpt2")[0]]
    kinds = [3] * 7 + [1] * (len(tokens) - 7)  # the last named one is not a control token
    tokenizer = tokenizer_from_gguf(byte_level_metadata(tokens=tokens, token_type=kinds, eot_token_id=3))
    assert tokenizer.eos_ids == (0, 3, 5, 6)


def test_threads_do_not_mix_modes() -> None:
    tokenizer, text = toy("llama"), "a</s> b" * 200
    expected = {mode: tokenizer.encode(text, specials=mode) for mode in (True, False)}
    assert expected[True] != expected[False]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda i: (i % 2 == 0, tokenizer.encode(text, specials=i % 2 == 0)), range(60))
        assert all(ids == expected[mode] for mode, ids in results)


def test_long_texts_are_quick() -> None:
    """The suite's time limit is the judge: none of these may be quadratic."""
    for kind in ("gpt2", "llama", "gemma3"):
        for text in ("a" * 300_000, " " * 300_000, "\n" * 300_000, "<|" * 100_000, "1" * 300_000):
            ids = toy(kind).encode(text, specials=False)
            assert toy(kind).decode(ids).strip(" ") == text.strip(" ")


def test_lone_surrogates_are_the_clients_fault() -> None:
    for text in ("a\ud800", "<|end\udfff|>"):
        with pytest.raises(BadRequest):
            toy("gpt2").encode(text, specials=True)
        with pytest.raises(BadRequest):
            toy("gpt2").control_spans(text + "<|")


# ------------------------------------------------------------------------------------------------ bad files


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"tokens": []},
        {"tokens": [97] * 16},
        {"tokens": "abc"},
        {"tokens": ["a", "\udcff"]},
        {"tokens": ["a" * 5000, "b"]},
        {"model": "rwkv"},
        {"model": 7},
        {"model": None},
        {"pre": "no-such-thing"},
        {"pre": ["gpt-2"]},
        {"merges": ["nospace", "\udcff \udcfe"]},
        {"merges": ["a zzz"]},
        {"merges": [1, 2]},
        {"token_type": ["3"]},
        {"eos_token_id": 0xFFFFFFF0},
        {"bos_token_id": -1},
        {"bos_token_id": "1"},
    ],
    ids=str,
)
def test_broken_vocabularies_are_refused_in_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError) as refusal:
        tokenizer_from_gguf(byte_level_metadata(**changes))
    assert "\n" not in refusal.value.message and len(refusal.value.message) < 200


def test_a_sentencepiece_vocabulary_without_scores_is_refused() -> None:
    for scores in (None, [0.0], ["1"] * 2000):
        with pytest.raises(ModelFileError, match="score"):
            tokenizer_from_gguf(sentencepiece_metadata(scores=scores))


def test_missing_token_types_are_ordinary() -> None:
    tokenizer = tokenizer_from_gguf(byte_level_metadata(token_type=[3]))
    assert tokenizer.encode("<|end|><think>", specials=True)[0] == 0
    assert 6 not in tokenizer.encode("<think>", specials=True)


@settings(max_examples=60, deadline=None)
@given(
    model=st.sampled_from(["gpt2", "llama"]),
    architecture=st.sampled_from(["llama", "gemma3"]),
    tokens=st.lists(st.one_of(st.text(max_size=4), st.sampled_from(["a", "b", "ab", "▁", "<0x41>", ""])), max_size=30),
    kinds=st.lists(st.integers(-1, 9), max_size=40),
    scores=st.lists(st.floats(width=32), max_size=40),
    merges=st.lists(st.sampled_from(["a b", "b a", "ab ab", " ", "a  b", ""]), max_size=3),
    eos=st.integers(0, 40),
)
def test_any_vocabulary_is_a_tokenizer_or_refused(
    model: str, architecture: str, tokens: list[str], kinds: list[int], scores: list[float], merges: list[str], eos: int
) -> None:
    given = {"model": model, "tokens": tokens, "token_type": kinds, "scores": scores, "merges": merges, "eos_token_id": eos}
    metadata = {"general.architecture": architecture} | {f"tokenizer.ggml.{k}": v for k, v in given.items()}
    try:
        tokenizer = tokenizer_from_gguf(metadata)
    except ModelFileError:
        return
    ids = tokenizer.encode("ab a<0x41>" + "".join(tokens), specials=False)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert isinstance(tokenizer.decode(ids), str)
    assert [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]


# ------------------------------------------------------------------------------------------------ Hugging Face folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the toy byte-level vocabulary as tokenizer.json."""
    core = gguf_vocab.build(gguf_vocab.read_vocab(byte_level_metadata("qwen2")))
    core.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_folder_equals_transformers(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    ours = tokenizer_from_json(folder)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    assert [ours.encode(t, specials=True) for t in HARD] == [theirs.encode(t, add_special_tokens=False) for t in HARD]
    assert (ours.bos_id, ours.eos_ids, ours.vocab_size) == (1, (0, 5), len(theirs))
    assert b"".join(map(ours.token_bytes, ours.encode("né <think>", specials=False))).decode() == "né <think>"


def test_named_tokens_may_be_objects(folder: Path) -> None:
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": {"content": "</s>"}, "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokenizer_from_json(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids[0]) == (3, 4)


@pytest.mark.parametrize("broken", ["", "{}", "[1]", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'])
def test_a_broken_folder_is_refused(folder: Path, broken: str) -> None:
    (folder / "tokenizer.json").write_text(broken)
    with pytest.raises(ModelFileError):
        tokenizer_from_json(folder)


@pytest.mark.parametrize("broken", ["{", "[]", "[" * 100_000])
def test_a_broken_config_is_refused(folder: Path, broken: str) -> None:
    (folder / "tokenizer_config.json").write_text(broken)
    with pytest.raises(ModelFileError, match=r"tokenizer_config\.json"):
        tokenizer_from_json(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        tokenizer_from_json(tmp_path)
