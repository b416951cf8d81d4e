"""Health, readiness, numbers, and a request's page."""

from collections.abc import AsyncGenerator

import pytest

from baseload.server.services import Services
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, TextDelta, Usage


def sample(page: str, name: str) -> float:
    """The value of the one sample that begins with `name`."""
    found = [line for line in page.splitlines() if line.startswith(name)]
    assert len(found) == 1, (name, found)
    return float(found[0].rsplit(" ", 1)[1])


def test_while_starting_only_health_speaks_and_says_so(serve):
    running = serve(started=False)
    for path in ("/health", "/ready", "/v1/models", "/v1/requests/x"):
        answer = running.get(path)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "starting" in answer.text
    assert running.post().json()["error"]["code"] == "starting"
    assert running.get("/metrics").status_code == 200
    running.app.state.life.start(Services(running.router, running.ledger, lambda: {"tiny": running.engine}))
    for path in ("/health", "/ready", "/v1/models"):
        assert running.get(path).status_code == 200


def test_a_dead_engine_is_told_with_its_reason(serve):
    running = serve()
    assert running.get("/health").json() == {"status": "ok"}
    running.engine.now.alive = False
    for path in ("/health", "/ready"):
        answer = running.get(path)
        assert answer.status_code == 503
        assert "engine" in answer.json()["reason"]
    running.engine.now.alive = True
    assert running.get("/ready").status_code == 200


def test_a_draining_server_is_healthy_but_not_ready(serve):
    running = serve()
    running.app.state.life.phase = "draining"
    assert running.get("/health").status_code == 200
    assert running.get("/ready").json()["reason"] == "draining"
    assert running.post().json()["error"]["code"] == "shutting_down"


def test_the_engines_numbers_have_vllms_names(serve):
    page = serve().get("/metrics").text
    label = '{model_name="tiny"}'
    expected = {
        "vllm:num_requests_running": 2,
        "vllm:num_requests_waiting": 1,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:prompt_tokens_total": 500,
        "vllm:generation_tokens_total": 600,
        "vllm:prefix_cache_queries_total": 50,
        "vllm:prefix_cache_hits_total": 40,
        "vllm:num_preemptions_total": 3,
        "vllm:spec_decode_num_draft_tokens_total": 90,
        "vllm:spec_decode_num_accepted_tokens_total": 70,
        "baseload_kv_pages_total": 100,
        "baseload_kv_pages_free": 60,
        "baseload_kv_pages_cached": 15,
        "baseload_engine_alive": 1,
        "baseload_kv_store_enabled": 1,
        "baseload_kv_store_pages": 7,
        "baseload_kv_store_bytes": 7000,
        "baseload_kv_store_hits_total": 8,
        "baseload_kv_store_misses_total": 9,
        "baseload_kv_store_corrupt_total": 1,
        "baseload_kv_store_saved_total": 11,
        "baseload_kv_store_dropped_total": 2,
    }
    assert {name: sample(page, name + label) for name in expected} == expected


def test_answers_are_counted_and_timed(serve):
    async def script(ask: ChatRequest) -> AsyncGenerator[Event, None]:
        if ask.messages[-1].text == "fail":
            yield Failure("no", 502)
            return
        yield TextDelta("one two three", tokens=3)
        yield Usage(5, 3)
        yield Finish("length")

    running = serve(script)
    running.post(stream=True)
    running.post(stream=False)
    running.post(text="fail")
    page = running.get("/metrics").text
    assert sample(page, 'vllm:request_success_total{finished_reason="length",model_name="tiny"}') == 2
    assert sample(page, 'vllm:request_success_total{finished_reason="error",model_name="tiny"}') == 1
    assert sample(page, 'vllm:time_to_first_token_seconds_count{model_name="tiny"}') == 2
    assert sample(page, 'vllm:inter_token_latency_seconds_count{model_name="tiny"}') == 4
    assert sample(page, 'vllm:e2e_request_latency_seconds_count{model_name="tiny"}') == 2
    assert sample(page, 'baseload_attempts_total{route="local"}') == 3
    assert sample(page, "baseload_answers_in_flight") == 0


def test_paths_that_clients_invent_are_one_label(serve):
    running = serve()
    for n in range(5):
        running.get(f"/invented/{n}")
        running.get(f"/v1/models/{n}")
    running.get("/metrics")
    page = running.get("/metrics").text
    assert sample(page, 'baseload_http_requests_total{path="other",status="404"}') == 5
    assert sample(page, 'baseload_http_requests_total{path="/v1/models/{name:path}",status="404"}') == 5
    assert "invented" not in page


def test_a_request_can_be_looked_up_by_its_id(serve):
    running = serve()
    request_id = running.post().headers["x-baseload-request-id"]
    running.ledger.requests[request_id] = {"id": request_id, "attempts": [{"backend": "local"}]}
    found = running.get(f"/v1/requests/{request_id}")
    assert found.json()["attempts"] == [{"backend": "local"}]
    assert running.ledger.flushed == 1


@pytest.mark.parametrize(
    ("name", "status"), [("req_unknown", 404), ("..%2f..%2fetc%2fpasswd", 400), ("x" * 129, 400), ("a'b", 400)]
)
def test_other_ids_are_refused(serve, name, status):
    answer = serve().get(f"/v1/requests/{name}")
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
