"""What may import what: the rules of the house, read from the sources.

uv run pytest tests/test_house.py
"""

import ast
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

FOLDERS = ("utils", "training", "generation", "evaluation", "scripts")
# what a folder may import of ours, beside itself
BELOW = {
    "utils": set(),
    "training": {"utils"},
    "generation": {"utils", "training"},
    "evaluation": {"utils", "training", "generation"},
    "scripts": {"utils", "training", "generation", "evaluation"},
}


def modules_in(root: Path) -> dict[str, ast.Module]:
    """Dotted name -> source of all modules in the folders; a package is its __init__.py."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes_of(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if is_for_types(node):
            continue
        yield node
        yield from nodes_of(node)


def imports(tree: ast.Module, known: dict[str, ast.Module]) -> set[str]:
    """The modules of ours that one imports, in functions too. A script that runs sees its
    neighbours as modules of their own."""
    found = set()
    for node in nodes_of(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.level == 0, ast.unparse(node)
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    found |= {f"scripts.{name.split('.')[0]}" for name in found - known.keys()}
    return found & known.keys()


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules_in(ROOT)
    return {name: imports(tree, known) for name, tree in known.items()}


def test_imports_go_down_only(graph: dict[str, set[str]]) -> None:
    wrong = []
    for name, used in graph.items():
        folder = name.split(".")[0]
        # a script imports no other script either
        allowed = BELOW[folder] | ({folder} - {"scripts"})
        wrong += [f"{name} imports {other}" for other in used if other.split(".")[0] not in allowed]
    assert wrong == []


def test_the_api_knows_no_backend(graph: dict[str, set[str]]) -> None:
    seen, waiting = set(), ["training.api"]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    assert not {name for name in seen if name.startswith("training.backends")}


def test_no_modules_import_each_other_in_a_ring(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a ring: {' <- '.join(error.args[1])}")


def test_every_package_is_listed_for_the_build() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = settings["tool"]["setuptools"]["packages"]
    folders = [path for folder in FOLDERS[:-1] for path in (ROOT / folder).rglob("*.py")]
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in folders}
    assert set(listed) == packages and len(listed) == len(packages)


def test_tests_stand_in_folders_of_the_names_they_test() -> None:
    tests = ROOT / "tests"
    for path in tests.rglob("test_*.py"):
        folder = path.parent.relative_to(tests)
        assert (ROOT / folder).is_dir(), f"{path.relative_to(ROOT)} tests no folder of that name"
