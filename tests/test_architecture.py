"""The structure of the package, checked on its syntax trees.

Imports point downwards, the network needs no TensorFlow, files are short, public functions are typed.
"""

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from paths import ROOT

PACKAGE = ROOT / "isnet_jax"
COMMANDS = (
    *("main", "evaluate", "predict", "prepare", "convert", "export"),
    *("compare", "report", "compile_check", "browse", "summary"),
)
FLOORS = (  # from the top; a room imports from itself and from lower floors
    ("isnet_jax",),  # the public names, which load on first use
    COMMANDS,
    ("training",),
    ("evaluation",),
    ("exports",),
    ("annotations", "checkpoints", "input", "cli"),
    ("datasets", "config"),
    ("models", "runtime"),
    ("errors", "labels"),
)
MAX_ROOT_MODULES, MAX_LINES = 16, 400
WITHOUT_TENSORFLOW = (
    *("models", "checkpoints", "exports", "runtime", "training.step", "training.optimizer", "annotations"),
    *(
        f"evaluation.{name}"
        for name in (
            "inference",
            "metrics",
            "loop",
            "predictor",
            "prediction_files",
            "exporting",
            "card",
            "sharing",
            "comparison",
            "results",
        )
    ),
    "datasets.drawn_scenes",
    *(f"input.{name}" for name in ("photometry", "buckets", "decoding", "resizing", "records")),
)


@functools.cache
def modules() -> dict[str, ast.Module]:
    """The syntax tree of every module of the package, by its dotted name."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text())
    return trees


def imports_of(name: str) -> set[str]:
    """The package's modules that a module imports, at its top or inside a function."""
    imported = set()
    for node in ast.walk(modules()[name]):
        match node:
            case ast.Import(names=aliases):
                imported |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=module, names=aliases):
                assert not node.level, f"{name} has a relative import"
                imported |= {full if (full := f"{module}.{alias.name}") in modules() else module for alias in aliases}
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[argument, *_]):
                # an f-string counts as an import of its constant part: isnet_jax.datasets.{name} imports that room
                start = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
                if isinstance(start, ast.Constant):
                    imported.add(start.value.rstrip("."))
    return {module for module in imported if module in modules()} - {name}


def room(name: str) -> str:
    """The part of a module's name by which FLOORS lists it."""
    return name.split(".")[1] if "." in name else name


def floor(name: str) -> int:
    """The floor of a module, from the top."""
    floors = [i for i, rooms in enumerate(FLOORS) if room(name) in rooms]
    assert floors, f"{name} is not in FLOORS"
    return floors[0]


def test_imports_point_downwards():
    imports = {(importer, imported) for importer in modules() for imported in imports_of(importer)}
    assert len(imports) > 150
    upward = {pair for pair in imports if room(pair[0]) != room(pair[1]) and floor(pair[0]) >= floor(pair[1])}
    assert upward == set()


def test_imports_form_no_circle():
    graphlib.TopologicalSorter({name: imports_of(name) for name in modules()}).prepare()  # raises CycleError


def test_root_of_the_package_is_small():
    at_root = [path.name for path in PACKAGE.glob("*.py")]
    assert len(at_root) <= MAX_ROOT_MODULES, at_root


@pytest.mark.parametrize("folder", ["isnet_jax", "tests", "benchmarks", "configs"])
def test_files_are_short(folder):
    lengths = {path: len(path.read_text().splitlines()) for path in sorted((ROOT / folder).rglob("*.py"))}
    assert {path.relative_to(ROOT).as_posix(): n for path, n in lengths.items() if n > MAX_LINES} == {}


def public_functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The public functions of a module and methods of its public classes, special methods such as __init__ included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if child.name.startswith("_") and not child.name.startswith("__"):
                continue
            if isinstance(child, ast.ClassDef):
                yield from public_functions(child, f"{prefix}.{child.name}")
            else:
                yield f"{prefix}.{child.name}", child
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from public_functions(child, prefix)


def is_typed(function: ast.FunctionDef) -> bool:
    """Whether a function's parameters and result are annotated.

    Exempt are self, cls, *args, **kwargs and the result of __init__.
    """
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    untyped = [p.arg for p in parameters if p.annotation is None and p.arg not in ("self", "cls")]
    return not untyped and (function.returns is not None or function.name == "__init__")


def test_public_functions_are_typed():
    functions = [pair for name, tree in modules().items() for pair in public_functions(tree, name)]
    assert len(functions) > 200
    assert {name for name, function in functions if not is_typed(function)} == set()


def test_network_and_its_tools_need_no_tensorflow():
    names = [name for name in modules() if name.removeprefix("isnet_jax.").startswith(WITHOUT_TENSORFLOW)]
    names += ["benchmarks.accelerator", "benchmarks.accelerator_jax"]
    assert len(names) > 30
    code = f"import sys, {', '.join(names)}; assert not {{'tensorflow', 'tensorflow_datasets'}} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_reliability_page_names_existing_tests():
    """Each promise in the tables stands beside the tests that keep it."""
    page = (ROOT / "docs/reliability.md").read_text()
    named = re.findall(r"`(test_\w+\.py)`|`(test_\w+)`", page)
    assert len(named) > 40
    path = None
    for file_name, test in named:
        if file_name:
            (path,) = (ROOT / "tests").rglob(file_name)
        else:
            assert f"def {test}(" in path.read_text(), (path.name, test)
