"""Write the README's tables from the newest results: python benchmarks/readme.py [--check].

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is one of `TABLES`. Its numbers come from
the file of that benchmark in `benchmarks/results/` whose date is the latest.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from equimod.benchmarks.picture import AUGMENTER_TITLES, LOADER_TITLES
from equimod.pipelines.durable import durable_file
from equimod.pipelines.policy import OPERATORS
from equimod.train.evaluation.summary import mean_and_deviation

_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CHECKOUT = Path(__file__).parent.parent

_SPEED, _MEMORY = "images/s (lowest to highest round)", "peak memory, MiB"
_OPERATORS = ("crop", *OPERATORS)
_FORMER = {"grad_cache": "accumulate"}  # names in results that were stored under an earlier one
_RANKS = {"retrieval_mrr": "MRR", "retrieval_hit1": "H@1", "retrieval_hit5": "H@5"}
SCORE_COLUMNS = {  # name in the result: title and digits
    "linear_top1": ("linear top-1, %", 2),
    "linear_cached_top1": ("linear top-1 on cached features, %", 2),
    "knn_top1": ("kNN top-1, %", 2),
    "absolute": ("absolute equivariance", 3),
    "relative": ("relative equivariance", 3),
}


class ReadmeError(Exception):
    """A README that cannot be filled: the message gives the reason and the remedy in one line."""


@dataclass(frozen=True)
class Arguments:
    """Write the tables of the README from the newest results."""

    check: bool = False
    """Change nothing; exit with 1 where the README is stale."""
    readme: Path = _CHECKOUT / "README.md"
    """The file that holds the tables."""
    results: Path = _CHECKOUT / "benchmarks" / "results"
    """The folder that holds the results."""


def render_tables(text: str, results: Path) -> str:
    """`text` with every table rewritten from the files in `results`.

    Raises ReadmeError for a table that is not known or has no result, and for a marker without its end.
    """

    def table(block: re.Match[str]) -> str:
        name = block[2]
        if name not in TABLES:
            raise ReadmeError(f"table {name!r} is not known; name one of {', '.join(TABLES)}")
        return f"{block[1]}{TABLES[name](_newest(name, results))}{block[3]}"

    rendered, tables = _BLOCK.subn(table, text)
    if tables != text.count("<!-- table:"):
        raise ReadmeError("a table marker has no '<!-- end -->' after it; close every table")
    return rendered


def _newest(benchmark: str, results: Path) -> dict[str, Any]:
    found = [json.loads(path.read_bytes()) for path in sorted(results.glob("*.json"))]
    of_this = [result for result in found if result["benchmark"] in (benchmark, _FORMER.get(benchmark))]
    if not of_this:
        raise ReadmeError(f"{results} holds no result of {benchmark!r}; run that benchmark with --output")
    newest: dict[str, Any] = max(of_this, key=lambda result: result["date"])
    return newest


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ruler, *rows))


def _origin(result: dict[str, Any]) -> str:
    """Where a result comes from, as the end of a sentence."""
    machine, commit = result["machine"], result["commit"]
    at = f", commit {commit['sha'][:10]}{' with changes' if commit['dirty'] else ''}" if commit else ""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items() if name != "equimod")
    return f"{machine['cpu']}, {machine['cores']} cores; {versions}; {result['date'][:10]}{at}."


def _spread(value: dict[str, float], digits: int) -> str:
    return "{median:,.{d}f} ({low:,.{d}f} to {high:,.{d}f})".format(d=digits, **value)


def loader_table(result: dict[str, Any]) -> str:
    """Markdown of a result of `throughput.py loader`."""
    rows = []
    ratios, settings = result["ratios"], result["settings"]
    for name, title in LOADER_TITLES.items():
        if name not in result["contenders"]:
            continue
        measured = result["contenders"][name]
        speed, cpu = measured["images_per_second"], measured["cpu_ms_per_image"]
        share = f"{ratios[f'{name}/decode']['median']:.2f}" if name != "decode" else "1"
        rows.append(
            [
                title,
                _spread(speed, 0),
                share,
                f"{cpu['median']:.2f}",
                f"{measured['peak_bytes'] / 2**20:,.0f}",
                f"{measured['first_batch_seconds']:.2f}",
                f"{measured['start_seconds']:.1f}",
            ]
        )
    header = ("loader", _SPEED, "of decode alone", "CPU-ms an image", _MEMORY, "first batch, s", "after start, s")
    times = {name.partition("/")[2]: r["median"] for name, r in ratios.items() if name.startswith("native/")}
    others = ", ".join(f"{value:.2f} times {name}" for name, value in times.items() if name != "decode")
    return (
        _rows(header, rows)
        + f"\nThe native backend loads {times['decode']:.2f} times what decoding alone does, {others}. Medians of "
        f"{len(result['rounds'])} interleaved rounds of {settings['images']:,} images, policy {settings['policy']}, "
        f"batches of {settings['batch_size']}, {settings['workers']} workers, warm page cache. Memory is resident "
        "memory, summed over processes, pages that they share counted in each. CPU-ms an image is also the number of "
        "cores that 1,000 images/s need. A first batch is that of an epoch; after start, that of the first epoch, with "
        f"imports, opening and compilation. {_origin(result)}\n"
    )


def views_table(result: dict[str, Any]) -> str:
    """Markdown of a result of `throughput.py views`."""
    settings, contenders = result["settings"], result["contenders"]
    rows = []
    for name, title in LOADER_TITLES.items():
        if name in contenders:
            speed, cpu = contenders[name]["images_per_second"], contenders[name]["cpu_ms_per_image"]
            rows.append([title, _spread(speed, 0), f"{cpu['median']:.2f}"])
    share = result["ratios"]["CPU-ms: native/torchvision"]
    return (
        _rows(("up to whole views", _SPEED, "CPU-ms an image"), rows)
        + f"\nThe native backend and this project's operators take {share['median']:.2f} ({share['low']:.2f} to "
        f"{share['high']:.2f}) of the CPU time of Pillow and torchvision. Medians of {len(result['rounds'])} "
        f"interleaved rounds of {settings['images']:,} images, policy {settings['policy']}, batches of "
        f"{settings['batch_size']}, {settings['workers']} workers. {_origin(result)}\n"
    )


def augment_table(result: dict[str, Any]) -> str:
    """Markdown of a result of `throughput.py augment`."""
    settings, names = result["settings"], [name for name in AUGMENTER_TITLES if name in result["contenders"]]
    rows = []
    for name in names:
        measured = result["contenders"][name]
        speed, cpu = measured["images_per_second"], measured["cpu_ms_per_image"]
        times = [result["ratios"].get(f"{ours}/{name}", {"median": 1.0})["median"] for ours in ("equimod", "compiled")]
        rows.append(
            [AUGMENTER_TITLES[name], _spread(speed, 1), f"{cpu['median']:.1f}", *(f"{value:.2f}" for value in times)]
        )
    return (
        _rows(("operators", _SPEED, "CPU-ms an image", "equimod is faster by", "compiled is faster by"), rows)
        + f"\nAll views of the policy {settings['policy']} make an image. Flip, colour, blur, solarize and normalize "
        f"of uint8 crops that are there, batches of {settings['batch_size']}, {settings['threads']} thread(s), "
        f"{len(result['rounds'])} interleaved rounds of {settings['images']:,} images. {_origin(result)}\n"
    )


def train_table(result: dict[str, Any]) -> str:
    """Markdown of a result of `throughput.py train`."""
    settings = result["settings"]
    rows = []
    for name, title in (("step", "step alone"), ("pipeline", "pipeline alone"), ("train", "training")):
        measured = result["contenders"][name]
        speed, cpu = measured["images_per_second"], measured["cpu_ms_per_image"]
        rows.append([title, _spread(speed, 0), f"{cpu['median']:.2f}", f"{measured['first_batch_seconds']:.2f}"])
    share = result["ratios"]["train/slower of both"]
    both = " + EquiMod" if settings["equimod"] else ""
    return (
        _rows(("what", _SPEED, "CPU-ms an image", "first batch, s"), rows)
        + f"\nTraining runs at {share['median']:.2f} ({share['low']:.2f} to {share['high']:.2f}) of the slower of the "
        f"two alone; on a machine without a GPU both want the same cores. {settings['method']}{both}, batches of "
        f"{settings['batch_size']}, {len(result['rounds'])} interleaved rounds of {settings['batches']} steps. "
        f"{_origin(result)}\n"
    )


def cost_table(result: dict[str, Any]) -> str:
    """Markdown of a result of `large_batch.py`."""
    rows = []
    against = next(iter(result["ratios"])).partition("/")[2]
    for name, measured in result["contenders"].items():
        times = result["ratios"].get(f"{name}/{against}")
        cost = f"{1 / times['median']:.3f}" if times else "1" if name == against else "–"
        rows.append([name, cost, f"{measured['peak_bytes'] / 2**20:,.0f}"])
    batch = result["settings"].get("batch") or result["settings"]["batch_size"]
    return (
        _rows(("what", f"time against {against}", _MEMORY), rows)
        + f"\nGlobal batch of {batch:,}, {len(result['rounds'])} interleaved rounds. Memory is that of the whole "
        f"process, Python and torch included. {_origin(result)}\n"
    )


def rehearse_table(result: dict[str, Any]) -> str:
    """Markdown of a result of `rehearse.py`."""
    rows = []
    for row in result["rows"]:
        sums = row["bytes"].get("allreduce", 0) - row["parameter_bytes"]
        rows.append(
            [
                row["method"] + (" + EquiMod" if row["equimod"] else ""),
                f"{row['tflop']:.2f}",
                f"{row['parameter_bytes'] / 1e6:.1f}",
                f"{row['bytes'].get('allgather', 0) / 1e6:.2f}",
                f"{sums / 1e6:.2f}",
            ]
        )
    settings = result["settings"]
    return (
        _rows(("method", "TFLOP a rank", "gradients, MB", "gathered, MB", "other sums, MB"), rows)
        + f"\nResNet-50, 224 pixels, global batch of {settings['batch_size']:,}, a rank of {settings['ranks']}; bytes "
        f"are those that the rank hands over, float32. {_origin(result)}\n"
    )


def gpu_memory_table(result: dict[str, Any]) -> str:
    """Markdown of a result of `gpu_memory.py`."""
    cells = {
        (row["recipe"], row["ranks"]): f"{row['peak_bytes'] / 2**30:.1f} ({row['card_gib'] or 'none'})"
        for row in result["rows"]
    }
    key = "grad_cache" if "grad_cache" in result["rows"][0] else _FORMER["grad_cache"]
    chunks = {row["ranks"]: row[key] for row in result["rows"] if row["recipe"].endswith("imagenet")}
    header = [f"{n} GPU{'s' * (n > 1)}{f', `--grad-cache {k}`' * (k > 1)}" for n, k in chunks.items()]
    rows = {recipe: [f"`{recipe}.yaml`", *(cells.get((recipe, n), "–") for n in chunks)] for recipe, _ in cells}
    return (
        _rows(("recipe", *header), list(rows.values()))
        + "\nGiB at the peak of a step, and in brackets the smallest of the usual cards that holds it with a tenth and "
        "1.5 GiB left for CUDA and the allocator. A recipe for CIFAR-10 runs on one GPU without `--grad-cache`. "
        f"{_origin(result)}\n"
    )


def scaling_table(result: dict[str, Any]) -> str:
    """Markdown of a result of `scaling.py`."""
    rows = [
        [
            f"{row['ranks']:,}",
            f"{row['images_a_rank']:,}",
            f"{1e3 * row['step_s']:,.0f}",
            f"{1e3 * row['gradients_s']:.1f}",
            f"{1e3 * row['statistics_s']:.1f}",
            f"{1e3 * row['embeddings_s']:.2f}",
            f"{row['efficiency']:.2f}",
            f"{row['hours_100_epochs']:.1f}",
            f"{row['cores_a_node']:.1f}",
            f"{row['read_mb_s_a_node']:,.0f}",
        ]
        for row in result["rows"]
    ]
    header = ["GPUs", "images each", "step, ms", "gradients", "batch norm", "embeddings", "efficiency"]
    header += ["hours for 100 epochs", "cores a node", "MB/s a node"]
    return (
        _rows(header, rows)
        + f"\nNothing here is measured on a GPU. Columns three to six are milliseconds; gradients: what does not hide "
        f"behind the backward pass. {_origin(result)}\n"
    )


def sweep_table(result: dict[str, Any]) -> str:
    """Markdown of a result of `tools/sweep.py`: means over the seeds, beside the paper's column.

    A score that no run has is left out.
    """
    rows = [row for row in result["rows"] if row["runs"]]
    every = [run for row in rows for run in row["runs"]]
    measured = {key: score for key, score in SCORE_COLUMNS.items() if any(run[key] is not None for run in every)}
    cells = []
    for row in rows:
        runs = row["runs"]
        scores = [mean_and_deviation([run[key] for run in runs], digits) for key, (_, digits) in measured.items()]
        minutes = mean_and_deviation([run["seconds"] / 60 for run in runs], 1)
        paper = "–" if row["paper"] is None else f"{row['paper']:.2f}"
        cells.append([row["title"], *scores, minutes, str(len(runs)), paper])
    titles = [title for title, _ in measured.values()]
    spread = " Means ± standard deviation over the seeds." if len(every) > len(rows) else ""
    sizes = {f"{run['arch']} width {run['width']}, {run['epochs']} epochs of {run['images']:,} images" for run in every}
    return (
        _rows(("", *titles, "minutes", "seeds", "paper's linear top-1, %"), cells)
        + f"\n{'; '.join(sorted(sizes))}; the paper's column is ResNet-18, 800 epochs.{spread} Minutes are those of "
        f"training. {_origin(result)}\n"
    )


def figures_table(result: dict[str, Any]) -> str:
    """Markdown of a result of `tools/sweep.py figures`: what is known of each operator's parameters, over the seeds."""

    def cells(row: dict[str, Any], names: Sequence[str], digits: int) -> list[str]:
        found = [run["eval"] for run in row["runs"]]
        return [mean_and_deviation([scores.get(name) for scores in found], digits) for name in names]

    equimod = [row for row in result["rows"] if any(run["equimod"] for run in row["runs"])]
    of_equimod = []
    for form, digits in (("absolute", 3), ("relative", 2)):
        names = [f"equivariance_{form}_{operator}" for operator in _OPERATORS]
        of_equimod += [[f"{row['title']}, {form}", *cells(row, names, digits)] for row in equimod]
    ranks = [[row["title"], *cells(row, list(_RANKS), 3)] for row in equimod]
    readout = [f"readout_r2_{operator}" for operator in _OPERATORS]
    recovered = [[row["title"], *cells(row, readout, 3)] for row in result["rows"] if row["runs"]]
    seeds = max(len(row["runs"]) for row in result["rows"])
    return (
        _rows(("equivariance of an operator alone", *_OPERATORS), of_equimod)
        + "\n"
        + _rows(("R2 of a linear read-out from h", *_OPERATORS), recovered)
        + "\n"
        + _rows(("ranks of the true view among 16", *_RANKS.values()), ranks)
        + f"\nMeans ± standard deviation over {seeds} seed(s), on the test images. {_origin(result)}\n"
    )


