"""The report in a real browser, as wide as a phone and as a desk: nothing sticks out, nothing is fetched, no error."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import call
from needs import browser, needs_browser
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from equimod.tools.report import main
from equimod.train.evaluate import main as evaluate
from equimod.train.main import main as train

WIDTHS = {"phone": 390, "desk": 1280}  # pixels
HEIGHT = 844
SECTIONS = ("Configuration", "Losses and learning rate", "Where time went", "Scores", "Equivariance per operator")
SECTIONS += ("Views with their parameters", "Nearest neighbours", "Map of the features", "Files")


@pytest.fixture(scope="module")
def reports(options: list[str], image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of one run, and one of three: two seeds, and one with a long name that is not evaluated."""
    folder = tmp_path_factory.mktemp("reports")
    runs = [folder / "seed-0", folder / "seed-1", folder / ("a_long_name_without_a_place_to_break" * 3)]
    for seed, run in enumerate(runs):
        lr = ["--optim.lr", "0.25"] if run is runs[2] else []
        own = ["--epochs", "2", "--seed", str(seed), *lr, "--output", str(run), "--system.device", "cpu"]
        assert train([*options, "--val", str(image_tree), *own]) == 0
    for run in runs[:2]:
        assert evaluate([str(run), "--knn", "--equivariance", "--equivariance-per-operator", "--figures"]) == 0
    found = {"one": runs[0] / "report.html", "three": folder / "report.html"}
    assert call(main, runs[0]).code == 0
    assert call(main, *runs, "--output", found["three"]).code == 0
    return found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    needs_browser()
    with sync_playwright() as playwright:
        # As root it has no sandbox; what it opens here are files of this test.
        opened = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        yield opened
        opened.close()


def _sticking_out(page: Page) -> list[str]:
    """The elements beyond the right edge of the page that no box scrolls."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("body *")]
            .filter(e => !e.closest(".scroll > *, svg *") && e.getBoundingClientRect().right > innerWidth + 0.5)
            .map(e => e.outerHTML.slice(0, 80))"""
    )
    return found


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("number", ["one", "three"])
def test_it_can_be_read(number: str, width: int, reports: dict[str, Path], chromium: Browser, tmp_path: Path) -> None:
    alone = Path(shutil.copy(reports[number], tmp_path / "report.html"))  # of its folder it needs nothing
    page = chromium.new_page(viewport={"width": width, "height": HEIGHT}, is_mobile=width == WIDTHS["phone"])
    said: list[str] = []
    fetched: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(alone.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert said == []
    assert {url for url in fetched if not url.startswith("data:")} == {alone.as_uri()}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert _sticking_out(page) == []
    for name in SECTIONS:
        assert page.get_by_role("heading", name=name, exact=True, level=2).is_visible()
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    _check_texts(page)
    picture = page.screenshot(path=tmp_path / f"{number}-{width}.png", full_page=True)
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    assert pixels.shape[1] == width
    rows = pixels.reshape(len(pixels), -1).std(axis=1) > 1  # a row with something in it
    blank = np.diff(np.flatnonzero(np.concatenate([[True], rows, [True]]))).max()
    assert blank < HEIGHT / 2, f"{blank} blank rows of pixels"
    page.close()


def _check_texts(page: Page) -> None:
    """The texts of a chart can be read, stay inside of it, and none lies on another of its axis."""
    charts = page.evaluate(
        """() => [...document.querySelectorAll("svg")].map(svg => [
            svg.getBoundingClientRect().toJSON(),
            [...svg.querySelectorAll("text")].map(text => text.getBoundingClientRect().toJSON())])"""
    )
    assert charts
    for frame, texts in charts:
        for text in texts:
            assert text["height"] >= 9
            assert frame["left"] - 1 <= text["left"] <= text["right"] <= frame["right"] + 1
        for number, text in enumerate(texts):
            for other in texts[number + 1 :]:
                beside = text["right"] <= other["left"] + 1 or other["right"] <= text["left"] + 1
                assert beside or text["bottom"] <= other["top"] + 2 or other["bottom"] <= text["top"] + 2


def test_a_link_leads_to_the_file_beside_it(reports: dict[str, Path], chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto(reports["one"].as_uri())
    page.get_by_role("link", name="figures/loss.png").click()
    page.wait_for_url(f"**/{reports['one'].parent.name}/figures/loss.png")
    page.close()
