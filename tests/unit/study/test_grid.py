from dataclasses import replace

import pytest

from lbtrain.study.draw_grid import draw_grids
from lbtrain.study.grid import grid_alt, grids
from lbtrain.study.load import load_sweep
from lbtrain.study.rates import rate_groups
from tests.unit.study.known_sweep import BATCHES, grid_records, known_records, make_record, target_records, with_method


@pytest.fixture
def table(write_sweep):
    return load_sweep(write_sweep(grid_records({"SGD": 1.0, "Adam": 0.5})))


def test_the_exponents_that_the_runs_were_made_with_are_found(table) -> None:
    adam, sgd = grids(table)
    assert (adam.name, sgd.name) == ("Adam", "SGD momentum 0.9")
    for grid, power in ((adam, 0.5), (sgd, 1.0)):
        assert grid.exponent.p.low < power < grid.exponent.p.high
        assert grid.exponent.p.n == 3
    assert adam.best == {16: 0.004, 64: 0.008, 256: 0.016, 1024: 0.032}
    assert sgd.best == {16: 0.1, 64: 0.4, 256: 1.6, 1024: 6.4}
    assert sgd.exponent.laws == {"linear": True, "square root": False, "no growth": False}


def test_an_accuracy_that_saturates_gives_way_to_the_training_loss(table, write_sweep) -> None:
    assert {grid.metric for grid in grids(table)} == {"train/loss"}
    runs = [
        replace(run, metrics=run.metrics | {"test/acc": 1 - run.metrics["train/loss"] / 3})
        for run in grid_records({"SGD": 1.0})
    ]
    runs = [replace(run, metrics=run.metrics | {"test/acc": run.metrics["test/acc"] ** 40}) for run in runs]
    assert grids(load_sweep(write_sweep(runs, "clear")))[0].metric == "test/acc"


def test_diverged_pairs_are_marked_and_never_best(table) -> None:
    (_, sgd) = grids(table)
    lost = [square for square in sgd.squares if square.num_diverged]
    assert {square.num_diverged for square in lost} == {3}
    assert not {(square.batch, square.rate) for square in lost} & set(sgd.best.items())
    text = grid_alt("Title", [sgd])
    assert "best swept rate 0.1 at batch 16 (0.0108)" in text
    assert f"{len(lost)} pairs of {len(sgd.squares)} with diverged runs" in text
    axes = draw_grids("Title", [sgd]).axes[0]
    crosses = next(line for line in axes.get_lines() if line.get_marker() == "x")
    assert sorted(zip(*crosses.get_data(), strict=True)) == sorted((s.batch, s.rate) for s in lost)
    stars = next(line for line in axes.get_lines() if line.get_marker() == "*")
    assert dict(zip(*stars.get_data(), strict=True)) == sgd.best


def test_a_rate_of_which_one_seed_diverged_is_not_best(write_sweep) -> None:
    runs = [
        replace(run, metrics=run.metrics | {"train/loss": 2.31})
        if (run.metrics["lr/base"], run.metrics["batch/global"], run.config["seed"]) == (0.1, 16, 1)
        else run
        for run in grid_records({"SGD": 1.0})
    ]
    (grid,) = grids(load_sweep(write_sweep(runs)))
    square = next(square for square in grid.squares if (square.batch, square.rate) == (16, 0.1))
    assert (square.num_diverged, square.value.n) == (1, 2)
    assert grid.best[16] in {0.05, 0.2}


def test_the_square_with_the_best_value_is_the_brightest(table) -> None:
    (_, sgd) = grids(table)
    patches = draw_grids("Title", [sgd]).axes[0].collections[0]
    values = [square.value.mean if not square.num_diverged else None for square in sgd.squares]
    shades = patches.to_rgba(patches.get_array())[:, :3].sum(axis=1)
    known = [(value, shade) for value, shade in zip(values, shades, strict=True) if value is not None]
    assert min(known)[1] == max(shade for _, shade in known)
    assert max(known)[1] == min(shade for _, shade in known)


def test_each_method_has_its_grid(write_sweep) -> None:
    plain = grid_records({"SGD": 1.0}, seeds=(0,))
    runs = [*plain, *(with_method(run, "GSAM") for run in plain)]
    names = [group.name for group in rate_groups(load_sweep(write_sweep(runs)))]
    assert names == ["SGD momentum 0.9, no SAM", "SGD momentum 0.9, GSAM 0.05"]


def test_a_sweep_over_batch_sizes_alone_is_no_grid(write_sweep) -> None:
    table = load_sweep(write_sweep(known_records()))
    assert grids(table) == []
    assert len(rate_groups(table)) == 6  # of the 8 combinations, those of the best


def test_a_word_that_goes_with_the_rate_is_a_setting_of_its_own(write_sweep) -> None:
    runs = []
    for batch in BATCHES:
        for reduction, rate in (("mean", 0.04), ("sum", 0.0025)):
            run = make_record("SGD", "none", batch, sam=False)
            config = run.config | {"optimizer.lr": rate, "model.optimizer.lr": rate, "model.reduction": reduction}
            metrics = run.metrics | {"lr/base": rate, "lr/scaled": rate}
            runs.append(replace(run, name=f"{reduction} {batch}", config=config, metrics=metrics))
    groups = rate_groups(load_sweep(write_sweep(runs)))
    assert [group.name for group in groups] == [
        "SGD momentum 0.9, reduction mean",
        "SGD momentum 0.9, reduction sum",
    ]


def test_a_number_that_stands_for_the_rate_splits_nothing(write_sweep) -> None:
    runs = grid_records({"SGD": 1.0}, seeds=(0,))
    rates = sorted({run.config["optimizer.lr"] for run in runs})
    runs = [replace(run, config=run.config | {"step": rates.index(run.config["optimizer.lr"])}) for run in runs]
    (group,) = rate_groups(load_sweep(write_sweep(runs)))
    assert len(group.cells) == len(runs)


def test_a_sweep_to_a_target_shows_its_steps(write_sweep) -> None:
    (grid,) = grids(load_sweep(write_sweep(target_records(seeds=(0,)))))
    assert grid.metric == "target/steps"
    assert grid.exponent.p.mean == pytest.approx(0.5)
