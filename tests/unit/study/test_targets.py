import math
from dataclasses import replace

import numpy as np
import pytest

from lbtrain.study.critical import fit_critical
from lbtrain.study.draw_targets import draw_targets
from lbtrain.study.load import load_sweep
from lbtrain.study.targets import target_alt, target_words, to_target
from tests.unit.study.known_sweep import known_records, target_records

BATCHES = (8, 32, 128, 512, 2048)


@pytest.fixture
def table(write_sweep):
    return load_sweep(write_sweep(target_records()))


def test_the_best_rate_of_each_batch_size_counts(table) -> None:
    (line,) = to_target(table, "target/steps")
    assert [point.batch for point in line.points] == list(BATCHES)
    assert [point.rate for point in line.points] == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16])
    steps = [50 * (1 + 100 / batch) * 1.01 for batch in BATCHES]
    assert [point.value.mean for point in line.points] == pytest.approx(steps)
    assert {point.at_edge for point in line.points} == {False}
    assert (line.missed, line.noise) == ((), (90.0, 90.0))
    (seconds,) = to_target(table, "target/s")
    assert seconds.points[0].value.mean == pytest.approx(steps[0] / 100)
    assert seconds.fit is None
    assert target_words(table) == "0.97"


def test_the_critical_batch_size_of_the_runs_is_found(table) -> None:
    (line,) = to_target(table, "target/steps")
    assert line.fit.batch.mean == pytest.approx(100)
    assert line.fit.least == pytest.approx(50.5)
    assert line.fit.borders == pytest.approx((100 / 9, 900))
    assert "critical batch size 100 (95 % interval 100 to 100); gradient noise scale 90.0" in target_alt("T", [line])


def test_the_interval_holds_the_critical_batch_size_in_95_of_100_sweeps() -> None:
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        needs = {b: 50 * (1 + 100 / b) * math.exp(0.1 * rng.normal()) for b in (8, 16, 32, 64, 128, 256, 512, 1024)}
        found = fit_critical(needs).batch
        held += found.low <= 100 <= found.high
    assert 90 <= held <= 99


def test_the_slope_of_the_curve_is_nine_tenths_and_one_tenth_at_the_borders() -> None:
    fit = fit_critical({b: 50 * (1 + 100 / b) for b in BATCHES})
    for border, slope in zip(fit.borders, (-0.9, -0.1), strict=True):
        near = [math.log(fit.least * (1 + fit.batch.mean / b)) for b in (border * 0.999, border * 1.001)]
        assert (near[1] - near[0]) / math.log(1.001 / 0.999) == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize(
    "needs",
    [
        {8: 100.0, 16: 50.0},
        {8: 800.0, 16: 400.0, 32: 200.0, 64: 100.0},  # perfect scaling throughout
        {8: 100.0, 16: 100.0, 32: 100.0, 64: 100.0},  # no gain anywhere
    ],
)
def test_what_does_not_determine_the_critical_batch_size_gives_none(needs) -> None:
    assert fit_critical(needs) is None


def test_three_batch_sizes_give_no_interval() -> None:
    fit = fit_critical({8: 675.0, 128: 89.0, 2048: 52.5})
    assert fit.batch.mean == pytest.approx(100, rel=0.1)
    assert (fit.batch.low, fit.batch.high) == (None, None)


def test_a_rate_with_which_a_seed_never_arrives_does_not_count(write_sweep) -> None:
    runs = []
    for run in target_records():
        best = run.config["optimizer.lr"] == 0.01 * (run.config["data.batch_size"] / 8) ** 0.5
        late = (
            run.config["data.batch_size"] == 32 and (best or run.metrics["target/reached"] == 0) and run.config["seed"]
        )
        gone = run.config["data.batch_size"] == 2048
        if late or gone:
            kept = {key: value for key, value in run.metrics.items() if key not in ("target/steps", "target/s")}
            run = replace(run, metrics=kept | {"target/reached": 0.0})
        runs.append(run)
    (line,) = to_target(load_sweep(write_sweep(runs)), "target/steps")
    assert [point.rate for point in line.points] == pytest.approx([0.01, 0.04, 0.04, 0.08])
    assert line.missed == (2048,)
    assert "not reached at 2048" in target_alt("T", [line])


def test_the_figure_shows_perfect_scaling_from_the_smallest_batch(table) -> None:
    lines = to_target(table, "target/steps")
    figure = draw_targets("Title", lines)
    dotted = next(line for line in figure.axes[0].get_lines() if line.get_linestyle() == ":")
    x, y = dotted.get_data()
    assert np.diff(np.log(y)) / np.diff(np.log(x)) == pytest.approx(-1)
    assert np.interp(8, x, y) == pytest.approx(lines[0].points[0].value.mean, rel=1e-2)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[3:] == ["perfect scaling", "diminishing returns", "no gain", "gradient noise scale"]


def test_without_a_target_there_is_no_figure(write_sweep) -> None:
    assert to_target(load_sweep(write_sweep(known_records())), "target/steps") == []
