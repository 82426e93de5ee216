"""The floor plan holds: imports go down, siblings do not meet, ray stays in its rooms, the rest works without."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kdtune"
FLOORS = {
    "errors": 0, "schedules": 0, "experiment": 1, "records": 1, "ranks": 1, "data": 2, "models": 2, "storage": 2,
    "tuning": 2, "training": 3, "teacher": 4, "cache": 5, "distill": 6, "trial": 7, "report": 8, "export": 8,
    "search": 9, "cluster": 9, "cli": 10,
}  # fmt: skip
RAY_ROOMS = {"search", "cluster"}
DOORS = {"kdtune/__init__.py", "kdtune/__main__.py"}  # the front door and `python -m kdtune` open onto any floor
HEAVY = {"torch", "ray"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    """`kdtune.search.board` -> `search`."""
    return module.split(".")[1] if "." in module else ""


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path, *, top_level: bool = False) -> Iterator[str]:
    """Every module that a file imports, with imports inside functions unless `top_level`."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree) if not top_level else _outside_functions(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (
                [f"kdtune.{alias.name}" for alias in node.names] if node.module == "kdtune" else [node.module or ""]
            )


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _outside_functions(child)


def inner_files() -> list[Path]:
    return [file for file in FILES if str(file.relative_to(PACKAGE.parent)) not in DOORS]


@pytest.mark.parametrize("file", inner_files(), ids=module_of)
def test_imports_go_down_and_siblings_do_not_meet(file: Path) -> None:
    here = room_of(module_of(file))
    assert here in FLOORS, f"{file} is on no floor"
    for module in imports_of(file):
        if not module.startswith("kdtune."):
            continue
        there = room_of(module)
        assert there == here or FLOORS[there] < FLOORS[here], f"{module_of(file)} imports {module}"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_only_its_rooms_import_ray(file: Path) -> None:
    if room_of(module_of(file)) not in RAY_ROOMS:
        assert not [module for module in imports_of(file) if module.split(".")[0] == "ray"]


@pytest.mark.parametrize("name", ["errors", "schedules", "experiment", "records", "cli"])
def test_the_ground_floors_and_the_command_line_load_without_torch(name: str) -> None:
    code = f"import sys, kdtune.{name}; sys.exit(any(m in sys.modules for m in {sorted(HEAVY)!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_everything_else_imports_and_trains_with_ray_blocked(tmp_path: Path) -> None:
    modules = [module_of(f) for f in FILES if room_of(module_of(f)) not in RAY_ROOMS and f.name != "__main__.py"]
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import importlib\n"
        f"[importlib.import_module(m) for m in {modules!r}]\n"
        "from kdtune.cli import main\n"
        f"main(['train', '--set', 'storage={tmp_path}', '--set', 'train.epochs=1', '--set', 'teacher.train.epochs=3',"
        "      '--set', 'search.stopper.grace_epochs=1'])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits-train" / "student" / "student.safetensors").exists()


def test_there_are_no_import_cycles() -> None:
    known = {module_of(file) for file in FILES}
    graph = {
        module_of(file): {
            candidate
            for module in imports_of(file, top_level=True)
            for candidate in (module, module.rpartition(".")[0])
            if candidate in known and candidate not in ("kdtune", module_of(file))
        }
        for file in FILES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        # a package's own parts may import each other's package, which Python has begun to load by then
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in graph[module]:
                if not module.startswith(f"{other}."):
                    visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_file_is_longer_than_400_lines() -> None:
    long = {str(file): n for file in FILES if (n := len(file.read_text().splitlines())) > 400}
    assert not long
