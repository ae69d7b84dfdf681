"""How far the axes of figures reach."""

from dataclasses import replace

import pytest

from lbtrain.records import RunRecord
from lbtrain.study.axes import bounds
from lbtrain.study.batch_plots import plots
from lbtrain.study.draw_lines import draw_plot
from lbtrain.study.estimates import Estimate, mean_over_seeds
from lbtrain.study.figures import sketches
from lbtrain.study.load import load_sweep
from lbtrain.study.ranges import CUT, value_range
from tests.unit.study.known_sweep import BATCHES, make_record


def changed(record: RunRecord, accuracy: float, **config: int) -> RunRecord:
    settings = {f"model.{key}": value for key, value in config.items()}
    return replace(record, config=record.config | settings, metrics=record.metrics | {"test/acc": accuracy})


ACCURACY = bounds("test/acc")


def bar(mean: float, half: float) -> Estimate:
    return Estimate(mean, 2, half, mean - half, mean + half)


def test_bars_that_fit_are_seen_whole() -> None:
    values = [bar(0.90, 0.02), bar(0.95, 0.01), Estimate(0.93, 1)]
    ends = value_range(values, bounds=ACCURACY)
    assert not ends.cuts(values)
    assert 0.84 < ends.low < 0.88
    assert 0.96 < ends.high <= 1.0


def test_bars_of_two_seeds_leave_the_means_a_third_of_the_axis() -> None:
    values = [bar(0.90, 0.5), bar(0.95, 0.6)]
    ends = value_range(values)
    assert ends.cuts(values)
    assert 0.05 / (ends.high - ends.low) > 0.25
    inside = value_range(values, bounds=ACCURACY)
    assert inside.low >= 0
    assert inside.high <= 1.01  # a marker at 1 is seen whole


@pytest.mark.parametrize("mean", [0.95, 0.0, -0.02, 3.0])
def test_equal_means_keep_their_shortest_bar(mean: float) -> None:
    values = [bar(mean, 0.004), bar(mean, 5.0)]
    ends = value_range(values)
    assert ends.low <= mean <= ends.high
    assert ends.high >= mean + 0.004
    assert ends.high - ends.low < 5.0
    assert ends.cuts(values)


def test_a_gap_below_zero_and_a_reference_are_in_view() -> None:
    assert value_range([bar(-0.02, 0.3), bar(-0.01, 0.3)], bounds=bounds("gap/acc")).low < -0.02
    assert value_range([bar(1.5, 0.1)], reference=2.0).high > 2.0
    assert value_range([bar(0.1, 2.0), bar(9.0, 2.0)]).log


def test_only_accuracies_and_their_gap_have_bounds() -> None:
    assert [bounds(key) for key in ("val/acc", "gap/acc", "test/loss", "mine/acc")] == [(0, 1), (-1, 1), None, None]


@pytest.mark.parametrize(("spread", "cut"), [(0.0005, False), (0.04, True)])
def test_a_figure_says_when_it_cuts_bars_off(write_sweep, spread: float, cut: bool) -> None:
    runs = [
        changed(make_record("Adam", "none", batch, sam=False, seed=seed), 0.97 - i / 50 - seed * spread)
        for i, batch in enumerate(BATCHES)
        for seed in (0, 1)
    ]
    (plot,) = [plot for plot in plots(load_sweep(write_sweep(runs))) if plot.name == "accuracy"]
    assert plot.alt.endswith(f"{CUT}.") is cut
    low, high = draw_plot(plot).axes[0].get_ylim()
    assert 0 <= low < 0.91
    assert 0.97 < high <= 1.01
    assert mean_over_seeds([0.97, 0.97 - spread]).high > high or not cut


def test_the_ranking_keeps_its_means_apart(write_sweep) -> None:
    runs = [
        changed(make_record("Adam", "none", 64, sam=False, seed=seed), 0.96 + depth / 100 - seed * 0.01, depth=depth)
        for depth in (1, 2, 3)
        for seed in (0, 1)
    ]
    (sketch,) = sketches(load_sweep(write_sweep(runs)))
    assert sketch.alt.endswith(f"{CUT}.")
    low, high = sketch.draw().axes[0].get_xlim()
    assert 0.02 / (high - low) > 0.25
    assert high <= 1.005


@pytest.mark.parametrize(("worst", "scale"), [(4e18, "log"), (3.0, "linear")])
def test_one_setting_far_off_does_not_push_all_others_together(worst, scale, write_sweep) -> None:
    run = make_record("Adam", "none", 64, sam=False)
    runs = [
        replace(run, config=run.config | {"model.depth": depth}, metrics={"test/loss": loss})
        for depth, loss in enumerate((0.1, 0.2, worst))
    ]
    (sketch,) = sketches(load_sweep(write_sweep(runs)))
    axes = sketch.draw().axes[0]
    assert axes.get_xscale() == scale
    low, high = axes.get_xlim()
    assert low < 0.1 < worst < high
