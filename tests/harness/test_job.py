"""Jobs: a TOML file becomes a request with context and a definition of done."""

from pathlib import Path

import pytest

from baseload.harness import Job, load_jobs, parse_job, prepare
from baseload.wire.chat import ChatRequest, Message, ResponseFormat, SamplingParams, Text
from baseload.wire.errors import BadRequest, ModelNotFound

SHIPPED = Path(__file__).parents[2] / "configs" / "jobs"


def ask(model: str, **kwargs: object) -> ChatRequest:
    return ChatRequest(model, messages=(Message("user", (Text("Ann, ann@example.org"),)),), **kwargs)  # pyright: ignore[reportArgumentType]


def test_shipped_jobs_load_and_promise_a_schema():
    job = load_jobs([SHIPPED])["extract-contact"]
    assert job.model == "auto"
    assert job.schema is not None
    assert set(job.schema["required"]) == {"name", "email"}


def test_a_job_adds_context_and_its_definition_of_done():
    job = Job("mail", instructions="Extract.", schema={"type": "object"}, checks=({"type": "non_empty"},), max_tokens=7)
    request = prepare(ask("job:mail"), {"mail": job})
    assert request.model == "auto"
    assert [m.role for m in request.messages] == ["system", "user"]
    assert request.response_format == ResponseFormat("json_schema", "mail", {"type": "object"}, strict=True)
    assert request.extras.checks == ({"type": "non_empty"},)
    assert request.sampling.max_tokens == 7
    assert request.sampling.temperature == 0.0


def test_what_the_client_set_itself_wins():
    job = Job("mail", schema={"type": "object"}, max_tokens=7)
    own = ResponseFormat("json_schema", "mine", {"type": "array"})
    request = prepare(ask("job:mail", response_format=own, sampling=SamplingParams(max_tokens=99)), {"mail": job})
    assert request.response_format == own
    assert request.sampling.max_tokens == 99


def test_other_requests_pass_through_untouched():
    request = ask("local")
    assert prepare(request, {}) is request


def test_an_unknown_job_is_an_unknown_model():
    with pytest.raises(ModelNotFound, match="job:none"):
        prepare(ask("job:none"), {})


def test_a_job_needs_messages():
    with pytest.raises(BadRequest):
        prepare(ChatRequest("job:mail", prompt="x"), {"mail": Job("mail")})


def test_later_folders_replace_earlier_jobs(tmp_path: Path):
    for folder, words in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "j.toml").write_text(f'instructions = "{words}"')
    assert load_jobs([tmp_path / "a", tmp_path / "b", tmp_path / "none"])["j"].instructions == "two"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modle = 'auto'", "modle"),
        ("max_tokens = 'many'", "max_tokens"),
        ("instructions = ", "job 'x'"),
        ("schema = '{'", "job 'x'"),
        ("model = 'job:x'", "another job"),
    ],
)
def test_a_broken_job_says_what_is_wrong(text: str, says: str):
    with pytest.raises(BadRequest, match=says):
        parse_job(text, "x")
