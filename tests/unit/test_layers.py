"""The rules of the house that a reader cannot see from one file."""

from __future__ import annotations

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "pipelines": {"pipelines"},
    "models": {"models", "pipelines"},
    "train": {"train", "models", "pipelines"},
    "tools": {"tools", "train", "models", "pipelines"},
    "benchmarks": {"benchmarks", "train", "models", "pipelines"},
}
PIPELINES = (
    {"errors", "durable", "stored", "timing", "workers", "cores", "progress"},
    {"policy", "philox", "permutation", "geometry", "params", "sampler", "resolution"},
    {"codec"},
    {"records"},
    {"kernel", "decode", "resize", "resize_part"},
    {"backends"},
    {"color", "ops", "triton_ops", "operators", "augment"},
    {"page_cache", "batch", "prefetch", "build"},
    {"conversion", "shapes"},
    {"images"},
)
"""The rooms of pipelines/ in the order of the flow: each imports itself and those before it."""
TYPES = {"errors", "params", "batch", "records.protocol"}
"""The modules of pipelines/ that models/ may know: what a batch and its parameters are, and how errors are told."""
FILES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))


def _imports(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import statement of a file, those inside functions included."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [(node.level, f"{module}.{alias.name}" if module == "equimod" else module) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_imports_only_what_lies_below_it(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for level, module in _imports(path):
        assert level == 0, "imports are absolute"
        first, _, rest = module.partition(".")
        assert first not in ALLOWED, f"{module}: import it as equimod.{module}"
        if first == "equimod":
            assert rest.split(".")[0] in ALLOWED[folder], f"{folder} must not import {module}"


def _files_of(folder: str) -> list[Path]:
    return [path for path in FILES if path.relative_to(ROOT).parts[0] == folder]


def _room(module: str) -> int:
    """Position in PIPELINES of a module, given by its name below pipelines/."""
    return next(place for place, names in enumerate(PIPELINES) if module.split(".")[0] in names)


@pytest.mark.parametrize("path", _files_of("pipelines"), ids=lambda path: path.stem)
def test_inside_pipelines_the_flow_has_no_way_back(path: Path) -> None:
    relative = path.relative_to(ROOT / "pipelines").with_suffix("")
    if relative.name == "__init__" and len(relative.parts) == 1:
        return
    own = _room(".".join(relative.parts))
    for module in _siblings(path, "pipelines"):
        assert _room(module) <= own, f"{'.'.join(relative.parts)} must not import {module}, which comes after it"


def test_models_know_nothing_of_pipelines_but_its_types() -> None:
    imported = {module for path in _files_of("models") for module in _siblings(path, "pipelines")}
    assert imported <= TYPES


def _siblings(path: Path, folder: str) -> list[str]:
    """The modules below `folder` that a file imports, without "equimod.FOLDER."."""
    prefix = f"equimod.{folder}."
    found = []
    for _, module in _imports(path):
        if f"{module}." == prefix:  # `from equimod.pipelines import ops`
            found += [f"{name}" for name in _names(path, module)]
        elif module.startswith(prefix):
            found.append(module.removeprefix(prefix))
    return found


def _names(path: Path, module: str) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [a.name for node in nodes if isinstance(node, ast.ImportFrom) and node.module == module for a in node.names]


def test_no_file_of_a_script_folder_hides_a_module_of_the_standard_library_or_a_dependency() -> None:
    hidden = sys.stdlib_module_names | packages_distributions().keys()
    for folder in ("train", "tools", "benchmarks"):
        names = {path.stem for path in (ROOT / folder).glob("*.py")}
        assert not names & hidden


def test_the_loop_knows_no_method_and_no_backend() -> None:
    from equimod.models.ssl import METHODS
    from equimod.pipelines.backends import BACKENDS

    text = (ROOT / "train" / "loop.py").read_text(encoding="utf-8").lower()
    names = {*METHODS, *BACKENDS} - {"none"}  # which is Python's too
    assert not [name for name in names if name in text]


def test_there_is_no_utils_module() -> None:
    assert not [path for path in FILES if path.stem == "utils"]
