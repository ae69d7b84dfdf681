import io
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import image

from lbtrain.study.batch_plots import plots
from lbtrain.study.cost import cost_plots
from lbtrain.study.draw_lines import draw_plot
from lbtrain.study.drawing import COLOURS, MARKERS, apart, images
from lbtrain.study.families import MAX_VARIANTS
from lbtrain.study.figures import Picture, pictures, sketches
from lbtrain.study.findings import findings
from lbtrain.study.load import load_sweep
from tests.unit.study.known_sweep import (
    BATCHES,
    KNOWN,
    METHODS,
    family_records,
    known_records,
    make_record,
    target_records,
    with_method,
    write_between,
    write_history,
    write_spectrum,
)

NAMES = [
    "lambda_max",
    "loss_fixed",
    "loss_scaled",
    "accuracy",
    "sharpness_keskar",
    "sharpness_sam",
    "time_step",
    "time_fit",
    "time_ratio",
]
TIMES = ("time_step", "time_fit")


def all_plots(table) -> dict:
    return {plot.name: plot for plot in [*plots(table), *cost_plots(table)]}


@pytest.fixture
def study(write_sweep) -> dict:
    return all_plots(load_sweep(write_sweep(known_records())))


def test_the_numbers_that_are_drawn(study: dict) -> None:
    assert list(study) == NAMES
    adam, sgd = study["lambda_max"].panels
    assert adam.title == "Adam\nfixed 0.78\N{RIGHTWARDS ARROW}14, scaled 0.78\N{RIGHTWARDS ARROW}1.3"
    lines = {line.label: line for line in adam.lines}
    assert list(lines) == ["fixed rate, no SAM", "fixed rate, SAM 0.05", "scaled rate, no SAM", "scaled rate, SAM 0.05"]
    assert [(p.batch, p.value.mean) for p in lines["fixed rate, no SAM"].points] == [
        (16, 0.78),
        (64, 2.0),
        (256, 6.3),
        (1024, 14.3),
    ]
    assert len(sgd.lines) == 4
    assert [panel.title.splitlines()[0] for panel in study["loss_scaled"].panels] == [
        "Adam, sqrt rate",
        "SGD momentum 0.9, linear rate",
    ]
    assert [p.value.mean for p in study["time_ratio"].panels[0].lines[0].points] == pytest.approx([2.0] * 4)


def test_a_diverged_run_is_a_point_without_a_value(study: dict) -> None:
    line = study["lambda_max"].panels[1].lines[2]
    assert (line.points[-1].batch, line.points[-1].value, line.points[-1].num_diverged) == (1024, None, 1)


def test_the_words_hold_the_numbers(study: dict) -> None:
    assert "Adam, fixed rate, no SAM: 0.780 at 16, 2.00 at 64, 6.30 at 256, 14.3 at 1024." in study["lambda_max"].alt
    assert (
        "scaled rate, no SAM: 0.690 at 16, 0.180 at 64, 0.110 at 256, at 1024 (1 diverged)." in study["lambda_max"].alt
    )


def test_lines_differ_in_more_than_colour(study: dict) -> None:
    for plot in study.values():
        for panel in plot.panels:
            looks = [(line.colour, line.dashed) for line in panel.lines]
            assert len(set(looks)) == len(looks)


def test_what_was_not_measured_is_not_drawn(write_sweep) -> None:
    runs = [make_record("Adam", "none", batch, sam=False) for batch in BATCHES]
    keys = ("hessian/lambda_max", "sharpness/keskar", "sharpness/sam", "test/acc", "time/step_ms", "time/fit_s")
    runs = [replace(run, metrics={k: v for k, v in run.metrics.items() if k not in keys}) for run in runs]
    assert list(all_plots(load_sweep(write_sweep(runs)))) == ["loss_fixed"]


def test_without_batch_sizes_there_is_a_ranking(write_sweep) -> None:
    run = make_record("Adam", "none", 64, sam=False)
    runs = [
        replace(run, config=run.config | {"model.depth": depth}, metrics=run.metrics | {"test/acc": 0.9 + depth / 100})
        for depth in (1, 2, 3)
    ]
    (picture,) = pictures(load_sweep(write_sweep(runs)))
    assert picture.name == "ranking"
    assert picture.alt == "The 3 best settings by test accuracy. depth 3: 0.930; depth 2: 0.920; depth 1: 0.910."
    assert pictures(load_sweep(write_sweep([run], "one"))) == []


