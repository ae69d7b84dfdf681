"""Every difference below is worked out by hand; the baselines are those of the known study."""

import math
from dataclasses import replace

import pytest
from scipy import stats

from lbtrain.records import RunRecord
from lbtrain.study.baseline import BaselineError, baselines
from lbtrain.study.conditions import cells, label
from lbtrain.study.load import load_sweep
from lbtrain.study.paired import paired, paired_sheet
from tests.unit.study.known_sweep import family_records, known_records, make_record


def named(table, asked=None):
    """Each setting by name, with its baseline's."""
    everything = cells(table)
    chosen = baselines(list(everything), asked)
    return {label(key, everything): label(base, everything) for key, base in chosen.of.items()}, chosen.words


def with_accuracy(record: RunRecord, accuracy: float) -> RunRecord:
    return replace(record, metrics={**record.metrics, "test/acc": accuracy})


@pytest.fixture
def study(write_sweep):
    return load_sweep(write_sweep(known_records()))


def test_the_default_baseline_is_the_plainest_of_each_optimizer(study) -> None:
    of, words = named(study)
    assert len(of) == 30  # of 32 settings two are baselines
    assert {base for name, base in of.items() if name.startswith("Adam")} == {"Adam, fixed rate, batch 16, without SAM"}
    assert words == (
        "The baseline is the plainest setting of each family (no SAM, fixed rate, smallest batch, where there are "
        "such): Adam, fixed rate, batch 16, without SAM; SGD momentum 0.9, fixed rate, batch 16, without SAM. Another "
        "one: --baseline 'batch=64'."
    )


@pytest.mark.parametrize(
    ("records", "asked"),
    [
        ([make_record("Adam", "none", 64, sam) for sam in (False, True)], "method=SAM"),
        (
            [make_record(optimizer, "none", 64, sam=False) for optimizer in ("Adam", "SGD")],
            "optimizer=SGD momentum 0.9",
        ),
        ([make_record("Adam", "none", 64, sam=False)], None),
    ],
)
def test_the_example_of_another_baseline_is_one_that_exists(write_sweep, records, asked: str | None) -> None:
    table = load_sweep(write_sweep(records))
    words = named(table)[1]
    assert words.endswith(f"Another one: --baseline '{asked}'." if asked else "Adam.")
    if asked:
        assert named(table, asked)[0]


def test_a_baseline_that_many_settings_fit_is_the_most_alike(study) -> None:
    of, _ = named(study, "batch=16")
    assert of["Adam, sqrt rate, batch 64, SAM rho 0.05"] == "Adam, sqrt rate, batch 16, SAM rho 0.05"
    assert "Adam, fixed rate, batch 16, without SAM" not in of
    of, _ = named(study, "method=none")
    assert of["Adam, sqrt rate, batch 64, SAM rho 0.05"] == "Adam, sqrt rate, batch 64, without SAM"


@pytest.mark.parametrize(
    "asked",
    [
        "optimizer=SGD momentum 0.9 batch=16 rate=fixed method=none",
        "optimizer=sgd momentum 0.9, batch=16.0, rate=fixed, rho=0",
        "SGD momentum 0.9, fixed rate, batch 16, without SAM",
    ],
)
def test_one_baseline_can_be_named_in_several_ways(study, asked: str) -> None:
    of, words = named(study, asked)
    assert set(of.values()) == {"SGD momentum 0.9, fixed rate, batch 16, without SAM"}
    assert words == "The baseline is SGD momentum 0.9, fixed rate, batch 16, without SAM, as asked for."


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("size=16", r"no axis is named 'size'; there are optimizer, rate, batch, method, rho$"),
        (
            "optimizer=Adam rate=linear",
            r"no setting has rate=linear beside what is named before; rate is fixed, linear",
        ),
        ("Adam, batch 17", r"no setting is 'Adam, batch 17'; name parts of one as the report does: Adam, fixed rate"),
        ("", r"no setting is ''"),
    ],
)
def test_a_baseline_that_is_not_there_is_an_error_that_says_what_is(study, asked: str, message: str) -> None:
    with pytest.raises(BaselineError, match=message):
        named(study, asked)


def test_where_each_family_has_one_setting_the_first_of_all_is_the_baseline(write_sweep) -> None:
    run = make_record("Adam", "none", 64, sam=False)
    runs = [replace(run, config=run.config | {"model.depth": depth}) for depth in (4, 2, 3)]
    of, _ = named(load_sweep(write_sweep(runs)))
    assert of == {"depth 3": "depth 2", "depth 4": "depth 2"}


