"""Requests through a core, step by step: what comes out, when it ends, and what a fault at each seam costs."""

import numpy as np
import pytest

from baseload.runtime.engine.core import BROKEN, CANCELLED
from baseload.wire.chat import Failure
from baseload.wire.errors import BadRequest, ContextLengthExceeded


def fail(*args: object, **kwargs: object) -> None:
    raise RuntimeError("broken on purpose")


# ------------------------------------------------------------------------------------------- how an answer ends


def test_an_answer_comes_token_by_token_and_ends_at_max_tokens(bench):
    b = bench()
    b.submit("a", "hello", max_tokens=4)
    b.finish()
    assert [o.text for o in b.outputs["a"]] == ["p", "q", "r", "s"]
    assert [o.token_ids for o in b.outputs["a"]] == [(112,), (113,), (114,), (115,)]
    assert (b.end("a").finish, b.end("a").prompt_tokens, b.end("a").cached_tokens) == ("length", 5, 0)


@pytest.mark.parametrize(("max_tokens", "n"), [(None, 15), (32_000, 15), (3, 3), (15, 15), (1, 1)])
def test_max_tokens_is_cut_at_the_contexts_end(bench, max_tokens: int | None, n: int):
    """Coding agents ask for 32000 whatever the model; that is no error."""
    b = bench(context_length=20)
    b.submit("a", "hello", max_tokens=max_tokens)
    b.finish()
    assert (len(b.outputs["a"]), b.end("a").finish) == (n, "length")


def test_the_end_of_sequence_is_counted_but_not_shown(bench):
    b = bench(lambda context: 0 if len(context) == 7 else 97)
    b.submit("a", max_tokens=50)
    b.submit("b", max_tokens=9, ignore_eos=True)
    b.finish()
    assert b.text("a") == "aa" and (b.end("a").finish, b.end("a").matched_stop, b.end("a").token_ids) == ("stop", None, (0,))
    assert b.text("b") == "aaaaaaaa" and b.end("b").finish == "length"


def test_a_stop_token_is_named_and_not_shown(bench):
    b = bench()
    b.submit("a", max_tokens=50, stop_token_ids=(ord("r"), ord("x")))
    b.finish()
    assert b.text("a") == "pq" and (b.end("a").finish, b.end("a").matched_stop) == ("stop", ord("r"))


def test_a_stop_string_over_two_tokens_never_shows_a_part(bench):
    b = bench()
    b.submit("a", max_tokens=50, stop=("rs",))
    b.finish()
    assert [o.text for o in b.outputs["a"]] == ["p", "q", "", ""]
    assert (b.end("a").finish, b.end("a").matched_stop) == ("stop", "rs")


def test_half_a_character_that_completes_a_stop_string_at_the_end_ends_with_it(bench):
    b = bench(lambda context: 0xC3 if context[-1] == ord("e") else ord("e"))
    b.submit("a", max_tokens=2, stop=("e\ufffd",))
    b.submit("b", max_tokens=2, stop=("e\ufffde",))
    b.finish()
    assert (b.text("a"), b.end("a").finish, b.end("a").matched_stop) == ("", "stop", "e\ufffd")
    assert (b.text("b"), b.end("b").finish, b.end("b").matched_stop) == ("e\ufffd", "length", None)


def test_what_was_held_back_for_a_stop_string_comes_at_the_end(bench):
    b = bench()
    b.submit("a", max_tokens=3, stop=("rst",))
    b.finish()
    assert [o.text for o in b.outputs["a"]] == ["p", "q", "r"] and b.end("a").finish == "length"


def test_half_a_character_at_the_end_is_a_replacement_character(bench):
    b = bench(lambda context: 0xE6)
    b.submit("a", max_tokens=1)
    b.finish()
    assert b.text("a") == "\ufffd"


