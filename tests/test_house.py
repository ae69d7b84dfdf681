"""The house: imports run down only, one door to Lightning, and rooms of a size that can be read."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "lbtrain").rglob("*.py"))

# What each room may import of lbtrain, and what it must not import at all.
FLOORS = {
    "functional": ({"functional"}, {"pytorch_lightning", "lightning", "hydra", "omegaconf", "numpy", "wandb"}),
    "callbacks": ({"functional", "callbacks", "_lightning"}, {"hydra", "omegaconf", "wandb"}),
    "app": ({"functional", "callbacks", "app", "_lightning", "records", "study"}, set()),
    "study": ({"study", "records"}, {"torch", "pytorch_lightning", "lightning", "hydra", "wandb"}),
    "records.py": (set(), {"torch", "pytorch_lightning", "lightning", "hydra", "pandas", "numpy"}),
}

# What lies at the top beside files that begin with a dot; a test that trains where it was started leaves more there.
TOP = {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "benchmarks", "conf", "constraints.txt", "docs", "examples"}
TOP |= {"hydra_plugins", "lbtrain", "multirun", "pyproject.toml", "tests", "train.py"}


def imports(path):
    """Yield the full names of what a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ([node.module] if node.module != "lbtrain" else [f"lbtrain.{a.name}" for a in node.names])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_down_only(path):
    room = path.relative_to(ROOT / "lbtrain").parts[0]
    allowed, banned = FLOORS.get(room, (None, set()))
    for name in imports(path):
        assert name.split(".")[0] not in banned, f"{path} imports {name}"
        if allowed is not None and name.startswith("lbtrain."):
            assert name.split(".")[1] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "hydra_plugins").glob("*.py"))], ids=lambda p: p.name)
def test_one_door_to_lightning(path):
    if path.name != "_lightning.py":
        assert not {name.split(".")[0] for name in imports(path)} & {
            "pytorch_lightning",
            "lightning",
            "lightning_fabric",
        }


def test_the_comparison_is_only_called_where_a_sweep_ends_and_by_its_command():
    callers = {p.name for p in SOURCES if "app" in p.parts and any("lbtrain.study" in n for n in imports(p))}
    assert callers <= {"launcher.py", "commands.py"}


def test_public_names_are_listed_and_lazy():
    import lbtrain

    for name in lbtrain.__all__:
        assert getattr(lbtrain, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Sam'"):
        _ = lbtrain.Sam


def test_files_and_functions_stay_readable():
    for path in SOURCES:
        text = path.read_text()
        assert text.count("\n") <= 250, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                size = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert size <= 45, f"{path}: {node.name} has {size} lines"


def test_no_assert_on_input():
    for path in SOURCES:
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text()))), path


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_the_top_level_is_in_order():
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {name.partition("/")[0] for name in kept if not name.startswith(".")} == TOP