@pytest.mark.parametrize("metric", ["test/acc", "hessian/lambda_max"])
def test_runs_that_share_little_are_drawn_all_the_same(write_sweep, metric: str) -> None:
    runs = []
    for i, batch in enumerate(BATCHES):
        run = make_record("Adam", "none", 64 if metric == "test/acc" else batch, sam=False)
        odd = {f"model.a_rather_long_setting_{k}": (i + k) % 3 for k in range(12)}
        runs.append(replace(run, config=run.config | odd, metrics={metric: run.metrics[metric] + i, "test/acc": 0.5}))
    table = load_sweep(write_sweep(runs))
    assert [picture.name for picture in pictures(table)] in (["ranking"], ["lambda_max", "accuracy"])
    assert "more settings" in "\n".join([*findings(table), *(picture.alt for picture in pictures(table))])


@pytest.fixture
def relatives(write_sweep) -> dict:
    runs = family_records(settings=tuple(KNOWN))
    return all_plots(load_sweep(write_sweep(runs)))


def test_each_method_has_its_line_and_its_colour_in_every_panel(relatives: dict) -> None:
    assert list(relatives) == NAMES
    names = ["no SAM", *(f"{method} {values[2]['rho']:g}" for method, values in METHODS.items())]
    for name, plot in relatives.items():
        if name in TIMES:
            assert {line.label for panel in plot.panels for line in panel.lines} == set(names)
            continue
        colours = {(line.label.partition(", ")[2], line.colour) for panel in plot.panels for line in panel.lines}
        drawn = names[1:] if plot.name == "time_ratio" else names
        assert colours == {(name, names.index(name)) for name in drawn}
        for panel in plot.panels:
            looks = [(line.colour, line.dashed) for line in panel.lines]
            assert len(set(looks)) == len(looks)
    adam = relatives["lambda_max"].panels[0]
    assert adam.title == "Adam\nfixed 0.78\N{RIGHTWARDS ARROW}14, scaled 0.78\N{RIGHTWARDS ARROW}1.3"
    assert [point.value.mean for point in adam.lines[4].points] == [0.78 / 4, 2.0 / 4, 6.3 / 4, 14.3 / 4]  # GSAM


def test_there_is_a_colour_and_a_marker_for_each_line_of_a_family() -> None:
    assert len(set(COLOURS)) == len(COLOURS) >= MAX_VARIANTS
    assert len(set(MARKERS)) == len(MARKERS) == len(COLOURS)
    assert len(METHODS) + 1 <= MAX_VARIANTS


def test_the_time_of_a_step_with_each_method(relatives: dict) -> None:
    plot = relatives["time_ratio"]
    assert plot.title == "A step with SAM or a relative takes 1.00 to 2.30 times as long"
    assert [panel.title for panel in plot.panels] == ["Adam", "SGD momentum 0.9"]
    ratios = {line.label: {round(point.value.mean, 6) for point in line.points} for line in plot.panels[0].lines}
    for method, (_, _, arguments, _, time) in METHODS.items():
        assert ratios[f"fixed rate, {method} {arguments['rho']:g}"] == {time}


@pytest.mark.parametrize(
    ("rhos", "title", "lines"),
    [
        ((0.05,), "A step with GSAM takes 2.20 times as long", ["Adam, fixed rate"]),
        ((0.05, 0.1), "A step with GSAM takes 2.20 times as long", ["fixed rate, GSAM 0.05", "fixed rate, GSAM 0.1"]),
    ],
)
def test_the_time_of_a_step_with_one_method(write_sweep, rhos, title, lines) -> None:
    plain = [make_record("Adam", "none", batch, sam=False) for batch in BATCHES]
    runs = [*plain, *(with_method(run, "GSAM", rho=rho) for run in plain for rho in rhos)]
    plot = all_plots(load_sweep(write_sweep(runs)))["time_ratio"]
    assert (plot.title, plot.unit) == (title, "step time, GSAM / plain")
    assert [line.label for line in plot.panels[0].lines] == lines


def test_a_run_with_radius_0_takes_longer_and_is_no_measure_of_time(write_sweep) -> None:
    plain = [make_record("Adam", "none", batch, sam=False) for batch in BATCHES]
    runs = [with_method(run, "GSAM", rho=rho) for run in plain for rho in (0.0, 0.05)]
    assert "time_ratio" not in all_plots(load_sweep(write_sweep(runs)))


def test_lines_are_apart_and_points_nearest_to_their_batch() -> None:
    for number in (1, 2, 4, 18, 100):
        places = [apart(place, number) for place in range(number)]
        assert places == sorted(set(places))
        assert places[0] * places[-1] == pytest.approx(1.0)
        assert places[-1] < 2**0.5


def test_many_lines_leave_room_for_the_panels(write_sweep) -> None:
    drawn = sketches(load_sweep(write_sweep(family_records(settings=tuple(KNOWN)))))
    for picture in (drawn[0], drawn[-1]):
        pixels = image.imread(io.BytesIO(images(picture)[0]))[..., :3]
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        assert all(np.all(edge == 1.0) for edge in edges), picture.name
        # The height of a panel is that of its left axis, the longest black upright in the left half.
        black = np.all(pixels[:, :400] < 0.05, axis=2)
        panel = max(len(run) for column in black.T for run in "".join("x" if b else " " for b in column).split())
        assert panel >= 250, (picture.name, panel)


