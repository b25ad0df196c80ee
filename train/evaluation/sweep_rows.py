"""What `equimod sweep` runs: the rows of the paper's tables, and of controls beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from equimod.train.evaluation import comparison, sweep_tables
from equimod.train.evaluation.table import Table


@dataclass(frozen=True)
class Row:
    """What a row trains; with no options it is what the recipe of its method says."""

    title: str
    paper: float | None  # linear top-1 in percent, CIFAR-10, 800 epochs
    options: tuple[str, ...] = ()  # of train/main.py, beside those of every row
    method: str = "simclr"
    equimod: bool = True
    longer: float = 1.0  # times the recipe's epochs

    @property
    def name(self) -> str:
        """Of the folder of its runs: the same for rows of several tables that are trained the same."""
        words = [word.rpartition(".")[2].removeprefix("--") if word[:2] == "--" else word for word in self.options]
        beside = [*(["equimod"] if self.equimod else []), *words, *(["longer"] if self.longer != 1 else [])]
        return "-".join([self.method, *beside])


@dataclass(frozen=True)
class PaperTable:
    title: str
    rows: tuple[Row, ...]
    evaluators: tuple[str, ...] = ()  # options of train/evaluate.py, beside those of every table
    of_equimod: tuple[str, ...] = ()  # the same, for rows with EquiMod
    dataset: str = "cifar10"
    images: int | None = 50_000  # of the whole training set; None: as many as there are
    options: tuple[str, ...] = ()  # of train/main.py, for every row
    show: Callable[[dict[str, Any]], list[Table]] = sweep_tables.rows  # of the result


def _varied(title: str, option: str, values: Mapping[str, float | None], default: str) -> PaperTable:
    """SimCLR + EquiMod with one option varied: value, as on a command line, to the paper's score."""
    rows = []
    for value, paper in values.items():
        is_default = value == default
        label = f"{value or 'none'}{' (default)' if is_default else ''}"
        rows.append(Row(label, paper, () if is_default else (option, *value.split())))
    return PaperTable(title, tuple(rows))


_WEIGHTS = {"0": 90.96, "0.1": 92.07, "0.2": 92.31, "0.5": 92.37, "1": 92.79, "2": 92.33, "5": 92.81, "10": 92.66}
_TEMPERATURES = {"0.05": 92.13, "0.1": 92.13, "0.2": 92.79, "0.5": 92.31, "1": 92.14}
_BATCHES = {"64": 92.23, "128": 92.24, "256": 92.38, "512": 92.79, "1024": 92.23}

_METHODS = (
    Row("SimCLR", 90.96, equimod=False),
    Row("SimCLR + EquiMod", 92.79),
    Row("BYOL", 90.44, method="byol", equimod=False),
    Row("BYOL + EquiMod", 91.57, method="byol"),
    Row("Barlow Twins", 86.94, method="barlow_twins", equimod=False),
    Row("Barlow Twins + EquiMod", 88.87, method="barlow_twins"),
)

TABLES = {
    "table1": PaperTable("Methods with and without EquiMod (paper, Table 1)", _METHODS),
    "figures": PaperTable(
        "Equivariance of each operator (paper, Fig. 3 and 4), and what else tells how much the parameters are known",
        _METHODS,
        evaluators=("--readout", "--figures"),
        of_equimod=("--equivariance-per-operator", "--retrieval"),
        show=sweep_tables.figure_rows,
    ),
    "evaluation": PaperTable(
        "What the representations of Table 1 are good for",
        _METHODS,
        evaluators=("--rank", "--few-shot", "--transfer", "--robustness"),
        show=sweep_tables.evaluation_rows,
    ),
    "fine-tuning": PaperTable(
        "The networks of Table 1 trained further on a share of the labels",
        _METHODS,
        evaluators=("--fine-tune",),
        show=sweep_tables.evaluation_rows,
    ),
    "table2a": _varied(
        "Layers of the equivariant projector (paper, Table 2a)",
        "--equivariance.projector",
        {"None": 88.46, "128": 91.58, "2048 128": 92.58, "2048 2048 128": 92.79},
        "2048 2048 128",
    ),
    "table2b": _varied(
        "Hidden layers of the equivariant predictor (paper, Table 2b)",
        "--equivariance.predictor-hidden",
        {"": 92.79, "16": 92.67, "128": 92.59, "2048": 92.70},
        "",
    ),
    "table2c": _varied(
        "Layers that embed the parameters (paper, Table 2c)",
        "--equivariance.embedding",
        {
            "None": 92.50,
            "16": 92.57,
            "128": 92.79,
            "2048": 92.50,
            "16 128": 92.47,
            "128 128": 92.13,
            "2048 128": 92.05,
        },
        "128",
    ),
    "table3a": _varied("Weight of the equivariance loss (paper, Table 3a)", "--equivariance.weight", _WEIGHTS, "1"),
    "table3b": _varied(
        "Temperature of the equivariance loss (paper, Table 3b)", "--equivariance.temperature", _TEMPERATURES, "0.2"
    ),
    "table3c": _varied("Batch size (paper, Table 3c)", "--batch-size", _BATCHES, "512"),
    "layers": _varied(
        "Layer of the encoder that EquiMod works on (after SER, Lee et al., 2026)",
        "--equivariance.layer",
        {"None": 92.79, "layer3": None, "layer2": None},
        "None",
    ),
    "controls": PaperTable(
        "Controls: as much time, as many views, x without its loss, forms of the loss, other company",
        (
            Row("SimCLR, two views", 90.96, equimod=False),
            Row("SimCLR for as long as EquiMod takes", None, equimod=False, longer=1.5),
            Row("SimCLR, x as a third view", None, ("--x-as-view",), equimod=False),
            Row("x in the batch, weight 0", None, ("--equivariance.weight", "0")),
            Row("EquiMod, Eq. 4", 92.79),
            Row("EquiMod, siblings as negatives", None, ("--equivariance.negatives", "siblings")),
            Row("EquiMod, form of the authors' code", None, ("--equivariance.negatives", "official")),
            Row("EquiMod alone", None, ("--method", "none")),
            Row("SimCLR + EquiMod + E-SSL", None, ("--essl",)),
        ),
    ),
    "resolution": PaperTable(
        "Images that grow, beside Table 1's of 32 pixels in all epochs",
        (Row("SimCLR + EquiMod, 16, 24, then 32 pixels", None, ("--resolution.start", "16")),),
    ),
    "demo": PaperTable(
        "What `make demo` trains, on the embedded data set",
        (
            Row("SimCLR", None, equimod=False),
            Row("SimCLR + EquiMod", None),
        ),
        evaluators=("--factors",),
        dataset="shapes",
        images=None,
        options=("--system.device", "cpu"),
        show=comparison.rows,
    ),
}
"""In Table 3c the learning rate stays that of the recipe: the paper does not say that it follows the batch size."""
