"""The walls of the house: packages listed, floors kept, nothing where it does not belong."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("wire", "kernels", "runtime", "ledger", "router", "harness", "server", "cli")  # from the ground up
ROOMS = (*FLOORS, "benchmarks", "configs")


def packages() -> Iterator[Path]:
    """Every folder of the rooms that holds Python, relative to the root."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            yield path.parent.relative_to(ROOT)


def modules() -> list[Path]:
    return sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """What a module imports of ours, as a dotted path from the root, and whether at its top level; late ones included."""
    tree = ast.parse((ROOT / path).read_text())
    top = set(map(id, tree.body))
    here = path.parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((".".join((*base, name)), id(node) in top) for name in names)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ((f"absolute {name}", True) for name in names if name.split(".")[0] == "baseload")


def test_every_package_folder_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(("baseload", *folder.parts)) for folder in packages()} | {"baseload"}
    assert set(listed) == found


def test_every_package_says_what_it_is_for():
    for folder in set(packages()):
        assert ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text())), folder


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_go_down_the_floors(path: Path):
    room = path.parts[0]
    for target, at_top in imports(path):
        assert not target.startswith("absolute"), f"{path}: import it relatively ({target})"
        other = target.split(".")[0]
        if other == room or room == "benchmarks" or other not in ROOMS:
            continue
        if other == "benchmarks":
            assert room == "cli" and not at_top, f"{path}: only the command line starts benchmarks, by a late import"
        else:
            assert room in FLOORS and other in FLOORS, f"{path} imports {target}"
            assert FLOORS.index(other) < FLOORS.index(room), f"{path}: {room} stands below {other}"


def test_no_module_is_two_ideas():
    long = {str(path): n for path in modules() if (n := len((ROOT / path).read_text().splitlines())) > 500}
    assert not long


def test_nothing_stands_where_it_does_not_belong():
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]
    assert not list((ROOT / "tests").rglob("__init__.py"))
    strange = [p for p in (ROOT / "configs").rglob("*") if p.is_file() and p.suffix not in (".toml", ".pyc")]
    assert strange == [ROOT / "configs" / "__init__.py"]
    assert len(ast.parse((ROOT / "configs" / "__init__.py").read_text()).body) == 1


def test_every_config_is_toml():
    found = list((ROOT / "configs").rglob("*.toml"))
    assert found
    for path in found:
        tomllib.loads(path.read_text())


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


HELP = """
import sys
from baseload.cli.main import main
try:
    main({words})
except SystemExit as end:
    assert end.code == 0, end.code
heavy = ("torch", "transformers", "fastapi", "sqlalchemy", "aiohttp", "numpy", "huggingface_hub", "matplotlib")
print(sorted(name for name in heavy if name in sys.modules))
"""


def test_help_loads_nothing_heavy():
    assert run(HELP.format(words=["--help"])) == "[]"


@pytest.mark.parametrize("words", [["serve", "--help"], ["chat", "--help"], ["pull", "--help"], ["ledger", "report", "--help"]])
def test_a_commands_help_loads_no_torch(words: list[str]):
    assert "torch" not in run(HELP.format(words=words))


def test_the_kernels_folder_imports_nothing():
    """transformers imports any `kernels` that it finds and fails if that fails."""
    tree = ast.parse((ROOT / "kernels" / "__init__.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert "__version__" not in (ROOT / "kernels" / "__init__.py").read_text()


def test_every_command_is_in_the_readme():
    commands = run("from baseload.cli.main import COMMANDS; print(*COMMANDS)").split()
    readme = (ROOT / "README.md").read_text()
    assert not [name for name in commands if f"baseload {name}" not in readme]


def test_every_command_has_its_file():
    from baseload.cli.main import COMMANDS

    assert not [name for name in COMMANDS if not (ROOT / "cli" / f"{name}.py").is_file()]
