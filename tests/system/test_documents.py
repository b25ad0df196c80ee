"""README.md and docs/*.md do what they say: their blocks are run, or say why not and are parsed all the same.

A document is gone through in a folder of its own, which holds `photos/` (drawn images without labels), `classes/train`
and `classes/val` (with), `records/train` and `records/val`, and `runs/simclr-equimod-shapes`, a run. Trainings take
small networks and one epoch. A comment before a block says what to do with it: `needs: gpu`, and it is not run;
`file: NAME`, and it is written to that file.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import shutil
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tyro
from commands import call

from equimod.benchmarks import large_batch, throughput
from equimod.benchmarks.readme import documents_of
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.shapes import CLASSES, draw_dataset
from equimod.tools import cli
from equimod.train import evaluate
from equimod.train.config import parse

ROOT = Path(__file__).parents[2]
DOCUMENTS = documents_of(ROOT)
NEEDS = {"cluster", "gpu", "imagenet", "network", "time"}
SHELL = {"sh", "bash", "console"}
SMALL = "--epochs 1 --batch-size 8 --optim.warmup-epochs 0 --encoder.arch resnet10 --encoder.width 8 --log.every 1"
SMALL += " --system.workers 1 --system.device cpu --precision fp32"
MODULES = [command.module for command in cli.COMMANDS.values() if command.module != "tools.train"] + ["train.main"]
SCRIPTS = [
    "benchmarks.gpu",
    "benchmarks.readme",
    "benchmarks.reliability",
    "benchmarks.scaling",
    "tools.convert_cifar10",
    "tools.pack_gpu_check",
]
OTHER_OPTIONS = {"--gpus", "--nproc-per-node", "--nearest.dim"}  # the last is that of an example
OTHER_OPTIONS |= {"--augment.normalize.mean"}  # a field of a policy, which --help does not list
IMAGES = {"train": 20, "test": 10}
MOST_LINES = 130  # of the README


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    line: int
    language: str
    needs: str | None
    file: str | None
    text: str

    def commands(self) -> list[list[str]]:
        """The words of each command of a block of a shell, without comments and variables before it."""
        lines = self.text.replace("\\\n", " ").splitlines()
        found = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
        return [words for words in map(_without_variables, found) if words]


def _without_variables(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def blocks(document: Path) -> Iterator[Block]:
    """The fenced blocks, with what the comment in the line before each of them says."""
    lines = iter(enumerate(document.read_text(encoding="utf-8").splitlines(), 1))
    before = ""
    for number, line in lines:
        if not line.startswith("```"):
            before = line
            continue
        inside = []
        for _, text in lines:
            if text == "```":
                break
            inside.append(text)
        needs, file = (re.fullmatch(rf"<!-- {what}: (\S+) -->", before) for what in ("needs", "file"))
        yield Block(number, line[3:], needs and needs[1], file and file[1], "\n".join(inside) + "\n")
        before = ""


EVERY_BLOCK = [
    pytest.param(block, id=f"{document.name}:{block.line}") for document in DOCUMENTS for block in blocks(document)
]


@pytest.mark.parametrize("block", EVERY_BLOCK)
def test_a_block_is_what_it_says(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python imports what there is; commands that are not run, and their options, are known."""
    monkeypatch.chdir(place)
    assert block.needs is None or block.needs in NEEDS, f"needs: {block.needs}; give one of {', '.join(NEEDS)}"
    if block.language == "python":
        _check_imports(block.text)
    elif block.language in SHELL and (block.needs or not block.file):
        for words in block.commands() if block.needs else []:
            _check_command(words)
    else:
        assert block.language in {"text", "yaml", "{toctree}", "{eval-rst}"}, f"{block.language}: say how to test it"
        assert not block.needs


