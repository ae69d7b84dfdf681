import math
from dataclasses import replace
from pathlib import Path

import pytest

from lbtrain.study.curves import alike, curve_panels, curves_alt, likenesses
from lbtrain.study.draw_curves import draw_curves
from lbtrain.study.load import load_sweep
from tests.unit.study.known_sweep import known_records, make_record, write_history

RATES = {"mean": 0.04, "sum": 0.0025}


def write(write_sweep, values, seeds=(0, 1), metric="val/loss", name="sweep") -> Path:
    """A sweep over reduction, rule and batch size, with the history that `values` gives to each run."""
    runs = []
    for batch in (16, 64):
        for reduction, rate in RATES.items():
            for rule in ("none", "linear"):
                for seed in seeds:
                    run = make_record("SGD", rule, batch, sam=False, seed=seed)
                    config = run.config | {
                        "model.reduction": reduction,
                        "optimizer.lr": rate,
                        "model.optimizer.lr": rate,
                    }
                    scaled = rate * (batch / 16 if (reduction, rule) == ("mean", "linear") else 1)
                    metrics = run.metrics | {"lr/base": rate, "lr/scaled": scaled}
                    runs.append(((reduction, rule, batch, seed), replace(run, config=config, metrics=metrics)))
    folder = write_sweep([run for _, run in runs], name)
    for i, (key, _) in enumerate(runs):
        write_history(folder / str(i), values(*key), metric)
    return folder


def law(reduction: str, rule: str, batch: int, seed: int) -> list[float]:
    slow = batch / 16 if (reduction, rule) == ("mean", "none") else 1.0
    rounding = 1e-7 if reduction == "sum" else 0.0
    return [(2 + 0.1 * seed) * math.exp(-epoch / slow) + 0.1 + rounding for epoch in range(5)]


def test_curves_are_split_by_batch_and_named_without_the_rate_that_follows(write_sweep) -> None:
    panels = curve_panels(load_sweep(write(write_sweep, law)))
    assert [panel.batch for panel in panels] == [16, 64]
    assert [curve.label for curve in panels[0].curves] == [
        "reduction mean, fixed rate",
        "reduction mean, linear rate",
        "reduction sum, fixed rate",
        "reduction sum, linear rate",
    ]
    points = panels[0].curves[0].points
    assert list(points) == [1, 2, 3, 4, 5]
    assert points[1].mean == pytest.approx(2.15)
    assert "Batch 64, reduction mean, fixed rate: 2.15 after epoch 1, 0.854 after 5" in curves_alt("T", panels)
    drawn = [axes.get_title() for axes in draw_curves("Title", panels).axes]
    assert drawn == ["batch 16", "batch 64"]


def test_a_band_of_two_seeds_leaves_the_curves_legible_and_is_said_to_be_cut(write_sweep) -> None:
    panels = curve_panels(load_sweep(write(write_sweep, lambda *key: [2.0 - 0.1 * i + key[3] for i in range(5)])))
    low, high = draw_curves("Title", panels).axes[0].get_ylim()
    assert high - low < 4  # and not the 12.7 of the band
    assert curves_alt("T", panels).endswith(" Bands that end outside of the figure are cut off at its edge.")


def test_curves_that_coincide_are_found_and_the_same_numbers_are_exactly_0_apart(write_sweep) -> None:
    pairs = likenesses(curve_panels(load_sweep(write(write_sweep, law))))
    small, large = ([pair for pair in pairs if pair.batch == batch] for batch in (16, 64))
    assert alike(small) == [
        [
            "reduction mean, fixed rate",
            "reduction mean, linear rate",
            "reduction sum, fixed rate",
            "reduction sum, linear rate",
        ]
    ]
    assert [len(group) for group in alike(large)] == [1, 3]
    exact = next(pair for pair in small if pair.labels == ("reduction mean, fixed rate", "reduction mean, linear rate"))
    assert exact.difference == 0.0
    near = next(pair for pair in small if pair.labels == ("reduction mean, fixed rate", "reduction sum, fixed rate"))
    assert 0 < near.difference < 1e-6
    far = next(pair for pair in large if pair.labels == ("reduction mean, fixed rate", "reduction mean, linear rate"))
    slow, fast = law("mean", "none", 64, 1), law("mean", "linear", 64, 1)
    assert far.difference == pytest.approx(max(1 - b / a for a, b in zip(slow, fast, strict=True)))
    assert far.spreads > 10


def test_a_loss_that_becomes_infinite_is_infinitely_far(write_sweep) -> None:
    def values(reduction, rule, batch, seed):
        found = law(reduction, rule, batch, seed)
        return [*found[:3], math.inf, math.inf] if (reduction, rule) == ("sum", "linear") else found

    panels = curve_panels(load_sweep(write(write_sweep, values)))
    assert list(panels[0].curves[3].points) == [1, 2, 3]
    assert math.isinf(likenesses(panels)[-1].difference)


def test_one_seed_has_no_spread(write_sweep) -> None:
    pairs = likenesses(curve_panels(load_sweep(write(write_sweep, law, seeds=(0,)))))
    assert {pair.spreads for pair in pairs} == {None}


def test_accuracy_stands_in_for_a_loss_that_was_not_logged(write_sweep) -> None:
    folder = write(write_sweep, lambda *key: [0.5, 0.9], metric="val/acc")
    assert curve_panels(load_sweep(folder))[0].metric == "val/acc"


def test_many_settings_single_epochs_and_runs_without_history_have_no_curves(write_sweep) -> None:
    assert curve_panels(load_sweep(write(write_sweep, lambda *key: [1.0], name="single"))) == []
    folder = write_sweep(known_records(), "many")
    for run in folder.iterdir():
        write_history(run, [2.0, 1.0])
    assert curve_panels(load_sweep(folder)) == []
    assert curve_panels(load_sweep(write_sweep(known_records()[:4], "bare"))) == []