def test_the_same_bytes_from_the_same_numbers(write_sweep) -> None:
    records = known_records()
    first, second = (sketches(load_sweep(write_sweep(runs, str(i)))) for i, runs in enumerate((records, records[::-1])))
    assert [(sketch.name, sketch.alt) for sketch in first] == [(sketch.name, sketch.alt) for sketch in second]
    assert [sketch.name for sketch in first] == NAMES
    assert [sketch.section for sketch in first] == ["Batch size"] * 6 + ["Cost"] * 3
    for name in ("lambda_max", "loss_scaled"):
        (one, other) = (sketch for sketch in [*first, *second] if sketch.name == name)
        picture = Picture(one.name, one.title, one.alt, *images(one), one.section)
        assert images(other) == (picture.png, picture.svg)
        assert not {b"tEXt", b"tIME"} & {picture.png[i : i + 4] for i in range(200)}
        assert len(picture.png) < 80_000, picture.name  # they stand inside the page
        pixels = image.imread(io.BytesIO(picture.png))
        assert pixels.shape[1] == 800
        # Nothing is cut off: the outermost pixels are background.
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        assert all(np.all(edge[..., :3] == 1.0) for edge in edges), picture.name
        assert b"<dc:date>" not in picture.svg
        assert b"Matplotlib v" not in picture.svg
        root = ElementTree.fromstring(picture.svg)
        assert root.get("width") == "288pt"  # 4 inches
        assert root.find(".//{http://www.w3.org/2000/svg}text") is None  # letters are outlines


def test_measures_of_sharpness_and_gaps_have_their_figures_and_error_bars_have_none(write_sweep) -> None:
    more = {
        "gap/loss": 0.01,
        "gap/acc": -0.02,
        "hessian/trace": 40.0,
        "hessian/trace_stderr": 1.0,
        "sharpness/keskar_5e-4": 1.0,
        "sharpness/m_sam": 0.5,
        "sharpness/m_sam_batch_stderr": 0.1,
        "sharpness/keskar_stderr": 0.1,
        "sharpness/interrupted": 1.0,
    }
    runs = [make_record("Adam", "none", batch, sam=False) for batch in BATCHES]
    found = all_plots(load_sweep(write_sweep([replace(run, metrics=run.metrics | more) for run in runs])))
    assert [name for name in found if name not in NAMES] == [
        "gap_loss",
        "gap_acc",
        "trace",
        "sharpness_keskar_5e-4",
        "sharpness_m_sam",
    ]
    assert found["sharpness_keskar_5e-4"].unit == "sharpness (%)"
    assert "Adam, fixed rate: -0.0200 at 16" in found["gap_acc"].alt
    losses = found["loss_fixed"]
    assert [line.label for line in losses.panels[0].lines] == ["train", "test"]
    assert "no SAM" not in losses.alt
    assert draw_plot(found["gap_acc"]).axes[0].get_ylim()[0] < -0.02  # a gap below zero is seen


def test_without_a_test_set_the_accuracy_is_that_of_the_validation(write_sweep) -> None:
    runs = [make_record("Adam", "none", batch, sam=False) for batch in BATCHES]
    runs = [replace(run, metrics={"val/acc": run.metrics["test/acc"], "train/loss": 0.1}) for run in runs]
    assert all_plots(load_sweep(write_sweep(runs)))["accuracy"].title == "Validation accuracy against batch size"


def test_every_kind_of_figure_is_drawn_in_the_order_of_the_page(write_sweep) -> None:
    sweep = write_sweep(target_records(seeds=(0,), batches=(8, 64, 512)))
    for run in sweep.iterdir():
        write_spectrum(run, 2.0)
        write_history(run, [2.0, 1.0, 0.5])
    write_between(sweep)
    found = {sketch.name: sketch for sketch in sketches(load_sweep(sweep), [sweep])}
    names = ["lr_batch", "steps_to_target", "seconds_to_target", "curves", "spectra_hessian", "between"]
    assert [name for name in found if name in names] == names
    sections = [
        "Learning rate and batch size",
        *["Steps to a target"] * 2,
        "Curves",
        "Spectra",
        "Between two solutions",
    ]
    assert [found[name].section for name in names] == sections
    for name in names:
        png, svg = images(found[name])
        pixels = image.imread(io.BytesIO(png))[..., :3]
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        assert all(np.all(edge == 1.0) for edge in edges), name
        assert len(found[name].alt) > len(found[name].title) + 20
        if name == "lr_batch":
            assert images(found[name]) == (png, svg)