def test_a_difference_is_paired_by_seed(write_sweep) -> None:
    # The seeds differ by 0.1, the settings by 0.01, 0.02 and 0.03: unpaired, nothing would be seen. Seed 3 has no pair.
    small = [with_accuracy(make_record("Adam", "none", 16, False, seed), 0.6 + 0.1 * seed) for seed in range(4)]
    large = [with_accuracy(make_record("Adam", "none", 64, False, s), 0.6 + 0.11 * s - 0.03) for s in range(3)]
    table = load_sweep(write_sweep([*small, *large]))
    (pair,) = paired(table, baselines(list(cells(table))), ["test/acc"])
    low, high = stats.t.interval(0.95, 2, loc=-0.02, scale=0.01 / math.sqrt(3))
    assert pair.difference.mean == pytest.approx(-0.02)
    assert (pair.difference.low, pair.difference.high) == pytest.approx((low, high))
    assert (pair.difference.n, pair.clear, pair.judged) == (3, False, True)  # t(0.975, 2) = 4.3: -0.0448 to 0.0048


def test_an_interval_that_excludes_zero_is_marked_and_chance_is_named(write_sweep) -> None:
    moved = {16: 0.0, 64: 0.2, 256: 0.001}  # against a spread of 0.01 over the seeds
    noise = {(0, 64): 0.01, (1, 64): -0.01, (2, 64): 0.0, (0, 256): 0.01, (1, 256): -0.01, (2, 256): 0.0}
    runs = [
        with_accuracy(make_record("Adam", "none", batch, False, seed), 0.5 + moved[batch] + noise.get((seed, batch), 0))
        for batch in moved
        for seed in range(3)
    ]
    sheet = paired_sheet(load_sweep(write_sweep(runs)))
    column = sheet.header.index("test accuracy, difference")
    assert [row[column].strong for row in sheet.body] == [True, False]
    assert sheet.body[0][column].whole == "+0.200 (+0.175 to +0.225) *"  # 4.303 * 0.01 / sqrt 3
    assert sheet.header[-1] == "pairs"
    assert [row[-1].text for row in sheet.body] == ["3", "3"]
    # The other metrics are the same in all seeds: test loss, sharpness in two settings; the time does not differ.
    (chance,) = [text for text in sheet.about if "by chance" in text]
    assert chance == (
        "1 of 2 intervals excludes zero (marked *); if nothing differed, about 0.10 would by chance alone. 6 "
        "differences without any spread over the seeds are not judged."
    )
    assert (
        sheet.about[-1]
        == "Test accuracy: 1 of 2 settings differs from the baseline: batch 64: +0.200 (+0.175 to +0.225)."
    )


def test_one_seed_gives_differences_and_no_claim(study) -> None:
    sheet = paired_sheet(study)
    assert not any(entry.strong or entry.bar for row in sheet.body for entry in row)
    assert sheet.about[1:] == ("One pair of seeds each: no difference has an interval. Sweep seed=0,1,2 to get one.",)


def test_runs_with_nothing_to_compare_have_no_table(write_sweep) -> None:
    assert paired_sheet(load_sweep(write_sweep([make_record("Adam", "none", 64, False)]))) is None


def test_each_row_names_its_baseline_where_there_are_several(write_sweep) -> None:
    sheet = paired_sheet(load_sweep(write_sweep(family_records(("SAM", "GSAM")))), "method=none")
    assert sheet.header[:2] == ("setting", "against")
    assert [tuple(e.text for e in row[:2]) for row in sheet.body][:2] == [
        ("batch 16, SAM rho 0.05", "batch 16, without SAM"),
        ("batch 16, GSAM rho 0.05", "batch 16, without SAM"),
    ]


def test_intervals_exclude_zero_by_chance_as_often_as_is_said() -> None:
    # 1000 differences of 5 pairs each between settings that do not differ: about 5 % of the intervals exclude zero.
    import numpy as np

    from lbtrain.study.estimates import difference

    draws = np.random.default_rng(0).normal(size=(1000, 2, 5))
    found = [difference(dict(enumerate(a)), dict(enumerate(b))) for a, b in draws]
    share = sum(e.low > 0 or e.high < 0 for e in found) / 1000
    assert 0.03 < share < 0.07
