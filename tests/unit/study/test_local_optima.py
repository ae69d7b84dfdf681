import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lbtrain.study import endings, local_optima
from lbtrain.study.endings import Ending, ending_of, logged
from lbtrain.study.load import load_sweep
from lbtrain.study.local_optima import LEVEL, behind, optima_sentences
from lbtrain.study.more_findings import more_findings
from lbtrain.study.spread import CERTAIN, holm, pooled_noise, restarts, spread_chance
from tests.unit.study.diagnosed import finding, write_diagnosis, write_losses
from tests.unit.study.known_sweep import make_record

STEPS = 40  # logged losses of a run


def curve(level: float, noise: float = 0.0, seed: int = 0, first: float = 2.3, pace: float = 3.0) -> list[float]:
    """An exponential fall from `first` to `level`, to 1/e of the way with each 1 / `pace` values, with noise."""
    rng = np.random.default_rng(seed)
    return [float(level + (first - level) * math.exp(-pace * t) + noise * rng.normal()) for t in range(STEPS)]


def ends(*curves: list[float]) -> list[Ending]:
    return [found for values in curves if (found := ending_of(range(len(values)), values)) is not None]


@pytest.fixture
def sweep(write_sweep) -> Callable[..., Path]:
    """Runs of one setting, a seed for each curve: the last value is the loss of the summary."""

    def write(*curves: list[float], batch: int = 16, metric: str = "subset/loss") -> Path:
        runs = [make_record("Adam", "none", batch, sam=False, seed=seed) for seed in range(len(curves))]
        runs = [
            replace(run, metrics=run.metrics | {"train/loss": values[-1]})
            for run, values in zip(runs, curves, strict=True)
        ]
        folder = write_sweep(runs)
        for place, values in enumerate(curves):
            write_losses(folder / str(place), values, metric)
        return folder

    return write


def test_the_end_of_a_line_with_noise_is_told_exactly() -> None:
    # 2 - t / 100 at t = 0 .. 39, and -+ 0.01 about it in the last ten; that pattern has no slope and no mean.
    bump = [0.01 * sign for sign in (1, -1, -1, 1, 0, 0, 1, -1, -1, 1)]
    values = [2 - t / 100 + (bump[t - 30] if t >= 30 else 0.0) for t in range(40)]
    found = ending_of(range(40), values, final=1.5)
    assert (found.loss, found.first, found.freedom) == (1.5, 2.0, 8)
    assert found.level == pytest.approx(np.median(values[-10:]))
    assert found.noise == pytest.approx(math.sqrt(8 * 0.01**2 / 8))
    error = 0.01 / math.sqrt(82.5)  # of the slope: the squares of -4.5 to 4.5 sum to 82.5
    assert found.drop == pytest.approx(39 / 4 * (1 / 100 - error))
    assert ending_of(range(40), values).loss == values[-1]
    assert ending_of(range(40), values[::-1]).drop == 0


@pytest.mark.parametrize("values", [[1.0] * 7, [1.0] * 39 + [math.inf], []])
def test_too_short_a_curve_and_one_that_is_not_finite_have_no_end(values) -> None:
    assert ending_of(range(len(values)), values) is None


def test_the_chance_of_a_spread_is_that_of_the_f_distribution() -> None:
    # With three seeds it has a closed form: (1 + 2 F / d)^(-d / 2).
    found = [Ending(loss, loss, noise, 4, 0.0, 1.0) for loss, noise in ((0.1, 0.01), (0.13, 0.02), (0.09, 0.03))]
    within = (0.01**2 + 0.02**2 + 0.03**2) / 3
    ratio = np.var([0.1, 0.13, 0.09], ddof=1) / within
    assert pooled_noise(found) == (pytest.approx(math.sqrt(within)), 12)
    assert spread_chance(found) == pytest.approx((1 + 2 * ratio / 12) ** -6)
    still = [replace(one, noise=0.0) for one in found]
    assert spread_chance(still) == 0
    assert spread_chance([replace(one, loss=0.1) for one in still]) == 1


def test_the_chance_is_evenly_spread_where_seeds_differ_by_noise_alone() -> None:
    rng = np.random.default_rng(0)
    chances = []
    for _ in range(400):
        curves = 1 + 0.1 * rng.normal(size=(5, 24))
        chances.append(spread_chance(ends(*curves.tolist())))
    # 400 draws: three standard deviations of a share of 0.05 are 0.033, of a half 0.075. The last value is one of those
    # that the line goes through, which makes its distance from the line a little smaller than that of a new one.
    assert np.mean(np.array(chances) < 0.05) < 0.09
    assert 0.4 < np.mean(np.array(chances) < 0.5) < 0.6


