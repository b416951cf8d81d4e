"""Text to token ids and back, on the real model."""

import pytest

BOS, USER = "<|im_start|>", [{"role": "user", "content": "Grüße, 世界 🌍 <|im_end|>"}]


def tokens(server, **body):
    status, answer, _ = server.call("/tokenize", {"model": "local"} | body)
    assert status == 200, answer
    assert answer["count"] == len(answer["tokens"]) and answer["max_model_len"] == 8192
    return answer


def text(server, ids):
    status, answer, _ = server.call("/detokenize", {"model": "local", "tokens": ids})
    assert status == 200, answer
    return answer["prompt"]


@pytest.mark.parametrize("given", ["Hello, world", "Grüße, 世界 🌍\n\tx = 1", "<|im_start|>user\nhi<|im_end|>", "", "a" * 3000])
def test_a_text_comes_back_from_its_ids(server, given):
    assert text(server, tokens(server, prompt=given)["tokens"]) == given


def test_a_conversation_has_the_ids_that_an_answer_would_be_charged_for(server):
    whole = tokens(server, messages=USER)
    _, answer, _ = server.call("/v1/chat/completions", {"model": "local", "messages": USER, "max_tokens": 1})
    assert answer["usage"]["prompt_tokens"] == whole["count"]
    shown = text(server, whole["tokens"])
    assert shown.endswith(f"{BOS}assistant\n") and USER[0]["content"] in shown
    head = tokens(server, prompt=f"{BOS}assistant\n")["tokens"]
    assert whole["tokens"] == tokens(server, messages=USER, add_generation_prompt=False)["tokens"] + head
    assert whole["tokens"].count(tokens(server, prompt="<|im_end|>")["tokens"][0]) == 2  # the user's own is plain text


def test_each_token_can_be_seen(server):
    answer = tokens(server, prompt="one two", return_token_strs=True)
    assert "".join(answer["token_strs"]) == "one two" and len(answer["token_strs"]) == answer["count"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": "x"}, "model"),
        ("/tokenize", {"model": "local"}, "prompt"),
        ("/tokenize", {"model": "local", "prompt": 7}, "prompt"),
        ("/tokenize", {"model": "local", "prompt": "x", "messages": USER}, "prompt"),
        ("/tokenize", {"model": "local", "messages": []}, "messages"),
        ("/tokenize", {"model": "local", "prompt": "x", "add_special_tokens": 1}, "add_special_tokens"),
        ("/tokenize", {"model": "local", "prompt": "x " * 2_000_000}, "prompt"),
        ("/detokenize", {"model": "local"}, "tokens"),
        ("/detokenize", {"model": "local", "tokens": "12"}, "tokens"),
        ("/detokenize", {"model": "local", "tokens": [-1]}, "tokens"),
        ("/detokenize", {"model": "local", "tokens": [True]}, "tokens"),
        ("/detokenize", {"model": "local", "tokens": [49_152]}, "tokens"),
        ("/detokenize", {"model": "local", "tokens": [1 << 40]}, "tokens"),
    ],
)
def test_what_is_wrong_is_named(server, path, body, param):
    status, answer, _ = server.call(path, body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_a_model_that_nobody_knows(server):
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
        assert server.call(path, {"model": "nobody"} | body)[0] == 404
