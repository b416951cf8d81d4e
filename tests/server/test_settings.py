"""Settings: four places, one order, no silent mistakes."""

import os
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.router.placement import first_of
from baseload.server.build import policy_of
from baseload.server.settings import SECTIONS, Settings, SettingsError, known_keys, load
from baseload.wire.chat import ChatRequest, Message, Text
from baseload.wire.errors import BaseloadError

ROOT = Path(__file__).parents[2]
DEFAULTS = ROOT / "configs" / "default.toml"


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    """No configuration of this machine gets in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BASELOAD_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("BASELOAD_") and name != "BASELOAD_HOME"]:
        monkeypatch.delenv(name)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_with_nothing_given_everything_is_a_default():
    settings, origins = load()
    assert settings == Settings()
    assert set(origins.values()) == {"default"}
    assert set(origins) == set(known_keys())


def test_default_toml_shows_every_key_with_its_default():
    settings, _ = load(DEFAULTS)
    assert settings == Settings()
    table = tomllib.loads(DEFAULTS.read_text())
    assert {name: set(section) for name, section in table.items()} == {
        name: {f.name for f in fields(section)} for name, section in SECTIONS.items()
    }


def test_the_command_line_wins_over_variables_over_the_file_over_defaults(tmp_path):
    file = write(tmp_path / "c.toml", "[server]\nport = 1\nmax_body_mb = 2\nmax_connections = 3\n")
    env = {"BASELOAD_SERVER__PORT": "11", "BASELOAD_SERVER__MAX_BODY_MB": "12"}
    settings, origins = load(file, {"server.port": 21}, env)
    assert (settings.server.port, settings.server.max_body_mb, settings.server.max_connections) == (21, 12, 3)
    assert settings.server.host == "127.0.0.1"
    assert origins["server.port"] == "command line"
    assert origins["server.max_body_mb"] == "env BASELOAD_SERVER__MAX_BODY_MB"
    assert origins["server.max_connections"] == f"file {file}"
    assert origins["server.host"] == "default"


def test_short_variables_and_the_long_one_wins():
    env = {"BASELOAD_PORT": "5", "BASELOAD_MODEL": "a, b,", "BASELOAD_AIR_GAP": "yes"}
    settings, origins = load(env=env)
    assert (settings.server.port, settings.models.serve, settings.router.air_gap) == (5, ("a", "b"), True)
    assert origins["models.serve"] == "env BASELOAD_MODEL"
    assert load(env=env | {"BASELOAD_SERVER__PORT": "6"})[0].server.port == 6


def test_the_file_here_wins_over_the_one_at_home(tmp_path):
    write(tmp_path / "home" / "config.toml", "[server]\nport = 1\n")
    assert load(env={})[0].server.port == 1
    write(tmp_path / "baseload.toml", "[server]\nport = 2\n")
    assert load(env={})[0].server.port == 2


def test_suppliers_are_handed_on_as_tables(tmp_path):
    file = write(tmp_path / "c.toml", '[suppliers.near]\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n')
    settings, origins = load(file)
    assert settings.suppliers["near"]["kind"] == "openai"
    assert origins["suppliers.near"] == f"file {file}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server]\nprot = 1\n", "'server.prot'; did you mean 'server.port'"),
        ("[sever]\nport = 1\n", "[sever]; did you mean 'server'"),
        ("port = 1\n", "unknown section [port]"),
        ("server = 1\n", "must be a table"),
        ("[server]\nport = '1x'\n", "server.port must be a whole number"),
        ("[server]\nport = 1.5\n", "server.port must be a whole number"),
        ("[server]\nport = true\n", "server.port must be a whole number"),
        ("[server]\nport = 70000\n", "between 0 and 65535"),
        ("[server]\ndrain_timeout_s = nan\n", "between"),
        ("[server]\nhost = 1\n", "server.host must be a string"),
        ("[router]\nair_gap = 'perhaps'\n", "true or false"),
        ("[router]\nair_gap = 1\n", "true or false"),
        ("[router]\nladder = [1]\n", "list of strings"),
        ("[log]\nlevel = 'loud'\n", "one of debug, info"),
        ("[suppliers]\nx = 1\n", "[suppliers.<name>]"),
        ("suppliers = 3\n", "[suppliers.<name>]"),
        ("[server\n", "c.toml"),
    ],
)
def test_a_mistake_stops_the_start_and_names_the_key(tmp_path, text, says):
    with pytest.raises(SettingsError) as caught:
        load(write(tmp_path / "c.toml", text))
    assert says in caught.value.message
    assert "c.toml" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_mistaken_variable_is_named():
    with pytest.raises(SettingsError, match=r"BASELOAD_SERVER__PROT.*server\.port"):
        load(env={"BASELOAD_SERVER__PROT": "1"})
    with pytest.raises(SettingsError, match="BASELOAD_PORT"):
        load(env={"BASELOAD_PORT": "http"})
    assert load(env={"BASELOAD_API_KEY": "k", "BASELOAD_SOMETHING": "x"})[0] == Settings()


def test_a_file_that_was_asked_for_must_be_there(tmp_path):
    with pytest.raises(SettingsError, match="no configuration file"):
        load(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"bad\.toml"):
        load(tmp_path / "bad.toml")


@given(st.integers(0, 65535), st.booleans(), st.lists(st.from_regex(r"[a-z][a-z0-9/-]{0,10}", fullmatch=True), max_size=4))
def test_a_variable_says_the_same_as_the_file(port, air_gap, ladder):
    env = {
        "BASELOAD_SERVER__PORT": str(port),
        "BASELOAD_ROUTER__AIR_GAP": str(air_gap),
        "BASELOAD_ROUTER__LADDER": ",".join(ladder),
    }
    settings, _ = load(env=env)
    same, _ = load(env={}, cli={"server.port": port, "router.air_gap": air_gap, "router.ladder": ladder})
    assert settings == same


def test_the_configuration_for_agents_is_sound():
    settings, _ = load(ROOT / "configs" / "coding-agents.toml", env={})
    rules = policy_of(settings).rules
    assert settings.server.default_model == "auto" and [rule.place for rule in rules] == ["local"] * 3
    title = ChatRequest("auto", (Message("system", (Text("You are a title generator."),)), Message("user", (Text("hi"),))))
    assert (first := first_of(rules, title)) and first.name == "titles" and first.only
    assert first_of(rules, ChatRequest("auto", (Message("user", (Text("Fix the bug in main.py"),)),))) is None


@pytest.mark.parametrize(
    "text", ["[[rules]]\nplace = 'local'", "rules = 3", "[data_classes]\npublic = 'x'\nsecret = 3", "[router]\nrepairs = 99"]
)
def test_wrong_tables_stop_the_start(tmp_path, text):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(BaseloadError):
        policy_of(load(tmp_path / "c.toml", env={})[0])