def _check_imports(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {', '.join(missing)}"


def _check_command(words: list[str]) -> None:
    program, *rest = words
    checks: dict[str, Callable[[list[str]], object]] = {
        "apt-get": lambda rest: None,
        "equimod": _check_equimod,
        "export": lambda rest: None,
        "make": _check_make,
        "pip": _check_pip,
        "python": _check_script,
        "sbatch": lambda rest: _check_training(_behind("train/launch/slurm.sbatch", rest)),
        "torchrun": _check_ranks,
    }
    assert program in checks, f"{program} is not known here"
    try:
        checks[program](rest)
    except SystemExit as error:
        assert not error.code, f"{shlex.join(words)} is refused"  # noqa: PT017


def _check_ranks(words: list[str]) -> None:
    script = next(word for word in words if word.endswith(".py"))
    options = _behind(script, words)
    if script == "train/main.py":
        _check_training(options)
    else:
        _check_script([script, *options])


def _behind(script: str, words: list[str]) -> list[str]:
    assert (ROOT / script).is_file()
    return words[words.index(script) + 1 :]


def _check_equimod(words: list[str]) -> None:
    name, *options = words
    assert name in cli.COMMANDS, f"equimod has no command {name}"
    _check_options(cli.COMMANDS[name].module, options)


def _check_script(words: list[str]) -> None:
    script, *options = words
    assert (ROOT / script).is_file(), f"there is no {script}"
    if script.startswith("docs/"):
        assert not options
    else:
        _check_options(script.removesuffix(".py").replace("/", "."), options)


def _check_options(module: str, options: list[str]) -> None:
    """`module` below equimod."""
    if module == "tools.train":
        _check_training(_without_gpus(options))
    elif module == "train.evaluate":
        tyro.cli(evaluate.Options, args=options, config=(tyro.conf.FlagCreatePairsOff,))
    elif (commands := getattr(importlib.import_module(f"equimod.{module}"), "COMMANDS", None)) is not None:
        tyro.extras.subcommand_cli_from_dict(dict(commands), args=options)
        if "--" in options:
            _check_training(options[options.index("--") + 1 :])
    else:
        tyro.cli(importlib.import_module(f"equimod.{module}").Arguments, args=options)


def _check_training(options: list[str]) -> None:
    if options[:1] == ["--config"] and Path(options[1]).suffix:
        return  # a file of the document, which is run with it
    parse(options)


def _without_gpus(options: list[str]) -> list[str]:
    first = ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--gpus", type=int)
    return first.parse_known_args(options)[1]


def _check_make(targets: list[str]) -> None:
    known = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert known
    assert set(targets) <= set(known[1].split())


def _check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    extras = {name for word in words for found in re.findall(r"\[(.*)\]", word) for name in found.split(",")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extras <= set(project["optional-dependencies"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every document finds: see the head of this file."""
    place = tmp_path_factory.mktemp("place")
    for split, folder in (("train", "train"), ("test", "val")):
        tree = place / "classes" / folder
        draw_dataset(tree, samples=IMAGES[split], seed=0, split=split)
        (tree / "factors.csv").unlink()
        convert(tree, place / "records" / folder, ConversionSettings(workers=1))
        shutil.copytree(place / "records" / folder, place / "cache" / "shapes" / split)
    (place / "photos").mkdir()
    for number, path in enumerate(sorted((place / "classes" / "train").glob("*/*.jpg"))):
        shutil.copy(path, place / "photos" / f"{number:05d}.jpg")
    options = f"--method simclr --equimod --dataset shapes --data records/train --val records/val {SMALL}".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        answer = call(partial(cli.main, ["train", *options]))
    assert answer.code == 0, answer.err
    return place


def _runs(document: Path) -> bool:
    return any(block.language in {"python", *SHELL} and not block.needs for block in blocks(document))


@pytest.mark.parametrize("document", [*filter(_runs, DOCUMENTS)], ids=lambda path: path.name)
def test_blocks_of_a_document_run(document: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = shutil.copytree(place, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("EQUIMOD_CACHE", str(here / "cache"))
    names: dict[str, Any] = {"__name__": "__main__"}  # that blocks of a document share
    for block in blocks(document):
        if block.file:
            (here / block.file).write_text(block.text, encoding="utf-8")
        elif block.needs:
            continue
        elif block.language == "python":
            exec(compile(block.text, f"{document.name}:{block.line}", "exec"), names)
        elif block.language in SHELL:
            for words in block.commands():
                _run(words)


def _run(words: list[str]) -> None:
    program, name, *options = words
    assert program == "equimod", f"{shlex.join(words)}: say what it needs, or have it run here"
    if name == "train":
        options = [*options, *SMALL.split(), *([] if "--resume" in options else ["--overwrite"])]
    answer = call(partial(cli.main, [name, *options]))
    assert answer.code == 0, f"{shlex.join(words)}: {answer.err}"


def test_options_in_the_text_are_known() -> None:
    mains = [importlib.import_module(f"equimod.{module}").main for module in (*SCRIPTS, *MODULES)]
    helps = [call(main, "--help").out for main in mains]
    helps += [call(of.main, name, "--help").out for of in (throughput, large_batch) for name in of.COMMANDS]
    known = {*OTHER_OPTIONS, *re.findall(r"--[a-z][\w.-]*", "".join(helps))}
    for document in DOCUMENTS:
        text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        named = {
            option for code in re.findall("`([^`]+)`", text) for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", code)
        }
        assert named <= known, f"{document.name}: {', '.join(sorted(named - known))}"


def test_links_lead_to_files() -> None:
    for document in (*DOCUMENTS, ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_readme_is_short_and_names_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    pages = {path.name for path in DOCUMENTS} - {"README.md", "index.md"}
    assert pages <= set(re.findall(r"\(docs/([\w-]+\.md)", text))


def test_the_picture_shows_what_is_drawn() -> None:
    """Words alone: the bytes of its images depend on versions."""
    spec = importlib.util.spec_from_file_location("draw_views", ROOT / "docs" / "draw_views.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stored = (ROOT / "docs" / "views.svg").read_text(encoding="utf-8")
    assert re.findall("<text.*?</text>", module.picture()) == re.findall("<text.*?</text>", stored)


def test_shapes_are_drawn_for_every_class() -> None:
    assert min(IMAGES.values()) >= len(CLASSES)
