"""What the house is told: one frozen dataclass per section, filled from four places.

The command line wins over `BASELOAD_*` variables, they over the TOML file, and that over the defaults below. An unknown key
stops the start with its name and the nearest known one. `configs/default.toml` shows every key with its default.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..runtime.store import default_root
from ..wire.errors import BaseloadError


class SettingsError(BaseloadError):
    """A setting is unknown, of the wrong kind or out of range. One line; never reaches HTTP clients."""

    default_code = "settings_error"


def bounded(default: float, low: float, high: float) -> Any:
    """A number's field with its closed range."""
    return field(default=default, metadata={"low": low, "high": high})


def one_of(default: str, *allowed: str) -> Any:
    """A word's field with the words allowed."""
    return field(default=default, metadata={"allowed": allowed})


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """[server]: the door to clients."""

    host: str = "127.0.0.1"  # anything but loopback needs a key
    port: int = bounded(8787, 0, 65535)  # 0 takes a free one
    api_key_env: str = "BASELOAD_API_KEY"  # the variable that holds the key; unset or empty: no key
    require_keys: bool = False  # true: a key is asked for even before the first virtual one is made
    allowed_hosts: tuple[str, ...] = ()  # names in `Host` beside loopback's and the bind address
    max_body_mb: int = bounded(32, 1, 1024)
    max_connections: int = bounded(512, 1, 65536)
    max_in_flight: int = bounded(256, 1, 65536)  # answers being made; more are refused with 429
    drain_timeout_s: float = bounded(30.0, 0, 3600)  # after SIGTERM
    default_model: str = ""  # answers unknown model names; empty: 404


@dataclass(frozen=True, slots=True)
class ModelsSettings:
    """[models]: what is served, and from where."""

    serve: tuple[str, ...] = ("smollm2-135m-instruct",)  # names or paths; the first is `local`
    store: str = ""  # empty: $BASELOAD_HOME
    engine: str = one_of("baseload", "baseload", "vllm")  # what computes


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """[engine]: batching and the KV cache."""

    kernels: str = one_of("auto", "auto", "cuda", "native", "torch")  # auto: cuda, else native, else torch
    isa: str = one_of("auto", "auto", "amx", "avx512", "avx2", "portable")  # of native; auto: the best there is
    page_size: int = bounded(32, 1, 1024)  # tokens; a multiple of 16 for the native kernels
    memory_mb: int = bounded(0, 0, 16_777_216)  # of all models together, KV caches included; 0: no limit
    kv_memory_mb: int = bounded(1024, 1, 4_194_304)
    kv_disk_mb: int = bounded(2048, 0, 1_073_741_824)  # for each model, in $BASELOAD_HOME/kv; 0: nothing outlives the process
    max_batch: int = bounded(64, 1, 4096)  # sequences in one step
    token_budget: int = bounded(512, 1, 1_048_576)  # tokens in one step
    max_guess: int = bounded(8, 0, 64)  # tokens guessed ahead from the text so far, where that pays; 0: none
    max_output: int = bounded(0, 0, 1_048_576)  # tokens of an answer, whatever is asked; 0: what the context leaves
    max_queue: int = bounded(256, 0, 1_048_576)  # waiting requests; more are refused with 429
    watchdog_s: float = bounded(10.0, 0.1, 3600)  # a step that takes longer is stuck
    threads: int = bounded(0, 0, 4096)  # 0: one per core


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """[vllm]: vLLM as a child, where models.engine says so."""

    python: str = ""  # of vLLM's own environment; empty: $VLLM_PYTHON, or the one that `baseload pull --engine vllm` made
    args: tuple[str, ...] = ()  # more of `vllm serve`'s
    start_s: float = bounded(1800.0, 1, 86400)  # until it must be healthy


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """[router]: what may leave, and in which order."""

    air_gap: bool = False  # nothing leaves this machine
    allowed_suppliers: tuple[str, ...] = ()
    ladder: tuple[str, ...] = ()  # local models or "supplier/model", tried in this order when an answer fails its checks
    repairs: int = bounded(0, 0, 8)  # more tries of a local model, told why it failed, before the next place
    max_attempts: int = bounded(6, 1, 64)  # of one request
    max_usd: float = bounded(0.0, 0, 1e6)  # what suppliers may ask for one request; 0: no limit
    conversation_usd: float = bounded(0.0, 0, 1e6)  # and for a conversation
    data_class: str = ""  # of requests that name none; [data_classes] says which suppliers may see which class
    check_tools: bool = False  # of `auto`: calls must fit their tools, or the next place is asked; answers are held back for it
    latch: bool = True  # a model that has called a tool gets its result
    spill_waiting: int = bounded(0, 0, 1_048_576)  # so many requests waiting: the next go to suppliers first; 0: never
    code_checks: bool = False  # checks may run programs that answers hold, in a sandbox
    commands: tuple[str, ...] = ()  # programs that checks may run, in a sandbox
    shadow: float = bounded(0.0, 0, 1)  # share of kept local answers that a supplier is asked for too, to learn from


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """[ledger]: the books."""

    url: str = ""  # empty: sqlite in $BASELOAD_HOME
    required: bool = True  # false: free local work goes on when the ledger cannot be written
    keep_text: bool = False  # prompts and answers are not stored unless this says so
    keep_text_days: float = bounded(30.0, 0.01, 36500)  # then they are forgotten, whether new ones are stored or not


