"""Every use of another library's private names is listed here with its reason: an upgrade may break it."""

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from paths import ROOT

OURS = "isnet_jax", "benchmarks"
PRIVATE = re.compile(r"_[^_]")
DOCUMENTED = "_asdict", "_fields", "_make", "_replace"  # of NamedTuple; the underscore only avoids clashes with fields
CACHE_SIZE = "counts the compilations of a jitted function; JAX has no public counter"
OS_EXIT = "public in spite of its name: exits without waiting for threads of libraries that no longer respond"
TFDS_HOOK = "a method that TFDS documents for builders to define"
TFDS_OUTPUT = "silences what TFDS prints on standard output beside our progress bar"

USES = {  # (module, private name): reason; a class's own name stands before a method that overrides a library's
    ("benchmarks/evaluation.py", "_cache_size"): CACHE_SIZE,
    ("isnet_jax/evaluation/loop.py", "_cache_size"): CACHE_SIZE,
    ("isnet_jax/runtime/distributed.py", "os._exit"): OS_EXIT,
    (
        "isnet_jax/runtime/heartbeat.py",
        "jax._src.distributed",
    ): "holds the client of JAX's key-value store, which Orbax takes from there, too; there is no public way to it",
    ("isnet_jax/runtime/interrupts.py", "os._exit"): OS_EXIT,
    (
        "isnet_jax/datasets/preparation.py",
        "tensorflow_datasets.core.utils.tqdm_utils._active",
    ): "to restore the setting of the progress bar; TFDS can set it, but not tell it",
    ("isnet_jax/datasets/common.py", "SegmentationBuilder._info"): TFDS_HOOK,
    (
        "isnet_jax/datasets/common.py",
        "SegmentationBuilder._shard_iterators_per_split",
    ): "a method that TFDS defines for builders which decide on their shards and the order of their records",
    (
        "isnet_jax/datasets/common.py",
        "SegmentationBuilder._example_writer",
    ): "makes the bytes of records deterministic; TFDS has no public hook",
    ("isnet_jax/datasets/common.py", "SegmentationBuilder._log_download_bytes"): TFDS_OUTPUT,
    ("isnet_jax/datasets/common.py", "SegmentationBuilder._log_download_done"): TFDS_OUTPUT,
    ("isnet_jax/datasets/folder.py", "Folder._info"): TFDS_HOOK,
    (
        "isnet_jax/datasets/folder.py",
        "Folder._create_builder_config",
    ): "accepts the config that it is given; TFDS warns about one that the class does not list",
}


def test_private_names_are_listed_with_a_reason():
    assert set(private_uses()) | set(private_overrides()) == set(USES)


def test_private_uses_are_found():
    """The walk sees accesses, assignments, imports, strings and names of unknown objects; it skips our own names."""
    source = """
import jax, a.b as c
from d import _e, f
from isnet_jax import cli
from isnet_jax.runtime._x import y
def _own(): pass
jax._src.core.g(); c.d._h = 1; f(1)._i; getattr(f, "_j"); cli._k; self._own; self._l; z._replace(); z.__m__
"""
    found = {name for name in uses_in(ast.parse(source), {"_own"})}
    assert found == {"jax._src", "d._e", "a.b.d._h", "_i", "d.f._j", "_l"}


def private_uses() -> Iterator[tuple[str, str]]:
    """(module, name) of accesses and imports."""
    own_names = {name for tree in sources().values() for name in names_defined(tree)}
    for path, tree in sources().items():
        yield from ((path, name) for name in uses_in(tree, own_names))


@functools.cache
def sources() -> dict[str, ast.Module]:
    """The syntax tree of each module, by its path in the repository."""
    paths = sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}


def names_defined(tree: ast.Module) -> Iterator[str]:
    """Functions, classes, variables and attributes that a module defines."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def uses_in(tree: ast.Module, own_names: set[str]) -> Iterator[str]:
    """Private names of others that a module imports or accesses: in full where an import tells their owner."""
    imported = imported_names(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases) if not any(is_ours(alias.name) for alias in aliases):
                yield from (alias.name for alias in aliases if any(map(PRIVATE.match, alias.name.split("."))))
            case ast.ImportFrom(module=module, names=aliases, level=0) if not is_ours(module):
                names = (f"{module}.{alias.name}" for alias in aliases)
                yield from (name for name in names if any(map(PRIVATE.match, name.split("."))))
            case (
                ast.Attribute(value=owner, attr=name)
                | ast.Call(
                    func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr") | ast.Attribute(attr="object"),
                    args=[owner, ast.Constant(value=str(name)), *_],
                )
            ) if PRIVATE.match(name) and name not in DOCUMENTED:
                root, *path = ast.unparse(owner).split(".")
                full = ".".join([imported.get(root, root), *path, name])
                if root in imported and all(map(str.isidentifier, path)):
                    if not is_ours(full):
                        yield full
                elif name not in own_names:
                    yield name


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Each name that the module's imports bind, with the full name of what it stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_ours(name: str | None) -> bool:
    """Whether a module, or a name in it, belongs to this repository."""
    return name is None or name.split(".")[0] in (*OURS, *(path.stem for path in (ROOT / "benchmarks").glob("*.py")))


def private_overrides() -> Iterator[tuple[str, str]]:
    """(module, Class._name) of each private name that overrides one of a base class in another library."""
    for path, tree in sources().items():
        if path.startswith("isnet_jax"):
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and node.bases:
                    module = ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")
                    names = filter(PRIVATE.match, names_defined(ast.Module(node.body, [])))
                    bases = getattr(importlib.import_module(module), node.name).__mro__
                    foreign = [base for base in bases if base.__module__.split(".")[0] not in ("isnet_jax", "builtins")]
                    for name in sorted(set(names)):
                        if any(name in vars(base) for base in foreign):
                            yield path, f"{node.name}.{name}"
