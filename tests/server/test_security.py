"""Who may ask: hosts, origins, keys, and what only this machine may read."""

import socket

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.server.security import check_bind, from_loopback, host_name, is_loopback, read_key
from baseload.server.settings import ServerSettings, SettingsError


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8787", "localhost", "LocalHost:1", "[::1]:8787", "gpu.lan:99"])
def test_our_names_are_answered(serve, host):
    assert serve(allowed_hosts=("gpu.lan",)).get("/v1/models", host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8787",
        "localhost.evil.example",
        "evil.example#127.0.0.1",
        "169.254.169.254",
        "127.0.0.1@evil",
    ],
)
def test_foreign_names_are_refused_whatever_a_proxy_header_says(serve, host):
    answer = serve().get("/v1/models", host=host, **{"x-forwarded-host": "localhost"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("lines", [b"", b"Host: \r\n", b"Host: localhost\r\nHost: evil.example\r\n"])
def test_exactly_one_host_is_needed(serve, lines):
    with serve().connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n" + lines + b"Connection: close\r\n\r\n")
        assert connection.recv(100).split()[1] in (b"400", b"403")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "chrome-extension://abcdef", "http://127.0.0.1:1", ""])
def test_a_foreign_origin_is_refused(serve, origin):
    answer = serve().get("/v1/models", origin=origin)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_our_own_origin_is_answered(serve):
    running = serve()
    assert running.get("/v1/models", origin=running.url).status_code == 200


def test_a_preflight_is_given_nothing(serve):
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = httpx2.options(serve().url + "/v1/chat/completions", headers=headers)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer wrong",
        "Bearer s3cre",
        "Bearer s3crets3cret",
        "Bearer S3CRET",
        "Bearer",
        "Basic s3cret",
        "s3cret",
        "Bearer \xff",
    ],
)
def test_a_key_is_asked_for_everywhere_but_at_health(serve, authorization):
    running = serve(key="s3cret")
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    for path in ("/v1/models", "/v1/nothing", "//v1/models", "/V1/models", "/v1/models?api_key=s3cret", "/health/../v1/models"):
        answer = httpx2.get(running.url + path, headers=headers)
        assert answer.status_code in (401, 404), path
        assert "tiny" not in answer.text
    refused = httpx2.get(running.url + "/v1/models", headers=headers)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert "s3cret" not in refused.text
    assert httpx2.get(running.url + "/health", headers=headers).status_code == 200
    assert httpx2.get(running.url + "/ready", headers=headers).status_code == 200


def test_the_key_opens(serve):
    running = serve(key="s3cret")
    assert running.get("/v1/models", authorization="Bearer s3cret").status_code == 200
    assert running.get("/v1/models", authorization="bearer s3cret").status_code == 200
    assert running.post(headers={"authorization": "Bearer s3cret"}).status_code == 200
    assert running.router.asked[0][1].key_id == "BASELOAD_API_KEY"


def test_two_authorizations_are_none(serve):
    with serve(key="s3cret").connect() as connection:
        connection.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Authorization: Bearer s3cret\r\nAuthorization: Bearer x\r\n\r\n"
        )
        assert connection.recv(100).split()[1] == b"401"


def test_numbers_and_requests_are_for_this_machine_or_the_key(serve):
    running = serve(key="s3cret")
    for path in ("/metrics", "/v1/requests/req_x"):
        assert running.get(path).status_code in (200, 404)
        # A proxy on this machine speaks for somebody else.
        assert running.get(path, **{"x-forwarded-for": "127.0.0.1"}).status_code == 403
        assert running.get(path, authorization="Bearer s3cret", forwarded="for=1.2.3.4").status_code in (200, 404)


@pytest.mark.parametrize(
    ("peer", "near"), [("127.0.0.1", True), ("::1", True), ("192.168.1.9", False), ("::ffff:8.8.8.8", False)]
)
def test_only_loopback_peers_are_this_machine(peer, near):
    assert from_loopback({"client": (peer, 5), "headers": []}) is near
    assert not from_loopback({"client": None, "headers": []})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gpu.lan", ""])
def test_binding_wide_needs_a_key(host):
    with pytest.raises(SettingsError, match="BASELOAD_API_KEY") as caught:
        check_bind(ServerSettings(host=host), env={})
    assert "\n" not in caught.value.message
    check_bind(ServerSettings(host=host), env={"BASELOAD_API_KEY": "k"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_none(host):
    check_bind(ServerSettings(host=host), env={"BASELOAD_API_KEY": "  "})


def test_the_key_is_read_from_the_variable_that_the_settings_name():
    assert read_key(ServerSettings(api_key_env="OTHER"), {"OTHER": " k\n", "BASELOAD_API_KEY": "no"}) == "k"


def test_a_server_bound_to_everything_answers_to_the_address_it_was_reached_at(serve):
    running = serve(host="0.0.0.0", key="s3cret")
    with socket.create_connection(("127.0.0.2", running.port)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.2\r\nConnection: close\r\n\r\n")
        assert connection.recv(100).split()[1] == b"200"
    assert running.get("/health", host="evil.example").status_code == 403


@given(st.text(max_size=60))
def test_a_host_that_is_read_holds_nothing_but_a_name(value):
    name = host_name(value)
    assert name is None or not set(name) & set("/@#?[] \\\n\t")


@given(st.ip_addresses(v=4), st.integers(0, 65535))
def test_addresses_are_read_with_and_without_a_port(address, port):
    assert host_name(f"{address}:{port}") == host_name(str(address)) == str(address)
    assert is_loopback(str(address)) == address.is_loopback