@dataclass(frozen=True, slots=True)
class HardwareSettings:
    """[hardware]: what this machine costs."""

    profile: str = ""  # a name in configs/hardware or a TOML file; empty: local work has no price


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """[telemetry]: OpenTelemetry spans, of no word of a text; nothing is sent unless an endpoint is set."""

    otlp_endpoint: str = ""  # http://HOST:PORT of a collector; empty: $OTEL_EXPORTER_OTLP_ENDPOINT, or nowhere


@dataclass(frozen=True, slots=True)
class LogSettings:
    """[log]: what is told on stderr."""

    level: str = one_of("info", "debug", "info", "warning", "error")
    format: str = one_of("auto", "auto", "json", "text")  # auto: text on a terminal, JSON lines elsewhere


@dataclass(frozen=True, slots=True)
class Settings:
    """All sections. The tables [suppliers.<name>], [data_classes], [[rules]] and [[replicas]] are held as they are; their rooms
    read them."""

    server: ServerSettings = ServerSettings()
    models: ModelsSettings = ModelsSettings()
    engine: EngineSettings = EngineSettings()
    vllm: VllmSettings = VllmSettings()
    router: RouterSettings = RouterSettings()
    ledger: LedgerSettings = LedgerSettings()
    log: LogSettings = LogSettings()
    hardware: HardwareSettings = HardwareSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    suppliers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    data_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rules: tuple[Mapping[str, Any], ...] = ()
    replicas: tuple[Mapping[str, Any], ...] = ()


TABLES = ("suppliers", "data_classes", "rules", "replicas")
SECTIONS = {
    "server": ServerSettings,
    "models": ModelsSettings,
    "engine": EngineSettings,
    "vllm": VllmSettings,
    "router": RouterSettings,
    "ledger": LedgerSettings,
    "log": LogSettings,
    "hardware": HardwareSettings,
    "telemetry": TelemetrySettings,
}
SHORT = {
    "BASELOAD_HOST": "server.host",
    "BASELOAD_PORT": "server.port",
    "BASELOAD_MODEL": "models.serve",
    "BASELOAD_AIR_GAP": "router.air_gap",
    "BASELOAD_LEDGER": "ledger.url",
    "BASELOAD_LOG_LEVEL": "log.level",
    "BASELOAD_HARDWARE": "hardware.profile",
}


def known_keys() -> dict[str, Any]:
    """`section.key` -> the dataclass field, for every setting."""
    return {f"{name}.{f.name}": f for name, section in SECTIONS.items() for f in fields(section)}


def load(
    config: Path | None = None, cli: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
) -> tuple[Settings, dict[str, str]]:
    """The settings, and where each value came from (`section.key` -> "default", "file PATH", "env NAME", "command line").

    `cli` maps `section.key` to values. Without `config` the file is ./baseload.toml, else $BASELOAD_HOME/config.toml, else
    none. Raises SettingsError.
    """
    env = os.environ if env is None else env
    table, path = _read_file(config)
    known = known_keys()
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, "default")
    layers = (_from_file(table, path), _from_env(env), ((k, v, "command line") for k, v in (cli or {}).items()))
    for layer in layers:
        for key, value, origin in layer:
            if key not in known:
                raise SettingsError(f"{origin}: unknown setting {key!r}{_near(key, known)}")
            values[key] = _coerce(value, known[key], f"{origin}: {key}")
            origins[key] = origin
    suppliers = _suppliers(table, path)
    origins.update({f"suppliers.{name}": f"file {path}" for name in suppliers})
    tables = {"suppliers": suppliers, "data_classes": _data_classes(table, path), "rules": _rules(table, path)}
    tables["replicas"] = _rules(table, path, "replicas")
    return _assemble(values, tables), origins


