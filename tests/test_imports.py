"""The house: imports point down from floor to floor, and neither files nor rooms form a circle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "adabatch_jax"

# Bottom up. What lies directly in the package, the commands and the public names, is above them.
FLOORS = (
    "system",
    "schedules",
    "config",
    "cluster",
    "data",
    "training",
    "models",
    "runs",
    "reporting",
)
TOP_FILES = {
    "CHANGELOG.md", "DESIGN.md", "README.md", "__init__.py", "__init__.pyi", "__main__.py",
    "doctor.py", "export.py", "plan.py", "predict.py", "prepare.py", "py.typed", "report.py",
    "sample.py", "train.py",
}  # fmt: skip


def module_files():
    """Each module of the package by its dotted name."""
    files = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports_of(path, modules):
    """The package's modules that a file imports anywhere, also inside of functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                if inside in modules or node.module in modules:
                    yield inside if inside in modules else node.module


@pytest.fixture(scope="module")
def edges():
    """Module -> the modules that it imports; without the public names, which lie on top."""
    modules = module_files()
    found = {name: set(imports_of(path, modules)) - {name} for name, path in modules.items()}
    del found["adabatch_jax"]
    return found


def floor(module):
    room = module.split(".")[1]
    return FLOORS.index(room) if room in FLOORS else len(FLOORS)


def room(module):
    path = module_files()[module]
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def circles(edges):
    """The pairs a -> b of a graph from whose b there is a way back to a."""

    def reachable(start):
        seen, todo = set(), [start]
        while todo:
            for following in edges.get(todo.pop(), ()):
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
        return seen

    return [f"{a} -> {b}" for a, targets in edges.items() for b in targets if a in reachable(b)]


def test_the_reader_of_imports_sees_those_inside_of_functions(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "def f():\n    from adabatch_jax.runs import fit\n    import adabatch_jax.train\n"
    )
    assert [*imports_of(file, module_files())] == ["adabatch_jax.runs.fit", "adabatch_jax.train"]


def test_no_import_climbs(edges):
    climbing = [
        f"{name} -> {target}"
        for name, targets in edges.items()
        for target in targets
        if floor(target) > floor(name)
    ]
    assert climbing == []


def test_files_form_no_circle(edges):
    assert circles(edges) == []


def test_rooms_form_no_circle(edges):
    of_rooms = {}
    for name, targets in edges.items():
        if floor(name) < len(FLOORS):
            of_rooms.setdefault(room(name), set()).update(map(room, targets))
    of_rooms = {name: targets - {name} for name, targets in of_rooms.items()}
    assert circles(of_rooms) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [
        "a -> b",
        "b -> c",
        "c -> a",
    ]


def test_only_commands_and_public_names_lie_directly_in_the_package():
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files <= TOP_FILES | {"__main__.py"}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert rooms == set(FLOORS)