def parity_table(result: dict[str, Any]) -> str:
    """Markdown of a result of `parity.py`."""
    backends = list(result["rows"][0]["backends"])
    rows = [
        [row["operator"], *(f"{m['mean']:.2f} ({m['worst_image']:.2f})" for m in row["backends"].values())]
        for row in result["rows"]
    ]
    return (
        _rows(("operator", *backends), rows)
        + "\nMean distance to torchvision on Pillow over all pixels, in levels of 255, and in brackets that of the "
        f"worst image; {result['settings']['images']} original ImageNet files. Each operator stands behind the crop, "
        f"so its row holds the crop's distance too. {_origin(result)}\n"
    )


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "loader": loader_table,
    "views": views_table,
    "augment": augment_table,
    "train": train_table,
    "grad_cache": cost_table,
    "loss": cost_table,
    "rehearse": rehearse_table,
    "gpu_memory": gpu_memory_table,
    "scaling": scaling_table,
    "table1-cpu": sweep_table,
    "controls-cpu": sweep_table,
    "figures-cpu": figures_table,
    "parity": parity_table,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done or up to date, 1 stale or failed."""
    arguments = tyro.cli(Arguments, args=argv, prog="readme.py", description=__doc__)
    try:
        text = arguments.readme.read_text(encoding="utf-8")
        rendered = render_tables(text, arguments.results)
        if rendered == text:
            return 0
        if arguments.check:
            raise ReadmeError(f"{arguments.readme.name} is stale; run python benchmarks/readme.py")
        with durable_file(arguments.readme) as file:
            file.write(rendered.encode())
    except (ReadmeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