def test_min_tokens_holds_off_every_kind_of_end(bench):
    b = bench(lambda context: np.eye(1, 256, 0)[0] * 9 + np.eye(1, 256, 97)[0] * 5)  # wants to end, else says a
    b.submit("eos", min_tokens=4, max_tokens=9)
    b.submit("token", min_tokens=4, max_tokens=9, ignore_eos=True, stop_token_ids=(0,))
    b.submit("text", min_tokens=4, max_tokens=9, stop=("a",))
    b.finish()
    assert [len(b.outputs[name]) for name in ("eos", "token", "text")] == [5, 5, 4]
    assert b.text("eos") == "aaaa" and b.text("text") == "aaa"


def test_logprobs_name_the_token_its_bytes_and_the_others(bench):
    b = bench()
    b.submit("a", max_tokens=1, logprobs=2)
    b.submit("b", max_tokens=1)
    b.finish()
    (chosen,) = b.end("a").logprobs
    assert (chosen.token, chosen.bytes, chosen.token_id) == ("p", b"p", 112)
    assert chosen.logprob == pytest.approx(5 - np.log(np.exp(5) + 255)) == chosen.top[0].logprob
    assert len(chosen.top) == 2 and b.end("b").logprobs == ()


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("prompt", "sampling", "error", "says"),
    [
        (b"", {}, BadRequest, "empty"),
        (b"x" * 20, {}, ContextLengthExceeded, "maximum context length is 20 tokens.*20 tokens"),
        (b"x" * 300, {"max_tokens": 1}, ContextLengthExceeded, "20 tokens.*300 tokens"),
        (b"x", {"logit_bias": ((256, 1.0),)}, BadRequest, "logit_bias"),
        (b"x", {"logit_bias": ((-1, 1.0),)}, BadRequest, "logit_bias"),
        (b"x", {"stop_token_ids": (999,)}, BadRequest, "stop_token_ids"),
    ],
)
def test_what_can_never_be_answered_is_refused(bench, prompt: bytes, sampling: dict, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        bench(context_length=20).submit("a", prompt, **sampling)


def test_a_prompt_larger_than_the_pool_is_refused_and_the_largest_that_fits_is_answered(bench):
    b = bench(n_pages=3)
    with pytest.raises(ContextLengthExceeded, match="12 tokens"):
        b.submit("a", "x" * 12)
    b.submit("b", "x" * 11, max_tokens=None)
    b.finish()
    assert b.text("b") == "y"


# ------------------------------------------------------------------------------------------- sharing and pushing out


def test_a_known_prefix_is_not_computed_again_and_changes_nothing(bench):
    b = bench()
    b.submit("a", "once upon a time")
    b.finish()
    first = b.model.n_tokens
    b.submit("b", "once upon a time")
    b.submit("c", "once upon a time", salt="another's")
    b.finish()
    assert b.text("a") == b.text("b") == b.text("c")
    assert (b.end("b").cached_tokens, b.end("c").cached_tokens) == (12, 0)
    assert b.model.n_tokens - first == 2 * first - 12
    assert (b.core.prompt_tokens, b.core.prefix_hit_tokens, b.core.generation_tokens) == (48, 12, 15)


def test_an_answer_that_was_pushed_out_is_the_same(bench):
    alone, crowd = bench(), bench(n_pages=8, max_batch=4)
    for name in "abcd":
        alone.submit(name, name * 6, max_tokens=16, temperature=1.0, seed=7)
        alone.finish()
        crowd.submit(name, name * 6, max_tokens=16, temperature=1.0, seed=7)
    crowd.finish()
    assert crowd.core.scheduler.preemptions > 0
    assert [crowd.text(name) for name in "abcd"] == [alone.text(name) for name in "abcd"]
    assert all(crowd.end(name).cached_tokens == 0 for name in "abcd"), "one's own pages found again are no cache hit"


# ------------------------------------------------------------------------------------------- aborts


@pytest.mark.parametrize("when", ["queued", "in prefill", "in decode"])
def test_an_abort_takes_one_step_and_gives_all_pages_back(bench, when: str):
    b = bench(max_batch=1, token_budget=8)
    if when == "queued":
        b.submit("first", max_tokens=50)
    b.submit("a", "a" * 20, max_tokens=50)
    b.step(5 if when == "in decode" else 1)
    b.core.abort("a")
    b.core.abort("a")
    b.core.abort("nobody")
    b.step()
    assert b.end("a").failure == CANCELLED and sum(o.is_last for o in b.outputs["a"]) == 1
    b.finish()


def test_whoever_aborts_may_say_why(bench):
    b, why = bench(), Failure("The server is shutting down.", 503)
    b.submit("a")
    b.core.abort("a", why)
    b.step()
    assert b.end("a").failure == why


# ------------------------------------------------------------------------------------------- faults at each seam


def test_a_step_of_the_model_that_fails_ends_those_in_it_and_no_others(bench):
    b = bench(max_batch=2)
    for name in "abc":
        b.submit(name)
    b.model.hook = fail
    b.step()
    b.model.hook = lambda batch: None
    b.finish()
    assert [b.end(name).failure for name in "ab"] == [BROKEN, BROKEN] and b.text("c") == "pqrst"


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_row_without_numbers_ends_alone_and_leaves_no_trace(bench, broken: float):
    b = bench(lambda context: np.full(256, broken) if context[0] == 120 and len(context) > 9 else 97)
    b.submit("sick", "xxxxxxxx")
    b.submit("well", "hello")
    b.finish()
    assert b.end("sick").failure == BROKEN and b.text("sick") == "aa" and b.text("well") == "aaaaa"
    b.submit("again", "xxxxxxxx")
    b.finish()
    assert b.end("again").cached_tokens == 0, "pages of a broken answer are not trusted"


def test_a_token_that_cannot_be_spelled_ends_its_request_only(bench, monkeypatch: pytest.MonkeyPatch):
    b = bench()
    spell = b.core._tokenizer.token_bytes
    monkeypatch.setattr(b.core._tokenizer, "token_bytes", lambda id: fail() if id == ord("r") else spell(id))
    b.submit("a", "hello")
    b.submit("b", "world")
    b.finish()
    assert b.text("a") == "pq" and b.end("a").failure == BROKEN
    assert b.text("b") == "efghi" and b.end("b").finish == "length"


def test_a_request_that_cannot_be_sampled_ends_alone(bench):
    b = bench()
    b.submit("sick", temperature=1.0, top_p=object())
    b.submit("well")
    b.finish()
    assert b.end("sick").failure == BROKEN and b.text("well") == "pqrst"


@pytest.mark.parametrize("seam", ["sample", "build_batch"])
def test_a_fault_that_is_nobodys_ends_the_batch_and_the_next_goes_on(bench, seam: str, monkeypatch: pytest.MonkeyPatch):
    b = bench()
    b.submit("a")
    b.submit("b")
    with monkeypatch.context() as m:
        m.setattr(f"baseload.runtime.engine.core.{seam}", fail)
        b.step()
    assert b.end("a").failure == b.end("b").failure == BROKEN
    b.submit("c")
    b.finish()
    assert b.text("c") == "pqrst"


def test_running_out_of_memory_in_a_step_is_survived(bench):
    b = bench()

    def out_of_memory(batch: object) -> None:
        raise MemoryError

    b.submit("a")
    b.model.hook = out_of_memory
    b.step()
    b.model.hook = lambda batch: None
    b.submit("b")
    b.finish()
    assert b.end("a").failure == BROKEN and b.text("b") == "pqrst"


@pytest.mark.parametrize("n_pages", range(3, 12))
def test_pages_run_out_at_every_possible_place(bench, n_pages: int):
    """SQLite's way: the same work with one page less each time, until the smallest pool that can hold a request."""
    b = bench(n_pages=n_pages, max_batch=3, token_budget=7)
    for name in "abc":
        b.submit(name, name * 5, max_tokens=7)
    b.finish()
    assert b.text("b") == "cdefghi" and b.text("c") == "defghij"
