"""The page in a real browser: on a phone and on a desk, light and dark, sorted by a click, with 200 runs."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from lbtrain.records import write_record
from lbtrain.study.figures import Picture
from lbtrain.study.forms import html
from lbtrain.study.load import load_sweep
from lbtrain.study.pages import page
from lbtrain.study.report import Report
from tests.unit.study.browser import Browser, find, started
from tests.unit.study.diagnosed import finding, write_diagnosis
from tests.unit.study.known_sweep import BATCHES, KNOWN, make_record

PHONE, DESK = 390, 1280
LAYER = "layer network.stage3.block.conv2"
SICK = (
    finding("dead units", f"{LAYER}: 61 of 64 relu units are dead on 256 samples", 40, "warm up", "optimizer.lr=0.02"),
    finding("slow progress", "the loss fell by 2 % in the last half", None, "add momentum"),
)
COLUMN = """(name) => {
    const table = document.querySelector('#all-settings table');
    const at = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent.startsWith(name + ' ('));
    const cells = [...table.tBodies[0].rows].map((row) => row.cells[at]);
    return {head: table.tHead.rows[0].cells[at], texts: cells.map((cell) => cell.firstChild.textContent)};
}"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("no browser on this machine: none of chromium, chromium-browser and google-chrome is found")
    with started(program, tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, report: Report) -> Path:
    """A page of 200 diagnosed runs of 100 settings with long names, and the figures of the known study three times."""
    folder = tmp_path_factory.mktemp("large")
    number = 0
    for seed in (0, 1):
        for optimizer, rule in KNOWN:
            for place in range(25):
                run = make_record(optimizer, rule, BATCHES[place % 3], place % 2 == 1, seed, 1 + 0.1 * place)
                gaps = {"gap/loss": 0.01 * place + 0.001 * seed, "gap/acc": -0.001 * place}
                depth = {"model.the_depth_of_the_network_in_blocks": place}
                run = replace(run, config=run.config | depth, metrics=run.metrics | gaps)
                write_record(folder / str(number), run)
                write_diagnosis(folder / str(number), *SICK[: number % 3])
                number += 1
    assert number == 200
    paths = [path for path in report.figures if path.suffix == ".png"]
    drawn = [
        Picture(path.stem, "", f"{path.stem} {i}", path.read_bytes(), b"", "Batch") for i in range(3) for path in paths
    ]
    (folder / "report.html").write_text(html(page(load_sweep(folder), "Comparison of 200 runs"), drawn))
    return folder / "report.html"


def pixels(png: bytes) -> np.ndarray:
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, PHONE, DESK])
def test_nothing_is_wider_than_the_screen_and_both_schemes_are_legible(
    browser: Browser, large: Path, width: int, dark: bool
) -> None:
    browser.open(large, width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width == browser.run("innerWidth")
    assert browser.run("[...document.images].every((image) => image.naturalWidth > 0 && image.alt)")
    # A finger hits what is as high as a line; letters on a phone are not below 12 px.
    sizes = (
        "[...document.querySelectorAll('p, li, td, th, small')].map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(browser.run(sizes)) >= 12
    seen = pixels(browser.screenshot())
    assert seen.shape == (900, width, 3)
    ground = seen[5, 2]  # the margin
    assert (ground.max() < 60) if dark else (ground.min() > 240)
    inked = (abs(seen - ground).max(axis=2) > 60).mean()
    assert 0.02 < inked < 0.6  # letters, and neither a blank page nor a black one


# As words with numbers in them, 0.00170 would stand after 0.0110.
@pytest.mark.parametrize("name", ["lambda_max", "train loss"])
def test_a_click_sorts_by_value_and_a_second_one_turns_the_order(browser: Browser, report: Report, name: str) -> None:
    browser.open(report.html, DESK)
    for order in ("ascending", "descending"):
        said, texts = browser.run(
            f"(() => {{ const {{head}} = ({COLUMN})('{name}'); head.querySelector('button').click();"
            f"return [head.getAttribute('aria-sort'), ({COLUMN})('{name}').texts]; }})()"
        )
        assert said == order
        measured = [text for text in texts if text != "-"]
        assert texts == measured + ["-"] * (len(texts) - len(measured))  # blanks last, whichever the order
        values = [float(text) for text in measured]
        assert len(values) > 20
        assert values == sorted(values, reverse=order == "descending")
    assert browser.run("document.querySelectorAll('th[aria-sort]').length") == 1


def test_the_heads_are_reached_and_pressed_by_the_keyboard(browser: Browser, report: Report) -> None:
    browser.open(report.html, DESK)
    browser.run("document.querySelector('#all-settings thead button').focus()")
    for _ in range(3):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert browser.run("document.activeElement.textContent") == "learning rate"
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
    assert browser.run("document.activeElement.parentElement.getAttribute('aria-sort')") == "ascending"


def test_without_scripts_the_tables_are_plain_and_whole(browser: Browser, report: Report) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.call("Page.navigate", url=report.html.as_uri())
        browser.open(report.html, PHONE)
        assert browser.run("document.querySelectorAll('button').length") == 0
        assert browser.run("document.querySelectorAll('#all-settings tbody tr').length") == len(
            report.page.settings.body
        )
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_the_folded_runs_with_a_problem_open_by_a_click_and_fit_the_screen(browser: Browser, large: Path) -> None:
    browser.open(large, PHONE)
    table = "document.querySelector('#first-problem-of-each-run table')"
    assert browser.run(f"{table}.checkVisibility()") is False
    browser.run("document.querySelector('#first-problem-of-each-run summary').click()")
    assert browser.run(f"{table}.checkVisibility()") is True
    assert browser.run(f"{table}.tBodies[0].rows.length") == 133
    assert browser.run("document.documentElement.scrollWidth") <= PHONE
    # Sentences in a table are read in lines of a width that a person reads, not in a column of single words.
    assert browser.run(f"Math.min(...[...{table}.tBodies[0].rows].map((row) => row.cells[4].offsetWidth))") > 150


def test_200_runs_load_in_2_seconds_and_ask_the_network_for_nothing(browser: Browser, large: Path) -> None:
    assert large.stat().st_size < 4_000_000
    times = []
    for _ in range(3):  # the best of them: other programs may be at work
        browser.open(large, PHONE)
        times.append(browser.run("performance.timing.loadEventEnd - performance.timing.navigationStart"))
    assert 0 < min(times) < 2000
    loaded = browser.run("performance.getEntriesByType('resource').map((entry) => entry.name.slice(0, 5))")
    assert set(loaded) <= {"data:"}
    refused = "fetch('https://example.org').then(() => 'reached', () => 'refused')"
    assert browser.run(refused) == "refused"
