import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from lbtrain.study.correlation import MIN_SETTINGS, correlation_sheet, correlations, measures, tau_b
from lbtrain.study.load import load_sweep
from tests.unit.study.known_sweep import make_record

NUMBERS = st.sampled_from([0.0, 1.0, 2.0, 3.5, -1.0, 10.0])


def records(gaps, seeds=(0,), measure="hessian/lambda_max"):
    """Settings whose sharpness is 1, 2, 3 ... and whose gap is given, the same for each seed but for a trifle."""
    found = []
    for place, gap in enumerate(gaps):
        for seed in seeds:
            run = make_record("Adam", "none", 64, sam=False, seed=seed)
            metrics = {"train/loss": 0.1, "test/loss": 0.2, measure: place + 1 + 0.01 * seed, "gap/loss": gap}
            found.append(replace(run, config=run.config | {"model.depth": place}, metrics=metrics))
    return found


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=12))
def test_it_is_scipys(points) -> None:
    expected = kendalltau(*np.array(points).T).statistic
    found = tau_b([[point] for point in points])
    assert (found is None) == math.isnan(expected)
    assert found is None or found[0] == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=3), min_size=2, max_size=7))
def test_groups_change_the_interval_only(groups) -> None:
    expected = kendalltau(*np.array([point for group in groups for point in group]).T).statistic
    found = tau_b(groups)
    assert found is None or found[0] == pytest.approx(expected, abs=1e-12)


def test_a_closed_form() -> None:
    # Of 6 pairs of 4 points, one is in the opposite order: (5 - 1) / 6. With one tie in the first number, of the 5
    # untied pairs 4 agree: (4 - 1) / sqrt(5 * 6).
    assert tau_b([[(1, 1)], [(2, 2)], [(3, 4)], [(4, 3)]])[0] == pytest.approx(4 / 6)
    assert tau_b([[(1, 1)], [(1, 2)], [(3, 4)], [(4, 3)]])[0] == pytest.approx(3 / math.sqrt(30))
    assert tau_b([[(1, 5)], [(2, 5)], [(3, 5)]]) is None


def test_an_order_without_exception_has_no_width() -> None:
    assert tau_b([[(i, i**3)] for i in range(MIN_SETTINGS)]) == pytest.approx((1.0, 1.0, 1.0))
    tau, low, high = tau_b([[(i, -i)] for i in range(MIN_SETTINGS - 1)])
    assert tau == -1.0
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_interval_is_that_of_drawing_whole_groups() -> None:
    # The same with scipy and explicit copies of groups; pairs between copies of one group do not count.
    rng = np.random.default_rng(7)
    groups = [[tuple(rng.normal(size=2) + i * np.array([0.3, 0.2])) for _ in range(2)] for i in range(8)]
    ordered = sorted(sorted(group) for group in groups)

    def explicit(counts):
        order = one = two = 0.0
        copies = [(i, point) for i, count in enumerate(counts) for c in range(count) for point in ordered[i]]
        origin = [(i, c) for i, count in enumerate(counts) for c in range(count) for _ in ordered[i]]
        for a, (i, p) in enumerate(copies):
            for b, (j, q) in enumerate(copies):
                if i == j and origin[a] != origin[b]:
                    continue
                x, y = np.sign(p[0] - q[0]), np.sign(p[1] - q[1])
                order, one, two = order + x * y, one + x * x, two + y * y
        return order / math.sqrt(one * two)

    import lbtrain.study.correlation as module

    drawn = np.random.default_rng(module._SEED).multinomial(8, [1 / 8] * 8, 60)
    expected = np.quantile([explicit(row) for row in drawn], [0.025, 0.975])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RESAMPLES", 60)
        assert tau_b(groups)[1:] == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize(("settings_", "seeds"), [(8, 1), (8, 3), (16, 1)])
