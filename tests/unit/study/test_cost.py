from dataclasses import replace

import pytest

from lbtrain.study.cost import cost_plots
from lbtrain.study.load import load_sweep
from tests.unit.study.known_sweep import BATCHES, grid_records, known_records, make_record


def test_the_rates_are_put_together_and_the_seeds_give_the_error_bar(write_sweep) -> None:
    runs = [
        replace(run, metrics=run.metrics | {"time/epoch_s": 0.1 * (1 + run.config["seed"]) * (2 if rate else 1)})
        for seed in (0, 1)
        for rate, rule in enumerate(("none", "sqrt"))
        for batch in BATCHES
        for run in [make_record("Adam", rule, batch, sam=False, seed=seed)]
    ]
    found = {plot.name: plot for plot in cost_plots(load_sweep(write_sweep(runs)))}
    (panel,) = found["time_epoch"].panels
    (line,) = panel.lines
    assert [point.batch for point in line.points] == list(BATCHES)
    assert line.points[0].value.mean == pytest.approx(0.225)  # of 0.15 and 0.30
    assert (line.points[0].value.n, line.label) == (2, "")  # no run has a method: nothing to tell apart
    assert "Adam: 0.225 at 16" in found["time_epoch"].alt
    assert {plot.section for plot in found.values()} == {"Cost"}


def test_a_sweep_over_rates_has_one_panel_for_each_optimizer(write_sweep) -> None:
    runs = grid_records({"SGD": 1.0, "Adam": 0.5}, seeds=(0,), batches=(16, 64))
    step = next(plot for plot in cost_plots(load_sweep(write_sweep(runs))) if plot.name == "time_step")
    assert [panel.title for panel in step.panels] == ["Adam", "SGD momentum 0.9"]


@pytest.mark.parametrize(("epochs", "names"), [((30, 30), ["time_epoch", "time_step"]), ((30, 90), None)])
def test_the_whole_fit_is_left_out_where_all_runs_are_equally_long(write_sweep, epochs, names) -> None:
    runs = [
        replace(run, metrics=run.metrics | {"time/epoch_s": run.metrics["time/fit_s"] / epochs[i % 2]})
        for i, batch in enumerate(BATCHES)
        for run in [make_record("Adam", "none", batch, sam=False)]
    ]
    found = [plot.name for plot in cost_plots(load_sweep(write_sweep(runs)))]
    assert found == (names or ["time_epoch", "time_step", "time_fit"])


def test_each_method_has_its_line(write_sweep) -> None:
    step = next(plot for plot in cost_plots(load_sweep(write_sweep(known_records()))) if plot.name == "time_step")
    assert [line.label for line in step.panels[0].lines] == ["no SAM", "SAM 0.05"]
    assert [[point.value.mean for point in line.points] for line in step.panels[0].lines] == [[10.0] * 4, [20.0] * 4]
