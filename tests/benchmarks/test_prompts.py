"""What the load client asks."""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.benchmarks.prompts import Generated, Listed, Prompt, read_prompts, words


@given(st.integers(1, 300), st.integers(0, 99), st.text(max_size=8), st.integers(0, 200))
def test_generated_prompts_are_seeded_and_of_the_length_asked_for(n: int, seed: int, salt: str, shared: int):
    source = Generated(n, 7, seed, salt, shared, prefixes=2)
    first = list(itertools.islice(source.stream("a"), 4))
    assert first == list(itertools.islice(source.stream("a"), 4))
    assert all(len(p.text.split()) == n + shared and p.max_tokens == 7 for p in first)
    if n >= 16:
        others = [Generated(n, 7, seed + 1, salt), Generated(n, 7, seed, salt + "x")]
        texts = [p.text.split()[shared:] for p in first] + [o.prompt("a", 0).text.split() for o in others]
        assert len(set(map(tuple, texts))) == len(texts)


def test_a_vocabulary_of_common_words():
    assert len(set(words(5000, "k").split())) > 150


CONTENT_PARTS = [{"type": "text", "text": "Hello"}, {"type": "image_url", "image_url": {"url": "data:,"}}]


def test_a_salt_comes_first_and_leaves_the_rest_as_it_was():
    system = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": CONTENT_PARTS}
    salted = Prompt(messages=(system, user), max_tokens=5).salted("s t")
    assert salted.messages == ({"role": "system", "content": "s t Be brief."}, user) and salted.max_tokens == 5
    assert system["content"] == "Be brief."
    parts = Prompt(messages=(user,)).salted("s t").messages[0]["content"]
    assert parts == [{"type": "text", "text": "s t"}, *CONTENT_PARTS]
    assert Prompt("Hello").salted("s").text == "s Hello"


def test_messages_become_text_for_plain_completions():
    prompt = Prompt(messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": CONTENT_PARTS[:1]}))
    assert prompt.body("completions") == {"prompt": "Be brief.\nHello", "max_tokens": 128}
    assert Prompt("Hi").body("chat")["messages"] == [{"role": "user", "content": "Hi"}]


def test_a_list_goes_round_and_round():
    listed = Listed((Prompt("a"), Prompt("b")), salt="")
    assert [p.text for p in itertools.islice(listed.stream("x"), 5)] == ["a", "b", "a", "b", "a"]
    salted = [p.text for p in itertools.islice(Listed((Prompt("a"),), salt="q").stream("x"), 5)]
    assert len(set(salted)) == 5


BAD = (
    *("{", "[]", "{}", '{"prompt": ""}', '{"prompt": 3}', '{"messages": []}', '{"messages": ["hi"]}'),
    '{"prompt": "a", "messages": [{}]}',
    *(f'{{"prompt": "a", "max_tokens": {n}}}' for n in ("0", "-1", "true", "1.5", '"3"')),
)


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_named(line: str, tmp_path: Path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"p\.jsonl:2: "):
        read_prompts(file, 8)


def test_an_empty_file_is_refused(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="no prompts"):
        read_prompts(tmp_path / "p.jsonl", 8)


@given(st.lists(st.fixed_dictionaries({"prompt": st.text(min_size=1)}, optional={"max_tokens": st.integers(1, 9)}), min_size=1))
def test_what_is_in_the_file_is_what_is_asked(rows: list[dict[str, Any]]):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "p.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        read = read_prompts(file, 77)
    assert [(p.text, p.max_tokens) for p in read] == [(row["prompt"], row.get("max_tokens", 77)) for row in rows]
