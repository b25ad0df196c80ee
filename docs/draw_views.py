"""Draw docs/views.svg: an image, what was drawn for two views of it, and what is learnt: python docs/draw_views.py."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from PIL import Image

from equimod.pipelines.build import build_pipeline
from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.pipelines.shapes import draw_sample

PICTURE = Path(__file__).parent / "views.svg"
SAMPLE, SEED = 8, 63
SIDE = 128  # pixels of an image in the picture
WIDTH, HEIGHT = 1020, 380
ROWS = (40, 228)  # top of each view
BLUE, ORANGE = "#1f5fa8", "#b3560b"


def parameter_lines(params: AugmentationParams) -> list[str]:
    """What was drawn for the first sample, a line an operator."""
    x, y, width, height = params.crop[0].tolist()
    names = ("brightness", "contrast", "saturation", "hue")
    factors = [f"{name} {factor:.2f}" for name, factor in zip(names, params.factors[0].tolist(), strict=True)]
    order = ", ".join(names[number] for number in params.order[0].tolist())
    jitter = [f"  {factors[0]}, {factors[1]}", f"  {factors[2]}, {factors[3]}", f"  order: {order}"]
    return [
        f"crop: {width} x {height} pixels at {x}, {y}",
        f"flip: {_yes(params.flip)}",
        f"jitter: {_yes(params.jitter)}",
        *(jitter if params.jitter[0] else []),
        f"gray: {_yes(params.gray)}",
        f"blur: sigma {params.sigma[0].item():.2f} pixels" if params.blur[0] else "blur: no",
    ]


def _yes(flag: torch.Tensor) -> str:
    return "yes" if flag[0] else "no"


def picture() -> str:
    """The picture as SVG."""
    policy = POLICIES["simclr_shapes"]
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(draw_sample(0, SAMPLE)[0]).save(Path(folder) / "sample.png")
        batch = next(build_pipeline(open_records(Path(folder)), policy, batch_size=1, seed=SEED).epoch(0))
    assert batch.x is not None
    middle = (ROWS[0] + ROWS[1] + SIDE) // 2
    parts = [
        _text(20, 26, "the image x", bold=True),
        _text(178, 26, "drawn first, from seed, epoch, index, view", bold=True, colour=BLUE),
        _text(520, 26, "then carried out", bold=True),
        _text(780, 26, "then learnt from", bold=True),
        _image(batch.x[0], 20, middle - SIDE // 2),
        _box(690, ROWS[0], 66, ROWS[1] + SIDE - ROWS[0], "#eeeeee"),
        _text(723, middle - 4, "encoder", middle=True),
        _text(723, middle + 14, "f", middle=True),
    ]
    for number, (top, view) in enumerate(zip(ROWS, batch.views, strict=True)):
        centre = top + SIDE // 2
        parts += [
            _box(178, top - 4, 322, SIDE + 8, "#eaf1fa"),
            *(_text(190, top + 14 + 15 * row, line) for row, line in enumerate(parameter_lines(view.params))),
            _text(488, top + 14, f"t{'₁₂'[number]}", bold=True, colour=BLUE, end=True),
            _image(view.image[0], 520, top),
            _arrow([(148, middle + (number * 2 - 1) * 20), (160, centre), (176, centre)]),
            _arrow([(500, centre), (518, centre)]),
            _arrow([(648, centre), (688, centre)]),
        ]
    parts += [
        _arrow([(148, middle), (688, middle)]),
        _box(780, ROWS[0], 220, 112, "#eeeeee"),
        _text(792, ROWS[0] + 24, "the method", bold=True),
        _text(792, ROWS[0] + 46, "SimCLR, BYOL, Barlow Twins,"),
        _text(792, ROWS[0] + 62, "SimSiam, VICReg:"),
        _text(792, ROWS[0] + 90, "z₁ near z₂"),
        _box(780, ROWS[1] - 28, 220, SIDE + 28, "#fbeee1"),
        _text(792, ROWS[1] - 4, "EquiMod", bold=True, colour=ORANGE),
        _text(792, ROWS[1] + 18, "predicts from the image and"),
        _text(792, ROWS[1] + 34, "the parameters where the"),
        _text(792, ROWS[1] + 50, "embedding of the view lies:"),
        _text(792, ROWS[1] + 80, "u(yₓ, t₁) near y₁"),
        _text(792, ROWS[1] + 100, "u(yₓ, t₂) near y₂"),
        _arrow([(756, ROWS[0] + 56), (778, ROWS[0] + 56)]),
        _arrow([(756, ROWS[1] + 56), (778, ROWS[1] + 56)]),
    ]
    size = 'markerWidth="8" markerHeight="8" refX="7" refY="4"'
    tip = '<path d="M0,0 L8,4 L0,8 z" fill="#555555"/>'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="13">',
            "<title>An image, the parameters drawn for two views of it, the views, and what is learnt</title>",
            f'<defs><marker id="tip" {size} orient="auto">{tip}</marker></defs>',
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _image(image: torch.Tensor, x: int, y: int) -> str:
    normalize = POLICIES["simclr_shapes"].x.normalize
    mean, std = (torch.tensor(value)[:, None, None] for value in (normalize.mean, normalize.std))
    pixels = ((image * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<image x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" href="data:image/png;base64,{data}"/>'


def _text(
    x: int, y: int, text: str, *, bold: bool = False, colour: str = "#222222", middle: bool = False, end: bool = False
) -> str:
    anchor = ' text-anchor="middle"' if middle else ' text-anchor="end"' if end else ""
    weight = ' font-weight="bold"' if bold else ""
    indent = 12 * text.startswith(" ")
    return f'<text x="{x + indent}" y="{y}" fill="{colour}"{anchor}{weight}>{escape(text.strip())}</text>'


def _box(x: int, y: int, width: int, height: int, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}"/>'


def _arrow(points: list[tuple[int, int]]) -> str:
    path = " L".join(f"{x},{y}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="#555555" stroke-width="1.5" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