def test_chances_are_adjusted_as_holm_says() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005], 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.004], 3) == pytest.approx([0.012])  # two more settings that were not worth a test
    assert holm([0.5, 0.9], 2) == [1.0, 1.0]
    assert holm([], 5) == []


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99])
def test_so_many_restarts_and_not_one_less_reach_the_best_level(share) -> None:
    number = restarts(share)
    assert 1 - (1 - share) ** number >= CERTAIN - 1e-12
    assert number == 1 or 1 - (1 - share) ** (number - 1) < CERTAIN


@pytest.mark.parametrize(
    ("other", "stuck"),
    [
        (curve(1.0), True),
        (curve(0.2), False),  # less than a tenth of the initial loss behind
        ([2.3 * math.exp(-t / 25) for t in range(STEPS)], False),  # slow: it will get there
        ([3.0 / (1 + t / 8) for t in range(STEPS)], False),
        ([*curve(0.01)[:-1], 1.5], False),  # a spike at the very end
        ([*curve(1.5)[:-1], 0.01], False),
        (curve(0.7, noise=0.6), False),  # lost in its noise
        (curve(1.0, noise=0.05), True),
    ],
)
def test_behind_is_who_stays_behind_by_much_and_not_for_a_while(other, stuck) -> None:
    found = ends(curve(0.01), curve(0.02), other)
    assert behind(found) == (found[2:] if stuck else [])


def test_losses_below_zero_are_compared_as_well() -> None:
    low, high = ([value - 3 for value in curve(level)] for level in (0.0, 1.5))
    assert len(behind(ends(low, low, high))) == 1


def test_two_levels_are_found_and_told_with_the_restarts_that_help(sweep) -> None:
    levels = (0.02, 0.02, 0.9, 0.02, 0.9)
    table = load_sweep(sweep(*(curve(level, 0.01, seed) for seed, level in enumerate(levels))))
    (found,) = local_optima.local_optima(table)
    assert (found.behind, found.restarts) == (2, 4)  # 1 - 0.4^4 = 0.974
    assert found.noise == pytest.approx(0.01, rel=0.3)
    assert found.p < 1e-6
    (sentence,) = optima_sentences(table)
    assert sentence.startswith("With Adam, 5 seeds end at a train loss of 0.0")
    assert "to 0.9" in sentence or "to 0.8" in sentence
    assert (
        "(chance of such a spread by noise alone: below 1e-06): local optima. 3 seeds of 5 reach the best" in sentence
    )
    assert "of 4 random restarts, at least one does with a probability of 95 % (seed=range(4))." in sentence
    assert [f.text for f in more_findings(table) if f.topic == "Local optima"] == [sentence]


def test_healthy_seeds_of_tiny_losses_are_silent(sweep) -> None:
    levels = (0.0009, 0.0011, 0.0013)  # apart by far more than the noise
    table = load_sweep(sweep(*(curve(level, 1e-5, seed) for seed, level in enumerate(levels))))
    assert optima_sentences(table) == []


def test_two_seeds_and_runs_without_a_log_are_not_judged(sweep) -> None:
    assert optima_sentences(load_sweep(sweep(curve(0.02), curve(0.9)))) == []
    folder = sweep(curve(0.02), curve(0.02), curve(0.9))
    assert len(optima_sentences(load_sweep(folder))) == 1
    (folder / "1" / "metrics.csv").unlink()
    assert optima_sentences(load_sweep(folder)) == []


@pytest.mark.parametrize(("settings", "named"), [(1, 1), (5, 0)])
def test_a_spread_that_one_of_many_settings_may_have_by_chance_is_no_finding(write_sweep, settings, named) -> None:
    # Noise of 0.1 with 2 degrees of freedom for each run, and a gap of 0.7: F = 0.7^2 / 3 / 0.1^2 = 16.3, so p is
    # (1 + 2 F / 6)^-3 = 0.0037 of a single setting.
    shape = [step * 0.1 / math.sqrt(2) for step in (1, -1, -1, 1)]
    runs, curves = [], []
    for depth in range(settings):
        for seed, level in enumerate((0.5, 0.5, 1.2 if depth == 0 else 0.5)):
            run = make_record("Adam", "none", 16, sam=False, seed=seed)
            curves.append([2.3, 2.0, 1.5, 1.3, *(level + part for part in shape)])
            metrics = run.metrics | {"train/loss": level}
            runs.append(replace(run, config=run.config | {"model.depth": depth}, metrics=metrics))
    folder = write_sweep(runs)
    for place, values in enumerate(curves):
        write_losses(folder / str(place), values)
    assert len(local_optima.local_optima(load_sweep(folder))) == named