def _assemble(values: Mapping[str, Any], tables: Mapping[str, Any]) -> Settings:
    sections = {
        name: section(**{f.name: values[f"{name}.{f.name}"] for f in fields(section) if f"{name}.{f.name}" in values})
        for name, section in SECTIONS.items()
    }
    return Settings(**sections, **tables)


# ------------------------------------------------------------------------------------------------------- the layers


def _read_file(config: Path | None) -> tuple[dict[str, Any], Path | None]:
    candidates = [config] if config else [Path("baseload.toml"), default_root() / "config.toml"]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        if config:
            raise SettingsError(f"There is no configuration file {config}.")
        return {}, None
    try:
        return tomllib.loads(path.read_text("utf-8")), path
    except (OSError, ValueError) as error:
        raise SettingsError(f"file {path}: {str(error).splitlines()[0]}") from error


def _from_file(table: Mapping[str, Any], path: Path | None) -> Iterator[tuple[str, Any, str]]:
    for name, section in table.items():
        if name in TABLES:
            continue
        if name not in SECTIONS:
            raise SettingsError(f"file {path}: unknown section [{name}]{_near(name, [*SECTIONS, *TABLES])}")
        if not isinstance(section, dict):
            raise SettingsError(f"file {path}: [{name}] must be a table")
        for key, value in section.items():
            yield f"{name}.{key}", value, f"file {path}"


def _from_env(env: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    # The long form is read last: it is the more exact of two names for one setting.
    for name, key in SHORT.items():
        if name in env:
            yield key, env[name], f"env {name}"
    for name in sorted(env):
        section, separator, key = name.removeprefix("BASELOAD_").lower().partition("__")
        if name.startswith("BASELOAD_") and separator:
            yield f"{section}.{key}", env[name], f"env {name}"


def _suppliers(table: Mapping[str, Any], path: Path | None) -> dict[str, Mapping[str, Any]]:
    suppliers = table.get("suppliers", {})
    if not isinstance(suppliers, dict) or not all(isinstance(value, dict) for value in suppliers.values()):
        raise SettingsError(f"file {path}: write suppliers as tables, [suppliers.<name>]")
    return suppliers


def _data_classes(table: Mapping[str, Any], path: Path | None) -> dict[str, tuple[str, ...]]:
    found = table.get("data_classes", {})
    if not isinstance(found, dict):
        raise SettingsError(f"file {path}: [data_classes] must be a table of lists of suppliers")
    return {name: _words(value, f"file {path}: data_classes.{name}") for name, value in found.items()}


def _rules(table: Mapping[str, Any], path: Path | None, name: str = "rules") -> tuple[Mapping[str, Any], ...]:
    found = table.get(name, [])
    if not isinstance(found, list) or not all(isinstance(rule, dict) for rule in found):
        raise SettingsError(f"file {path}: write {name} as tables, [[{name}]]")
    return tuple(found)


def _near(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# --------------------------------------------------------------------------------------------------- kinds and ranges


def _coerce(value: Any, setting: Any, where: str) -> Any:
    """`value` as the setting's kind. Only strings, which is what variables are, are converted."""
    kind = setting.type
    if kind == "tuple[str, ...]":
        return _words(value, where)
    if kind == "bool":
        return _truth(value, where)
    if kind in ("int", "float"):
        return _number(value, kind, setting.metadata, where)
    if not isinstance(value, str):
        raise SettingsError(f"{where} must be a string")
    allowed = setting.metadata.get("allowed", (value,))
    if value not in allowed:
        raise SettingsError(f"{where} must be one of {', '.join(allowed)}")
    return value


def _words(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise SettingsError(f"{where} must be a list of strings")
    return tuple(value)


def _truth(value: Any, where: str) -> bool:
    if isinstance(value, str):
        value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(value.lower())
    if not isinstance(value, bool):
        raise SettingsError(f"{where} must be true or false")
    return value


def _number(value: Any, kind: str, limits: Mapping[str, Any], where: str) -> float:
    word = "a whole number" if kind == "int" else "a number"
    if isinstance(value, str):
        try:
            value = int(value) if kind == "int" else float(value)
        except ValueError as error:
            raise SettingsError(f"{where} must be {word}") from error
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind == "int" and not isinstance(value, int)):
        raise SettingsError(f"{where} must be {word}")
    if not limits["low"] <= value <= limits["high"]:
        raise SettingsError(f"{where} must be between {limits['low']} and {limits['high']}")
    return value if kind == "int" else float(value)
