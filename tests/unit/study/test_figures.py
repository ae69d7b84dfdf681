import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import image

from lbtrain.study.families import MAX_VARIANTS
from lbtrain.study.figures import COLOURS, MARKERS, apart, pictures
from lbtrain.study.findings import findings
from lbtrain.study.load import load_sweep
from lbtrain.study.series import plots
from tests.unit.study.known_sweep import (
    BATCHES,
    KNOWN,
    METHODS,
    family_records,
    known_records,
    make_record,
    with_method,
)

NAMES = ["lambda_max", "loss_fixed", "loss_scaled", "sharpness_keskar", "sharpness_sam", "time_ratio"]


@pytest.fixture
def study(write_sweep) -> dict:
    return {plot.name: plot for plot in plots(load_sweep(write_sweep(known_records())))}


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
    keys = ("hessian/lambda_max", "sharpness/keskar", "sharpness/sam")
    runs = [replace(run, metrics={k: v for k, v in run.metrics.items() if k not in keys}) for run in runs]
    assert [plot.name for plot in plots(load_sweep(write_sweep(runs)))] == ["loss_fixed"]


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
    assert [picture.name for picture in pictures(table)] in (["ranking"], ["lambda_max"], [])
    assert "more settings" in "\n".join([*findings(table), *(picture.alt for picture in pictures(table))])


@pytest.fixture
def relatives(write_sweep) -> dict:
    runs = family_records(settings=tuple(KNOWN))
    return {plot.name: plot for plot in plots(load_sweep(write_sweep(runs)))}


def test_each_method_has_its_line_and_its_colour_in_every_panel(relatives: dict) -> None:
    assert list(relatives) == NAMES
    names = ["no SAM", *(f"{method} {values[2]['rho']:g}" for method, values in METHODS.items())]
    for plot in relatives.values():
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
    (plot,) = (plot for plot in plots(load_sweep(write_sweep(runs))) if plot.name == "time_ratio")
    assert (plot.title, plot.unit) == (title, "step time, GSAM / plain")
    assert [line.label for line in plot.panels[0].lines] == lines


def test_a_run_with_radius_0_takes_longer_and_is_no_measure_of_time(write_sweep) -> None:
    plain = [make_record("Adam", "none", batch, sam=False) for batch in BATCHES]
    runs = [with_method(run, "GSAM", rho=rho) for run in plain for rho in (0.0, 0.05)]
    assert "time_ratio" not in [plot.name for plot in plots(load_sweep(write_sweep(runs)))]


def test_lines_are_apart_and_points_nearest_to_their_batch() -> None:
    for number in (1, 2, 4, 18, 100):
        places = [apart(place, number) for place in range(number)]
        assert places == sorted(set(places))
        assert places[0] * places[-1] == pytest.approx(1.0)
        assert places[-1] < 2**0.5


def test_many_lines_leave_room_for_the_panels(write_sweep) -> None:
    for picture in pictures(load_sweep(write_sweep(family_records(settings=tuple(KNOWN))))):
        pixels = image.imread(io.BytesIO(picture.png))[..., :3]
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        assert all(np.all(edge == 1.0) for edge in edges), picture.name
        # The height of a panel is that of its left axis, the longest black upright in the left half.
        black = np.all(pixels[:, :400] < 0.05, axis=2)
        panel = max(len(run) for column in black.T for run in "".join("x" if b else " " for b in column).split())
        assert panel >= 250, (picture.name, panel)


def test_the_same_bytes_from_the_same_numbers(write_sweep) -> None:
    records = known_records()
    first, second = (pictures(load_sweep(write_sweep(runs, str(i)))) for i, runs in enumerate((records, records[::-1])))
    assert first == second
    assert [picture.name for picture in first] == NAMES
    for picture in first:
        assert not {b"tEXt", b"tIME"} & {picture.png[i : i + 4] for i in range(200)}
        pixels = image.imread(io.BytesIO(picture.png))
        assert pixels.shape[1] == 800
        # Nothing is cut off: the outermost pixels are background.
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        assert all(np.all(edge[..., :3] == 1.0) for edge in edges), picture.name