def test_the_interval_holds_the_true_value_as_often_as_it_says(settings_: int, seeds: int) -> None:
    rng = np.random.default_rng(0)
    mix = 0.7
    true = 2 / math.pi * math.asin(mix)  # of a bivariate normal distribution with this correlation

    def sweep():
        for _ in range(settings_):
            a, b = rng.normal(size=2)
            both = a, mix * a + math.sqrt(1 - mix**2) * b
            yield [tuple(both + 0.02 * rng.normal(size=2)) for _ in range(seeds)]

    held = [low <= true <= high for _, low, high in (tau_b(list(sweep())) for _ in range(200))]
    assert 0.90 <= np.mean(held) <= 0.99


@settings(max_examples=10, deadline=None)
@given(st.randoms())
def test_the_order_of_settings_and_seeds_changes_no_digit(random) -> None:
    groups = [[(i + 0.1 * s, (i * 7) % 5 + 0.1 * s) for s in range(3)] for i in range(8)]
    expected = tau_b(groups)
    shuffled = [random.sample(group, len(group)) for group in groups]
    random.shuffle(shuffled)
    assert tau_b(shuffled) == expected


def test_a_table_of_what_goes_with_the_gap(write_sweep) -> None:
    table = load_sweep(write_sweep(records([0.1, 0.2, 0.4, 0.3, 0.5, 0.6, 0.8, 0.7], seeds=(0, 1))))
    (found,) = correlations(table)
    assert (found.measure, found.gap, found.num_runs, found.num_settings, found.clear) == (
        "hessian/lambda_max",
        "gap/loss",
        16,
        8,
        True,
    )
    # tau-b over the runs: 28 pairs of settings, 2 against the order, times 4; 8 pairs of seeds, tied in the gap
    assert found.tau == pytest.approx((26 - 2) * 4 / math.sqrt(120 * 112))
    sheet = correlation_sheet(table)
    assert sheet.body[0][2].strong
    assert sheet.about[0].startswith("The loss gap goes most closely with lambda_max: tau +0.83 (+0.")
    assert sheet.about[0].endswith("(16 runs of 8 settings).")


def test_there_is_no_claim_where_the_interval_includes_zero(write_sweep) -> None:
    table = load_sweep(write_sweep(records([0.5, 0.1, 0.8, 0.2, 0.7, 0.3])))
    assert not correlations(table)[0].clear
    assert correlation_sheet(table).about[0] == (
        "No sharpness is shown to go with the loss gap: every interval includes zero."
    )


def test_few_settings_give_a_number_and_no_claim(write_sweep) -> None:
    sheet = correlation_sheet(load_sweep(write_sweep(records([0.1, 0.2, 0.3], seeds=(0, 1)))))
    assert sheet.body[0][3].text == "no interval"
    assert sheet.about[0] == "No sharpness is shown to go with the loss gap: fewer than 6 settings give no interval."
    assert correlation_sheet(load_sweep(write_sweep(records([0.1, 0.2]), "two"))) is None


def test_every_measure_present_is_taken_and_no_error_bar(write_sweep) -> None:
    (run,) = records([0.1])
    names = ("keskar", "keskar_corner", "sam", "sam_stderr", "my_own", "interrupted", "scaled_hessian_residual")
    extra = {f"sharpness/{name}": 1.0 for name in names} | {"hessian/trace": 1.0, "hessian/trace_stderr": 0.1}
    table = load_sweep(write_sweep([replace(run, metrics=run.metrics | extra | {"ggn/lambda_max": 2.0})]))
    assert measures(table) == [
        "hessian/lambda_max",
        "hessian/trace",
        "ggn/lambda_max",
        "sharpness/keskar",
        "sharpness/my_own",
        "sharpness/sam",
    ]


def test_a_diverged_run_is_not_in_it(write_sweep) -> None:
    runs = records([0.1, 0.2, 0.3, 0.4])
    runs[3] = replace(runs[3], metrics=runs[3].metrics | {"train/loss": math.nan})
    assert correlations(load_sweep(write_sweep(runs)))[0].num_runs == 3