def test_a_run_that_diverged_is_in_no_optimum(sweep) -> None:
    curves = [curve(level) for level in (0.02, 0.021, 0.022, 2.3)]
    assert optima_sentences(load_sweep(sweep(*curves))) == []


def test_a_problem_of_its_own_explains_a_run_and_one_of_all_runs_does_not(sweep) -> None:
    folder = sweep(*(curve(level) for level in (0.02, 0.02, 0.02, 0.9)))
    for run in range(4):
        write_diagnosis(folder / str(run), finding("label imbalance"))
    assert len(optima_sentences(load_sweep(folder))) == 1
    write_diagnosis(folder / "3", finding("label imbalance"), finding("dead units"))
    assert optima_sentences(load_sweep(folder)) == []


def test_the_loss_after_the_fit_is_no_part_of_the_curve(sweep) -> None:
    folder = sweep(*(curve(level) for level in (0.02, 0.02, 0.9)), metric="train/loss")
    for run in range(3):
        with (folder / str(run) / "metrics.csv").open("a") as log:
            log.write(",400,50.0\n")  # as evaluated: without an epoch
    assert len(optima_sentences(load_sweep(folder))) == 1


def test_a_validation_loss_that_jumps_shows_the_noise_that_means_over_epochs_hide(sweep) -> None:
    folder = sweep(*(curve(level) for level in (0.02, 0.02, 0.9)), metric="train/loss")
    for run in range(3):
        path = folder / str(run) / "metrics.csv"
        shaken = curve(0.5, 0.5, seed=run)
        log = pd.read_csv(path).assign(**{"val/loss": shaken})
        log.to_csv(path, index=False)
    assert optima_sentences(load_sweep(folder)) == []


def test_a_log_is_read_by_step_and_words_in_it_are_passed_over() -> None:
    log = pd.DataFrame({"epoch": [0, 0, 1, None], "step": [5, 0, 5, 9], "a/loss": ["1.0", "2.0", "3.0", "word"]})
    assert logged(log, "a/loss") == ([0, 5], [2.0, 3.0])
    assert logged(log, "b/loss") == ([], [])


def simulated(rng: np.random.Generator, kind: int) -> list[list[float]]:
    """Healthy seeds of one setting: tiny losses, a loss lost in noise, slow ones, an irreducible loss."""
    noise, spread, floor, pace = [
        (1e-4, 2e-4, 1e-3, 0.5),
        (0.4, 0.0, 0.5, 0.5),
        (0.02, 0.0, 0.0, 0.03),
        (0.02, 0.03, 1.2, 0.3),
    ][kind]
    levels = np.abs(floor + spread * rng.normal(size=4))
    paces = pace * np.exp(0.3 * rng.normal(size=4))
    seeds = rng.integers(1 << 30, size=4)
    drawn = zip(levels.tolist(), seeds.tolist(), paces.tolist(), strict=True)
    return [curve(level, noise, seed, pace=falling) for level, seed, falling in drawn]


def test_200_healthy_sweeps_are_silent_but_for_the_chance_that_the_level_allows(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        logs = {}
        lines = []
        for kind in range(4):
            for seed, values in enumerate(simulated(rng, kind)):
                folder = f"{kind}/{seed}"
                logs[folder] = pd.DataFrame({"step": range(len(values)), "subset/loss": values})
                lines.append(_line(folder, float(2**kind), seed, values[-1]))
        monkeypatch.setattr(endings, "history", logs.get)
        alarms += bool(local_optima.local_optima(pd.DataFrame(lines)))
    assert alarms <= 200 * LEVEL == 2


def test_two_levels_are_found_in_noise_and_at_unequal_paces() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(100):
        own = [
            curve(level, 0.05, int(rng.integers(1 << 30)), pace=rng.uniform(0.2, 1)) for level in (0.1, 0.9, 0.1, 0.9)
        ]
        endings_ = ends(*own)
        found += spread_chance(endings_) <= LEVEL and behind(endings_) == [endings_[1], endings_[3]]
    assert found >= 90


def _line(folder: str, batch: float, seed: int, loss: float) -> dict:
    known = {
        "run": folder,
        "folder": folder,
        "status": "finished",
        "outcome": "ok",
        "optimizer": "SGD",
        "rate": "fixed",
    }
    known |= {"batch": batch, "seed": seed, "train/loss": loss, "started": "2026", "method": "", "rho": 0.0}
    return known | {"classes": None, "error": None, "config.optimizer.lr": 0.1, "overrides": ""}
