"""Imports go one way through the levels, without a cycle; flax.linen stays under models/."""

import ast

from helpers import ROOT

PACKAGE = ROOT / "crnas_jax"
# The rooms of a level may import those of the levels before it and, where no cycle follows, each
# other.
LEVELS = (
    {"errors", "runtime", "ops", "data", "parallel"},
    {"arch"},
    {"spaces"},
    {"models", "checkpoint"},
    {"training", "evaluation"},
    {"export", "interop"},
    {"search"},
    {"settings"},
    {"analysis"},
    {"experiments"},
    {"commands"},
    {"cli"},
)
WITHOUT_JAX = {"errors", "runtime", "arch", "spaces", "data"}


def _modules():
    """Paths of the package's modules by dotted name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def _imported_names(path):
    """Dotted names that a module imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imports_within():
    """By module, the modules of the package that it imports."""
    modules = _modules()
    return {
        module: {
            name if name in modules else name.rpartition(".")[0]
            for name in _imported_names(path)
            if name.startswith("crnas_jax.") and name != "crnas_jax.__version__"
        }
        for module, path in modules.items()
    }


def _room(module):
    return module.split(".")[1]


def _level(module):
    levels = [place for place, rooms in enumerate(LEVELS) if _room(module) in rooms]
    assert levels, f"{module} is in no level: give its room a place in LEVELS"
    return levels[0]


def test_no_import_goes_back():
    for module, imported in _imports_within().items():
        if module != "crnas_jax":  # the package itself imports one function where it is called
            for name in imported:
                assert _level(name) <= _level(module), f"{module} imports {name}"


def test_no_import_goes_round():
    """Neither modules nor the rooms of a level form a cycle."""
    imports = {m: names for m, names in _imports_within().items() if m != "crnas_jax"}
    rooms = {}
    for module, names in imports.items():
        rooms.setdefault(_room(module), set()).update(
            _room(name) for name in names if _room(name) != _room(module)
        )
    for graph in (imports, rooms):
        _require_no_cycle(graph)


def _require_no_cycle(graph):
    finished = set()

    def visit(node, path):
        assert node not in path, " imports ".join([*path[path.index(node) :], node])
        if node not in finished:
            for other in graph.get(node, ()):
                visit(other, [*path, node])
            finished.add(node)

    for node in graph:
        visit(node, [])


def test_the_top_level_has_four_modules():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {
        *("__init__", "errors", "cli", "checkpoint")
    }


def test_fences():
    for module, path in _modules().items():
        if module == "crnas_jax":
            continue
        for name in _imported_names(path):
            if name.startswith("flax"):
                assert _room(module) == "models", f"{path} imports {name}"
            if name.split(".")[0] in ("jax", "flax", "optax"):
                assert _room(module) not in WITHOUT_JAX, f"{path} imports {name}"
            assert not name.startswith("tensorflow."), path


def test_files_are_short():
    """A file that grows beyond these is two."""
    for folder, most in ((PACKAGE, 350), (ROOT / "tests", 500)):
        for path in folder.rglob("*.py"):
            assert len(path.read_text().splitlines()) <= most, path
