"""Write the tables of README.md and docs/*.md from the newest results: python benchmarks/readme.py [--check].

Of a table in `PICTURES`, whose document is in docs/, the picture stands above it, drawn beside the result.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is one of `TABLES`, or `numbers` or `growth`.
Its numbers come from the file of that benchmark in `benchmarks/results/` whose date is the latest.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from equimod.benchmarks import gpu, gpu_memory, parity, rehearse, reliability, scaling
from equimod.benchmarks.compare_embedding import Embed
from equimod.benchmarks.compare_loaders import Loader, Views
from equimod.benchmarks.compare_operators import Augment
from equimod.benchmarks.compare_training import Train
from equimod.benchmarks.growth.at_url import AtUrl
from equimod.benchmarks.growth.disk import Disk
from equimod.benchmarks.growth.features import KeptFeatures
from equimod.benchmarks.growth.ranks import Ranks
from equimod.benchmarks.large_batch import Chunks, Loss
from equimod.pipelines.durable import durable_file
from equimod.pipelines.errors import EquimodError
from equimod.train.command import run_command
from equimod.train.evaluation import comparison, sweep_tables
from equimod.train.evaluation.sweep_pictures import draw
from equimod.train.evaluation.table import Table, origin

_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CHECKOUT = Path(__file__).parent.parent

Rows = Callable[[dict[str, Any]], list[Table]]
Caption = Callable[[dict[str, Any]], str]


class ReadmeError(EquimodError):
    """A document that cannot be filled: the message gives the reason and the remedy in one line."""


@dataclass(frozen=True)
class Arguments:
    """Write the tables of the documents from the newest results."""

    check: bool = False
    """Change nothing; exit with 1 where a document is stale."""
    documents: tuple[Path, ...] = ()
    """The files that hold the tables; none given: README.md and docs/*.md."""
    results: Path = _CHECKOUT / "benchmarks" / "results"
    """The folder that holds the results."""


def documents_of(checkout: Path) -> tuple[Path, ...]:
    """The files that may hold tables."""
    return checkout / "README.md", *sorted((checkout / "docs").glob("*.md"))


def render_tables(text: str, results: Path) -> str:
    """`text` with every table rewritten from the files in `results`.

    Raises ReadmeError for a table that is not known or has no result, and for a marker without its end.
    """

    def table(block: re.Match[str]) -> str:
        name = block[2]
        if name in ("numbers", "growth"):
            of_several = _numbers(results) if name == "numbers" else _growth(results)
            return f"{block[1]}{of_several.markdown()}{block[3]}"
        if name not in TABLES:
            raise ReadmeError(f"table {name!r} is not known; name one of numbers, growth, {', '.join(TABLES)}")
        rows, caption = TABLES[name]
        path, result = _newest_with_rows(name, rows, results)
        picture = f"![{result['title']}](../benchmarks/results/{path.stem}.png)\n\n" if name in PICTURES else ""
        tables = "\n".join(table.markdown() for table in rows(result))
        return f"{block[1]}{picture}{tables}\n{caption(result)} {origin(result)}\n{block[3]}"

    rendered, tables = _BLOCK.subn(table, text)
    if tables != text.count("<!-- table:"):
        raise ReadmeError("a table marker has no '<!-- end -->' after it; close every table")
    return rendered


def missing_pictures(text: str, results: Path) -> dict[Path, tuple[str, dict[str, Any]]]:
    """The pictures of `text` that are not there yet, each with the table of the sweep and its result."""
    found = {}
    for name in (block[2] for block in _BLOCK.finditer(text) if block[2] in PICTURES):
        path, result = _newest_with_rows(name, TABLES[name][0], results)
        if not (picture := path.with_suffix(".png")).exists():
            found[picture] = (name.partition("-cpu")[0], result)
    return found


def _newest_first(benchmark: str, results: Path) -> dict[Path, dict[str, Any]]:
    found = {path: json.loads(path.read_bytes()) for path in sorted(results.glob("*.json"))}
    of_this = {p: result for p, result in found.items() if result["benchmark"] == benchmark}
    if not of_this:
        raise ReadmeError(f"{results} holds no result of {benchmark!r}; run that benchmark with --output")
    return dict(sorted(of_this.items(), key=lambda entry: str(entry[1]["date"]), reverse=True))


def _newest_with_rows(benchmark: str, rows: Rows, results: Path) -> tuple[Path, dict[str, Any]]:
    """The newest result with rows: a run may hold a part of its benchmark alone, and nothing that a table shows."""
    for path, result in _newest_first(benchmark, results).items():
        if any(table.rows for table in rows(result)):
            return path, result
    raise ReadmeError(f"no result of {benchmark!r} in {results} has what its table shows; run that benchmark again")


def _numbers(results: Path) -> Table:
    """A row for each of NUMBERS, with the newest file that holds it."""
    rows = []
    for what, (benchmark, say) in NUMBERS.items():
        said = {path: text for path, result in _newest_first(benchmark, results).items() if (text := say(result))}
        if not said:
            raise ReadmeError(f"no result of {benchmark!r} in {results} holds {what!r}; run that benchmark again")
        path, text = next(iter(said.items()))
        rows.append([what, text, f"[`{path.stem}`](benchmarks/results/{path.name})"])
    return Table(["what", "number", "result"], rows)


def _growth(results: Path) -> Table:
    """A row for each of GROWTH, before and after."""
    rows = []
    for what, (benchmark, say) in GROWTH.items():
        cells = []
        for name in (f"{benchmark}-before", benchmark):
            path, result = next(iter(_newest_first(name, results).items()))
            cells.append(f"[{say(result)}](../benchmarks/results/{path.name})")
        rows.append([what, *cells])
    return Table(["what", "before", "after"], rows)


def _range(values: Iterable[float], digits: int) -> str:
    found = [f"{value:,.{digits}f}" for value in sorted(values)]
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def _rates(result: dict[str, Any]) -> str:
    return _range((epoch["images_per_second"] for epoch in result["epochs"]), 0)


def _read(result: dict[str, Any]) -> str:
    return _range((epoch["bytes"] / result["data_bytes"] for epoch in result["epochs"][1:]), 2)


def _records_memory(result: dict[str, Any]) -> str:
    return _range((rank["records_bytes"] / 2**20 for rank in result["ranks"]), 0)


def _opening(result: dict[str, Any]) -> str:
    return _range((rank["open_seconds"] for rank in result["ranks"]), 1)


def _loading(result: dict[str, Any]) -> str:
    rate = result["contenders"]["native"]["images_per_second"]["median"]
    times = result["ratios"]["native/torchvision"]["median"]
    return f"{rate:,.0f} images/s on {result['machine']['cores']} cores, {times:.1f} times as many"


def _cpu_time(result: dict[str, Any]) -> str:
    return f"{result['ratios']['CPU-ms: native/torchvision']['median']:.2f} of it"


def _training(result: dict[str, Any]) -> str:
    """Empty where that section did not run."""
    of_training = [s for s in result["sections"] if s["name"] == "training"]
    shares = [f["value"] for s in of_training for f in s["findings"] if f["name"] == "share of the step alone"]
    return f"{shares[0]['median']:.2f} on one {result['gpu']['name'].removeprefix('NVIDIA ')}" if shares else ""


def _scores(result: dict[str, Any]) -> str:
    def mean(title: str) -> float:
        runs = next(row["runs"] for row in result["rows"] if row["title"] == title)
        return float(statistics.mean(run["linear_cached_top1"] for run in runs))

    pairs = (f"{name} {mean(name):.1f} % to {mean(f'{name} + EquiMod'):.1f} %" for name in ("SimCLR", "BYOL"))
    return ", ".join(pairs)


NUMBERS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "Loading ImageNet files for an image and two crops, beside torchvision and Pillow": ("loader", _loading),
    "CPU time of whole views, beside that of torchvision and Pillow": ("views", _cpu_time),
    "Training ResNet-50 through the pipeline, as a share of the step alone": ("gpu", _training),
    "Linear top-1 on CIFAR-10 after 8 epochs on two cores, without and with EquiMod": ("table1-cpu", _scores),
}
"""The rows of `numbers`: from what is said to the benchmark that holds it, and how it is said."""

GROWTH: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "images/s in windows, from a disk that answers 500 requests a second": ("disk-window", _rates),
    "read from the second epoch on, of the data, a quarter of which fits into memory": ("disk-random", _read),
    "memory of a rank's records, 1,281,167 images in shards, MiB": ("ranks-tar", _records_memory),
    "the same in a .beton file, MiB": ("ranks-beton", _records_memory),
    "four ranks open these shards in, s": ("ranks-tar", _opening),
    "they open the .beton file in, s": ("ranks-beton", _opening),
}
"""The rows of `growth`, as those of NUMBERS, of benchmarks that were run before and after."""

TABLES: dict[str, tuple[Rows, Caption]] = {
    "loader": (Loader.rows, Loader.caption),
    "views": (Views.rows, Views.caption),
    "augment": (Augment.rows, Augment.caption),
    "ranks-tar": (Ranks.rows, Ranks.caption),
    "ranks-beton": (Ranks.rows, Ranks.caption),
    "at-url": (AtUrl.rows, AtUrl.caption),
    "disk-random": (Disk.rows, Disk.caption),
    "disk-window": (Disk.rows, Disk.caption),
    "epochs": (Disk.rows, Disk.caption),
    "features": (KeptFeatures.rows, KeptFeatures.caption),
    "train": (Train.rows, Train.caption),
    "embed": (Embed.rows, Embed.caption),
    "grad_cache": (Chunks.rows, Chunks.caption),
    "loss": (Loss.rows, Loss.caption),
    "rehearse": (rehearse.rows, rehearse.caption),
    "gpu": (gpu.rates, gpu.caption),
    "gpu_memory": (gpu_memory.rows, gpu_memory.caption),
    "scaling": (scaling.rows, scaling.caption),
    "table1-cpu": (sweep_tables.rows, sweep_tables.caption),
    "controls-cpu": (sweep_tables.rows, sweep_tables.caption),
    "controls-cpu-12500": (sweep_tables.rows, sweep_tables.caption),
    "evaluation-cpu-12500": (sweep_tables.evaluation_rows, comparison.caption),
    "figures-cpu-12500": (sweep_tables.figure_rows, comparison.caption),
    "table2a-cpu-12500": (sweep_tables.rows, sweep_tables.caption),
    "table2b-cpu-12500": (sweep_tables.rows, sweep_tables.caption),
    "table2c-cpu-12500": (sweep_tables.rows, sweep_tables.caption),
    "table3a-cpu-12500": (sweep_tables.rows, sweep_tables.caption),
    "table3b-cpu-12500": (sweep_tables.rows, sweep_tables.caption),
    "table3c-cpu-12500": (sweep_tables.rows, sweep_tables.caption),
    "layers-cpu": (sweep_tables.rows, sweep_tables.caption),
    "resolution-cpu": (sweep_tables.rows, sweep_tables.caption),
    "demo-cpu": (comparison.rows, comparison.caption),
    "figures-cpu": (sweep_tables.figure_rows, comparison.caption),
    "parity": (parity.rows, parity.caption),
    "reliability": (reliability.rows, reliability.caption),
}
PICTURES = ("table1-cpu", "controls-cpu-12500", "evaluation-cpu-12500", "figures-cpu", "figures-cpu-12500")
"""Those of TABLES that are drawn as well: results of sweeps."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done or up to date, 1 stale or failed."""

    def run() -> None:
        arguments = tyro.cli(Arguments, args=argv, prog="readme.py", description=__doc__)
        documents = arguments.documents or documents_of(_CHECKOUT)
        texts = {path: path.read_text(encoding="utf-8") for path in documents}
        rendered = {path: render_tables(text, arguments.results) for path, text in texts.items()}
        stale = [path for path in documents if rendered[path] != texts[path]]
        pictures = missing_pictures("".join(texts.values()), arguments.results)
        if arguments.check and (stale or pictures):
            names = ", ".join(path.name for path in (*stale, *pictures))
            raise ReadmeError(f"stale or missing: {names}; run python benchmarks/readme.py")
        for picture, (table, result) in pictures.items():
            draw(table, result, picture)
        for path in stale:
            with durable_file(path) as file:
                file.write(rendered[path].encode())

    return run_command(run, again="run the same command again")


if __name__ == "__main__":
    sys.exit(main())
