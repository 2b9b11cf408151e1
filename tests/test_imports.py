"""Imports run one way, and flax.linen stays under models/."""

import ast

from conftest import ROOT

# Each level may import those before it and its own.
LEVELS = [
    {"errors", "interruption", "workdir"},
    {"families"},
    {"arch"},
    {"zoo", "search_space", "cost", "ops", "data"},
    {"models"},
    {"checkpoint", "evaluation", "training"},
    {"export", "interop", "search"},
    {"validation", "settings"},
    {"analysis", "estimate", "searches"},
    {"pipeline"},
    {"study"},
    {"command"},
]
WITHOUT_JAX = {"errors", "families", "arch", "search_space", "zoo", "cost", "data"}


def _imports():
    for path in sorted((ROOT / "crnas_jax").rglob("*.py")):
        module = path.relative_to(ROOT / "crnas_jax").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield module, path, [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                yield module, path, [f"{node.module}.{alias.name}" for alias in node.names]


def _level(module):
    found = [i for i, level in enumerate(LEVELS) if module in level]
    assert found, f"{module} is in no level: give it a place in LEVELS"
    return found[0]


def test_no_import_goes_back():
    for module, path, names in _imports():
        if module == "__init__":  # of the package: one lazy import
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "crnas_jax" and len(parts) > 1 and parts[1] != "__version__":
                assert _level(parts[1]) <= _level(module), f"{path} imports {name}"


def test_fences():
    for module, path, names in _imports():
        for name in names:
            if name.startswith("flax"):
                assert module == "models", f"{path} imports {name}"
            if name.split(".")[0] in ("jax", "flax", "optax"):
                assert module not in WITHOUT_JAX, f"{path} imports {name}"
            assert not name.startswith("tensorflow."), path
