"""README.md of an exported folder: a model card, with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from equimod.train.config import RECIPE, Config
from equimod.train.evaluation import comparison
from equimod.train.evaluation.scores import read_scores
from equimod.train.evaluation.table import Table
from equimod.train.export.formats import Form, transform_code
from equimod.train.opened_encoder import OpenedEncoder

FIGURES = {"loss.png": "Losses and learning rate", "equivariance.png": "Equivariance to each operator alone"}
"""Of a run, that show no images."""
_OF_THE_MACHINE = ("data", "val", "output", "config", "resume", "resume_anyway", "overwrite")


def recipe(config: Config) -> str:
    """The settings of a run as a recipe, without the places where its images and itself lay."""
    settings = yaml.safe_load(config.to_yaml())
    return yaml.safe_dump({k: v for k, v in settings.items() if k not in _OF_THE_MACHINE}, sort_keys=False)


def model_card(opened: OpenedEncoder, run: Path, forms: Mapping[str, Form], name: str, licence: str | None) -> str:
    """The card of an encoder of a run. `name`: of the folder it is for; `licence`: of the weights, None for unknown.

    Raises ConfigError where eval.json of the run is damaged.
    """
    assert opened.checkpoint is not None
    config, x = opened.checkpoint.config, opened.x
    usage = "\n\n".join(f"{to}:\n\n```python\n{form.usage(opened, name)}\n```" for to, form in forms.items())
    parameters = sum(p.numel() for p in opened.encoder.parameters())
    front = {
        "license": licence or "unknown",
        "library_name": "timm" if "timm" in forms else "pytorch",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised", config.method, *(["equimod"] if config.equimod else [])],
    }
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name}",
        f"{opened.settings.title}, an encoder trained without labels by {config.title} on {config.data_name}. It takes "
        f"images of {x.size} pixels to {opened.encoder.feature_dim} features and has {parameters:,} parameters.",
        f"## Use\n\n{usage}",
        f"## Preprocessing\n\n```python\nfrom torchvision import transforms\n\n{transform_code(x)}\n```",
        f"## Training\n\n{_training(opened, config)}",
        f"## Scores\n\n{_scores(opened, run)}",
        *_figures(run),
        f"## Licence\n\n{licence or 'Not given. Ask whoever trained it, and mind that of its images.'}",
    ]
    return "\n\n".join(sections) + "\n"


def _training(opened: OpenedEncoder, config: Config) -> str:
    assert opened.checkpoint is not None
    cursor, records = opened.checkpoint.state.cursor, opened.checkpoint.state.records
    facts = {
        "method": config.title,
        "data": f"{config.data_name} (fingerprint {records})",
        "epochs": f"{cursor.epoch} of {config.epochs}",
        "batch": str(config.batch_size),
        "optimizer": config.optim.title,
        "precision": config.precision,
        "seed": str(config.seed),
        "started from": config.encoder.weights or "nothing",
    }
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"{listed}\n\nEvery setting is in {RECIPE}:\n\n```sh\nequimod train --config {RECIPE} --data IMAGES\n```"


def _scores(opened: OpenedEncoder, run: Path) -> str:
    assert opened.checkpoint is not None
    found = read_scores(run)
    if found.get("weights") != opened.checkpoint.identity["weights"]:
        return "Not measured."
    by_name = {name: value for name, value in found.items() if isinstance(value, float)}
    cells = [[comparison.title(name), f"{by_name[name]:.3f}"] for name in comparison.in_order(by_name)]
    return Table(["", "score"], cells).markdown() + "\nOn validation images that were not trained on."


def _figures(run: Path) -> list[str]:
    drawn = [f"![{title}](figures/{name})" for name, title in FIGURES.items() if (run / "figures" / name).exists()]
    return ["## Figures\n\n" + "\n\n".join(drawn)] if drawn else []
