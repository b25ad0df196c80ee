"""The embedded data set `shapes`: 64x64 colour JPEGs of ten classes that differ in nothing but their outline.

It stands in where a user has no data yet. Every sample is drawn from (seed, index) alone. Hue, lightness, position,
size, angle, texture and background are drawn alike for all classes, so that neither colour nor position gives the class
away; they are kept beside the label in factors.csv, for measuring what a representation holds of them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from equimod.pipelines.durable import durable_dir
from equimod.pipelines.progress import Progress
from equimod.pipelines.workers import worker_pool

SIZE = 64  # pixels
JPEG_QUALITY = 95
OVERSAMPLING = 4
CLASSES = ("arrow", "circle", "crescent", "cross", "heart", "hourglass", "ring", "square", "star", "triangle")
TEXTURES = ("plain", "stripes", "checker", "dots", "noise")
BACKGROUNDS = ("plain", "gradient", "stripes", "noise", "blobs")
FIRST_INDEX = {"train": 0, "test": 1 << 32}  # of each split: no sample is in two
FACTORS = "factors.csv"
CHUNK = 250  # samples a task of a worker

Floats = NDArray[np.floating[Any]]
Points = Floats  # (K,2) x, y; the outlines in units of their size, y upwards


@dataclass(frozen=True)
class Factors:
    """What was drawn, all that the class does not say."""

    label: int
    x: float  # of the centre, pixels from the left
    y: float  # of the centre, pixels from the top
    size: float  # radius of the circle around the outline, pixels
    angle: float  # counter-clockwise, degrees
    hue: float  # of the figure, 0 to 1 around the colour circle
    lightness: float  # luma of the figure, 0 to 1
    texture: str
    background_hue: float
    background_lightness: float
    background: str


COLUMNS = ("file", *(field.name for field in fields(Factors)))
"""The first line of factors.csv; `file` is the path of the image in the tree."""


def _circle(radius: float = 1.0, x: float = 0.0) -> Points:
    angle = np.linspace(0.0, 2 * np.pi, 64, endpoint=False)
    return np.stack([x + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _regular(corners: int, inner: float | None = None) -> Points:
    """Regular polygon with a corner at the top; a star where `inner` is the radius of its inner corners."""
    count = corners if inner is None else 2 * corners
    angle = np.pi / 2 + 2 * np.pi * np.arange(count) / count
    radius = np.where(np.arange(count) % 2, inner or 1.0, 1.0)[:, None]
    points: Floats = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points


def _heart() -> Points:
    t = np.linspace(0.0, 2 * np.pi, 64, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t), y + 1], axis=1) / 18.75


def _points(*coordinates: tuple[float, float]) -> Points:
    return np.array(coordinates, dtype=np.float64)


_ARM, _END = 0.3, 0.95  # half the width and the length of an arm of the cross
_CROSS = _points(
    *((_ARM, _END), (_ARM, _ARM), (_END, _ARM), (_END, -_ARM), (_ARM, -_ARM), (_ARM, -_END)),
    *((-_ARM, -_END), (-_ARM, -_ARM), (-_END, -_ARM), (-_END, _ARM), (-_ARM, _ARM), (-_ARM, _END)),
)
_ARROW = _points((0, 1), (0.8, 0.1), (0.28, 0.1), (0.28, -0.95), (-0.28, -0.95), (-0.28, 0.1), (-0.8, 0.1))
_HOURGLASS = _points((-0.72, 0.69), (0.72, 0.69), (0.1, 0), (0.72, -0.69), (-0.72, -0.69), (-0.1, 0))

# Filled outline and, where there is one, the outline cut out of it.
OUTLINES: dict[str, tuple[Points, Points | None]] = {
    "arrow": (_ARROW, None),
    "circle": (_circle(), None),
    "crescent": (_circle(), _circle(0.82, 0.5)),
    "cross": (_CROSS, None),
    "heart": (_heart(), None),
    "hourglass": (_HOURGLASS, None),
    "ring": (_circle(), _circle(0.6)),
    "square": (_regular(4), None),
    "star": (_regular(5, 0.42), None),
    "triangle": (_regular(3), None),
}

ONE_DIRECTION = ("arrow", "crescent", "heart")
"""Classes whose angle an image shows: every other outline looks the same after a part of a turn."""


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


def _draw_factors(rng: np.random.Generator, index: int) -> Factors:
    u = rng.random(11).tolist()
    size = 13.0 + 12.0 * u[0]
    room = SIZE - 2 * size
    # Figure and background are apart in lightness, so that the outline shows whatever the hues; either may be darker.
    darker, lighter = 0.12 + 0.26 * u[1], 0.62 + 0.26 * u[2]
    lightness, background_lightness = (darker, lighter) if u[3] < 0.5 else (lighter, darker)
    return Factors(
        label=index % len(CLASSES),
        x=size + room * u[4],
        y=size + room * u[5],
        size=size,
        angle=360.0 * u[6],
        hue=u[7],
        lightness=lightness,
        texture=TEXTURES[int(u[8] * len(TEXTURES))],
        background_hue=u[9],
        background_lightness=background_lightness,
        background=BACKGROUNDS[int(u[10] * len(BACKGROUNDS))],
    )


def _mask(factors: Factors) -> Floats:
    """Share of each pixel that the figure covers, (SIZE,SIZE) in 0 to 1."""
    side = SIZE * OVERSAMPLING
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    cos, sin = math.cos(math.radians(factors.angle)), math.sin(math.radians(factors.angle))
    turn = factors.size * np.array([[cos, -sin], [-sin, -cos]])  # rotated, then y downwards
    for points, fill in zip(OUTLINES[CLASSES[factors.label]], (255, 0), strict=True):
        if points is not None:
            placed = (points @ turn.T + (factors.x, factors.y)) * OVERSAMPLING
            draw.polygon(placed.ravel().tolist(), fill=fill)
    return np.asarray(image.reduce(OVERSAMPLING), dtype=np.float32) / 255


_ROW: Floats
_COLUMN: Floats
_ROW, _COLUMN = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def _smooth_noise(rng: np.random.Generator, cells: int) -> Floats:
    """Noise in -1 to 1 of `cells` lumps along each side."""
    coarse = Image.fromarray((255 * rng.random((cells, cells))).astype(np.uint8))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 127.5 - 1


def _pattern(kind: str, rng: np.random.Generator) -> Floats:
    """A pattern over the whole image, (SIZE,SIZE) in -1 to 1."""
    angle, period, phase = 2 * np.pi * rng.random(), 5 + 5 * rng.random(), 2 * np.pi * rng.random()
    along = 2 * np.pi / period * (_COLUMN * math.cos(angle) + _ROW * math.sin(angle)) + phase
    across = 2 * np.pi / period * (_ROW * math.cos(angle) - _COLUMN * math.sin(angle)) + phase
    wave: Floats = np.zeros((SIZE, SIZE), dtype=np.float32)
    if kind == "stripes":
        wave = 3 * np.sin(along)
    elif kind == "checker":
        wave = 4 * np.sin(along) * np.sin(across)
    elif kind == "dots":
        wave = 3 * (np.cos(along) + np.cos(across) - 0.9)
    elif kind == "gradient":
        wave = (along - along.mean()) * np.float32(period / (math.sqrt(2) * np.pi * SIZE))
    elif kind == "noise":
        wave = _smooth_noise(rng, SIZE // 2)
    elif kind == "blobs":
        wave = _smooth_noise(rng, 5)
    return np.clip(wave, -1, 1, out=wave)


_LUMA = np.array([0.299, 0.587, 0.114])


def _colour(hue: float, saturation: float, lightness: float) -> Floats:
    """RGB in 0 to 1 of a hue at a given luma."""
    pure = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    colour = 1 - saturation * (1 - pure)
    luma = float(colour @ _LUMA)
    mixed: Floats = colour * (lightness / luma) if lightness < luma else 1 - (1 - colour) * (1 - lightness) / (1 - luma)
    return mixed.astype(np.float32)


def _surface(rng: np.random.Generator, kind: str, hue: float, lightness: float) -> Floats:
    """Colours of a patterned surface, (SIZE,SIZE,3) in 0 to 1, its luma within 0.1 of `lightness`."""
    saturation, turn = 0.35 + 0.65 * rng.random(), 0.16 * (rng.random() - 0.5)
    low, high = _colour(hue - turn, saturation, lightness - 0.1), _colour(hue + turn, saturation, lightness + 0.1)
    return low + (0.5 + 0.5 * _pattern(kind, rng))[..., None] * (high - low)


def draw_sample(seed: int, index: int) -> tuple[NDArray[np.uint8], Factors]:
    """Sample `index` of the data set `seed` (both 0 or more, below 2**64): image (64,64,3) and what was drawn."""
    rng = _generator(seed, index)
    factors = _draw_factors(rng, index)
    mask = _mask(factors)[..., None]
    figure = _surface(rng, factors.texture, factors.hue, factors.lightness)
    ground = _surface(rng, factors.background, factors.background_hue, factors.background_lightness)
    image = ground + mask * (figure - ground) + 0.03 * (rng.random((SIZE, SIZE, 3), dtype=np.float32) - 0.5)
    return (255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8), factors


def _write_chunk(folder: Path, seed: int, first: int, positions: range) -> list[tuple[object, ...]]:
    """Draw samples into files; their rows of factors.csv."""
    rows: list[tuple[object, ...]] = []
    for position in positions:
        image, factors = draw_sample(seed, first + position)
        name = f"{CLASSES[factors.label]}/{position:05d}.jpg"
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
        (folder / name).write_bytes(buffer.getvalue())
        rows.append((name, *(round(value, 4) if isinstance(value, float) else value for value in astuple(factors))))
    return rows


def _chunks(folder: Path, seed: int, first: int, samples: int, workers: int) -> Iterator[list[tuple[object, ...]]]:
    ranges = [range(start, min(start + CHUNK, samples)) for start in range(0, samples, CHUNK)]
    with worker_pool(min(workers, len(ranges))) as pool:
        futures = [pool.submit(_write_chunk, folder, seed, first, positions) for positions in ranges]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def draw_dataset(
    folder: Path,
    *,
    samples: int,
    seed: int,
    split: str = "train",
    workers: int = 1,
) -> None:
    """Draw an ImageFolder tree of `samples` images with factors.csv into `folder`, which appears when complete.

    Classes are balanced; the splits "train" and "test" of a seed share no sample. Raises FileExistsError where
    `folder` is there already, OSError where the disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with durable_dir(folder) as temporary:
        for name in CLASSES:
            (temporary / name).mkdir()
        with (temporary / FACTORS).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            done = 0
            with Progress("drawing", "images", total=samples) as progress:
                for rows in _chunks(temporary, seed, FIRST_INDEX[split], samples, workers):
                    table.writerows(rows)
                    done += len(rows)
                    progress.show(done)
