"""What a report shows of images: the first views of the training, nearest neighbours, and a map of the features."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from equimod.pipelines.decode import decode_sample
from equimod.pipelines.errors import EquimodError, spaced
from equimod.pipelines.images import open_images
from equimod.pipelines.records.protocol import Records, fingerprint
from equimod.pipelines.records.selection import spread_over
from equimod.train.config import ConfigError
from equimod.train.config.own_images import has_gpu
from equimod.train.embedding.files import Embeddings
from equimod.train.embedding.neighbours import find
from equimod.train.embedding.picture import image_name
from equimod.train.evaluation.features import FrozenEncoder, extract
from equimod.train.evaluation.figures import first_samples
from equimod.train.html_report import charts
from equimod.train.html_report.charts import Chart
from equimod.train.html_report.contents import Run
from equimod.train.loop import AUTOCAST
from equimod.train.opened_encoder import encoder_of_run

Projection = Literal["pca", "umap"]
_QUERIES, _NEIGHBOURS = 6, 6
_SIDE = 160  # pixels of an image, at most
_ABOUT: dict[Projection, str] = {
    "pca": "The two principal components of the features, brought to length 1. Two hold a part of what all hold.",
    "umap": "UMAP of the features, brought to length 1. Distances between groups say little.",
}


@dataclass(frozen=True)
class Look:
    """What is shown of images."""

    data: Path | None  # in place of those of the runs
    pictures: bool  # whether images themselves are shown
    samples: int  # images that features are made of, at most; 0 for no features
    projection: Projection


@dataclass(frozen=True)
class Picture:
    """An image with what stands above and below it."""

    title: str
    text: str
    uri: str


@dataclass(frozen=True)
class Sheet:
    """Images in rows: a row a sample, or a query and its neighbours."""

    title: str
    rows: list[list[Picture]]


@dataclass(frozen=True)
class Shown:
    """The three sections; `missing` says in a sentence each what is not shown, and why."""

    map_about: str
    views: list[Sheet] = field(default_factory=list)
    neighbours: list[Sheet] = field(default_factory=list)
    maps: list[Chart] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def look_at_images(runs: Sequence[Run], look: Look) -> Shown:
    """The sections of these runs.

    Where images of a run are not there or cannot be read, that is said in their place, but for those of `look.data`:
    EquimodError. Raises ConfigError where umap is asked for and missing.
    """
    if look.projection == "umap":
        require_umap()
    shown, drawn = Shown(_ABOUT[look.projection]), []
    if not look.pictures:
        shown.missing.append("Images are left out, by --no-images.")
    if not look.samples:
        shown.missing.append("Features of images are left out, by --samples 0.")
    for run in runs:
        try:
            policy = (run.config.augment, run.config.data)
            if look.pictures and policy not in drawn:
                shown.views.append(_views(run, look))
                drawn.append(policy)
            if look.samples:
                _look_at_features(run, look, shown)
        except EquimodError as error:
            if look.data is not None:
                raise
            shown.missing.append(f"The images of {run.name} cannot be shown: {error}. --data PATH gives others.")
    return shown


def require_umap() -> None:
    """Raise ConfigError where umap-learn is missing."""
    try:
        import umap  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"--map umap needs umap-learn ({error}): pip install 'equimod[umap]'") from error


def _views(run: Run, look: Look) -> Sheet:
    config = run.config
    paths = (look.data,) if look.data else _given(config.data, run)
    records = open_images(paths, config.labels)
    samples = first_samples(records, config.augment, seed=config.seed, window=config.shuffle_window)
    trained_on = run.checkpoint is not None and run.checkpoint.state.records.table == fingerprint(records).table
    title = "the first samples of its training" if trained_on else f"views of {spaced(paths)} as it would draw them"
    rows = [
        [
            Picture(image.title, image.text.replace(",\n", ", "), _uri((255 * image.pixels).round().astype(np.uint8)))
            for image in sample
        ]
        for sample in samples
    ]
    return Sheet(f"{run.name}: {title}", rows)


def _given(paths: tuple[Path, ...] | None, run: Run) -> tuple[Path, ...]:
    if not paths:
        raise ConfigError(f"{run.folder} names no images")
    return paths


def _look_at_features(run: Run, look: Look, shown: Shown) -> None:
    """Add the neighbours and the map of a run."""
    paths = (look.data,) if look.data else _given(run.config.val or run.config.data, run)
    records = spread_over(open_images(paths, run.config.labels), look.samples)
    h = _features(run, records)
    title = f"{run.name}: {len(records):,} images of {spaced(paths)}"
    if look.pictures:
        shown.neighbours.append(Sheet(title, _neighbours(h, records, paths[0])))
    points = project(h, look.projection)
    shown.maps.append(charts.feature_map(points, records.label, records.classes, run))


def _features(run: Run, records: Records) -> NDArray[np.float32]:
    opened = encoder_of_run(run.folder, None)
    device = "cuda" if has_gpu(run.config.system.device) else "cpu"
    torch.backends.cudnn.deterministic = True
    encoder = FrozenEncoder(opened.encoder.to(device), AUTOCAST[opened.precision])
    h: NDArray[np.float32] = extract(encoder, records, opened.x, records.classes).h.cpu().numpy()
    return h


def _neighbours(h: NDArray[np.float32], records: Records, source: Path) -> list[list[Picture]]:
    path = np.array([records.source(position) for position in range(len(records))])
    embeddings = Embeddings(h, path, records.index, source)
    queries = [str(index) for index in spread_over(records, _QUERIES).index]
    found = find(embeddings, queries, _NEIGHBOURS)
    rows = []
    for query, nearest, similarity in zip(found.query, found.row, found.similarity, strict=True):
        titles = ["query", *(f"{value:.3f}" for value in similarity)]
        rows.append(
            [
                Picture(title, image_name(embeddings, records, row), _uri(decode_sample(records, row)))
                for title, row in zip(titles, map(int, (query, *nearest)), strict=True)
            ]
        )
    return rows


def project(h: NDArray[np.float32], projection: Projection) -> NDArray[np.float64]:
    """Representations (N,F) of length 1 in the plane (N,2): the same call gives the same points."""
    unit = h.astype(np.float64) / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)
    if projection == "umap":
        import umap

        near = min(15, len(h) - 1)
        placed: NDArray[np.float64] = umap.UMAP(n_neighbors=near, random_state=0, n_jobs=1).fit_transform(unit)
        return placed
    u, s, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    points: NDArray[np.float64] = u[:, :2] * s[:2]
    # The sign of a component is arbitrary: what lies farthest out is positive.
    points *= np.where(np.take_along_axis(points, abs(points).argmax(0)[None], 0) < 0, -1, 1)
    return points


def _uri(pixels: NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    with io.BytesIO() as out:
        image.save(out, format="PNG")
        return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
