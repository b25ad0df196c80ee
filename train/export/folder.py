"""The folder of an exported encoder, written at once or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from equimod.models.settings import ConfigError
from equimod.pipelines.durable import durable_dir
from equimod.pipelines.stored import FileDigest
from equimod.train.config import RECIPE
from equimod.train.export.card import FIGURES, model_card, recipe
from equimod.train.export.formats import FORMS
from equimod.train.opened_encoder import EXPORTED, WEIGHTS, Exported, encoder_of_run


def export(
    run: Path,
    folder: Path,
    to: Sequence[str],
    *,
    checkpoint: Path | None = None,
    licence: str | None = None,
) -> None:
    """Write the encoder of a run into `folder`, in the forms that `to` names, keys of FORMS.

    It holds model.safetensors, config.json, README.md, recipe.yaml, figures of the run that show no images, and the
    files of each form. `checkpoint`: of the run; None: its newest. Raises ConfigError where a form is not for the
    encoder, or `folder` is there already, CheckpointError and DamagedFileError for what is damaged.
    """
    if folder.exists():
        raise ConfigError(f"{folder} is there already; remove it, or give another --output")
    opened = encoder_of_run(run, checkpoint)
    assert opened.checkpoint is not None
    forms = {name: FORMS[name] for name in dict.fromkeys(to)}
    for form in forms.values():
        form.refuse(opened)
    content = opened.weights
    exported = Exported(opened.settings, opened.x, FileDigest.of_content(content).sha256)
    config = {key: value for form in forms.values() for key, value in form.config(opened).items()}
    texts = {
        EXPORTED: json.dumps({**config, "equimod": asdict(exported)}, indent=2),
        RECIPE: recipe(opened.checkpoint.config),
        "README.md": model_card(opened, run, forms, folder.resolve().name, licence),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with durable_dir(folder) as partial:
        (partial / WEIGHTS).write_bytes(content)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        for name in FIGURES:
            if (run / "figures" / name).exists():
                (partial / "figures").mkdir(exist_ok=True)
                shutil.copyfile(run / "figures" / name, partial / "figures" / name)
        for form in forms.values():
            form.write(opened, partial)
