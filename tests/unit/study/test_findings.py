"""Every ratio below is worked out by hand from the known table."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbtrain.study.attention import diverged
from lbtrain.study.compare import also_differs
from lbtrain.study.conditions import cells
from lbtrain.study.families import MAX_FAMILIES, MAX_VARIANTS, families, ranked
from lbtrain.study.findings import by_topic, findings
from lbtrain.study.load import load_sweep
from lbtrain.study.pages import notes
from lbtrain.study.tables import lost_runs
from tests.unit.study.known_sweep import (
    BATCHES,
    METHODS,
    failed,
    family_records,
    known_records,
    make_record,
    with_method,
)


@pytest.fixture
def said(write_sweep) -> str:
    return "\n".join(findings(load_sweep(write_sweep(known_records()))))


@pytest.mark.parametrize(
    "sentence",
    [
        # 14.3 / 0.78 and 16.2 / 0.69
        "At the fixed rate, lambda_max grows 18.3x from batch 16 to 1024 with Adam (0.780 to 14.3).",
        "At the fixed rate, lambda_max grows 23.5x from batch 16 to 1024 with SGD momentum 0.9 (0.690 to 16.2).",
        "At the fixed rate, Keskar's sharpness grows 18.3x from batch 16 to 1024 with Adam (0.0780 to 1.43).",
        "From batch 16 to 1024 with Adam, train loss goes from 0.00260 to 0.240 and test accuracy goes from 0.983 to "
        "0.936.",
        # 1.27 / 0.78; 1.27 / 14.3
        "At the sqrt rate, lambda_max grows 1.63x from batch 16 to 1024 with Adam (0.780 to 1.27).",
        "At batch 1024 with Adam, the sqrt rate takes lambda_max from 14.3 at the fixed rate to 1.27: 0.0888x, "
        "and test accuracy from 0.936 to 0.983 (+0.0470).",
        # The run at 1024 diverged: the comparison stops at 256. 0.69 / 0.11
        "At the linear rate, lambda_max shrinks 6.27x from batch 16 to 256 with SGD momentum 0.9 (0.690 to 0.110). "
        "Diverged at batch 1024 (1 of 1 run).",
        # 0.35 / 0.78, 1.7 / 2, 6.2 / 6.3, 14.1 / 14.3
        "With Adam at the fixed rate, SAM (rho 0.05) multiplies lambda_max by 0.449 at batch 16, 0.850 at batch 64, "
        "0.984 at batch 256 and 0.986 at batch 1024, and changes test accuracy by 0 at batch 16",
        "SAM costs 2.00x the time per optimizer step (over 15 pairs of settings).",
        "The best test accuracy is 0.989, with SGD momentum 0.9, fixed rate, batch 16, without SAM; 3 more settings",
        "None of 30 settings ends beyond the edge of stability (1); the highest value is 0.810, with SGD momentum 0.9, "
        "fixed rate, batch 1024, without SAM.",
        "2 of 32 runs diverged, and no comparison uses them: SGD momentum 0.9, linear rate, batch 1024, SAM rho 0.05; "
        "SGD momentum 0.9, linear rate, batch 1024, without SAM. The rule: a training or test loss that is not finite, "
        "or a training loss of at least 2.26 (98% of ln 10 = 2.30, the loss of guessing).",
    ],
)
def test_the_whole_study(said: str, sentence: str) -> None:
    assert sentence in said


def test_no_question_is_answered_without_runs(write_sweep) -> None:
    only = [make_record("Adam", "none", 64, sam=False)]
    topics = {finding.topic for finding in by_topic(load_sweep(write_sweep(only)))}
    assert topics == {"Best setting", "Edge of stability"}
    nothing = [failed(only[0], "out of memory")]
    assert findings(load_sweep(write_sweep(nothing, "failed"))) == ["Of 1 run, 1 failed; the reasons are listed."]


def test_seeds_bring_intervals(write_sweep) -> None:
    runs = [
        make_record("Adam", "none", batch, sam=False, seed=seed, spread=spread)
        for seed in (0, 1)
        for batch, spread in ((16, 1.0), (1024, (1.1, 1 / 1.1)[seed]))
    ]
    text = "\n".join(findings(load_sweep(write_sweep(runs))))
    # The logarithms are ln 18.33 +- ln 1.1, so std / sqrt 2 is ln 1.1 and t(0.975, 1) = 12.706: 18.33 * 1.1 ** +-12.706
    assert (
        "lambda_max grows 18.3x from batch 16 to 1024 with Adam (0.780 to 14.3; 95 % interval 5.46 to 61.5 over 2"
        in text
    )


def test_another_difference_is_told(write_sweep) -> None:
    small, large = (make_record("Adam", "none", batch, sam=False) for batch in (16, 1024))
    large = replace(large, config=large.config | {"optimizer.lr": 0.064, "model.optimizer.lr": 0.064})
    table = load_sweep(write_sweep([small, large]))
    assert "(0.780 to 14.3) (not the only difference: lr 0.001 to 0.064)." in "\n".join(findings(table))
    first, last = cells(table).values()
    assert also_differs(table, first, last, "batch") == "lr 0.001 to 0.064"


def test_a_loose_eigenvalue_is_counted(write_sweep) -> None:
    run = make_record("Adam", "none", 16, sam=False)
    run = replace(run, metrics=run.metrics | {"hessian/lambda_max_residual": 0.1})
    assert "In 1 run, lambda_max is known no better than to 5 %" in "\n".join(findings(load_sweep(write_sweep([run]))))


def test_an_objective_that_is_a_loss_is_lowered(write_sweep) -> None:
    runs = [make_record("Adam", "none", batch, sam=False) for batch in BATCHES]
    runs = [replace(run, config=run.config | {"objective": "test/loss"}) for run in runs]
    table = load_sweep(write_sweep(runs))
    assert [cell.condition.batch for cell in ranked(table)] == [16, 64, 256, 1024]
    assert findings(table)[0] == "The best test loss is 0.00520, with batch 16."


def test_many_settings_are_cut_to_the_best_of_each_optimizer(write_sweep) -> None:
    runs = []
    for i in range(MAX_FAMILIES + 1):
        run = make_record("Adam", "none", 64, sam=False)
        config = run.config | {"optimizer.weight_decay": i / 100, "model.optimizer.weight_decay": i / 100}
        runs.append(replace(run, config=config, metrics=run.metrics | {"test/acc": 0.9 if i else 0.95}))
    (family,) = families(load_sweep(write_sweep(runs)))
    assert family.name == "Adam, weight_decay 0"


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(64)))
def test_the_order_of_the_runs_changes_nothing(
    write_sweep, tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    records = known_records(seeds=(0, 1))
    name = str(Path(tmp_path_factory.mktemp("sweep")) / "sweep")
    shuffled = load_sweep(write_sweep([records[i] for i in order], name))
    assert by_topic(shuffled) == by_topic(load_sweep(write_sweep(records, name + "0")))


@pytest.mark.parametrize(("spread", "where"), [(1.0, "within"), (100.0, "beyond")])
def test_one_setting_is_told_by_itself(write_sweep, spread, where):
    said = findings(load_sweep(write_sweep([make_record("Adam", "none", 64, sam=False, spread=spread)])))
    # lambda_max 2.0 over 20
    value = {"within": "0.100", "beyond": "10.0"}[where]
    assert f"The one setting ends {where} the edge of stability: {value}, where 1 is the edge." in said


@pytest.fixture(scope="module")
def plain() -> list:
    return [make_record("Adam", "none", batch, sam=False) for batch in BATCHES]


@pytest.mark.parametrize(
    ("method", "rho", "factor", "time"), [(m, v[2]["rho"], v[3], v[4]) for m, v in METHODS.items()]
)
def test_each_method_is_compared_with_plain_training(write_sweep, method, rho, factor, time):
    said = "\n".join(findings(load_sweep(write_sweep(family_records()))))
    parts = (
        f"{factor:.3f} at batch 16, {factor:.3f} at batch 64, {factor:.3f} at batch 256 and {factor:.3f} at batch 1024"
    )
    assert f"With Adam at the fixed rate, {method} (rho {rho:g}) multiplies lambda_max by {parts}, and changes" in said
    assert f"\n{method} costs {time:.2f}x the time per optimizer step (over 4 pairs of settings)." in said
    assert "lambda_max grows 18.3x from batch 16 to 1024 with Adam (0.780 to 14.3)." in said  # of the plain runs


@pytest.mark.parametrize(
    ("methods", "headings"),
    [
        (("SAM",), ["What SAM does", "What SAM costs"]),
        (("GSAM",), ["What GSAM does", "What GSAM costs"]),
        (("SAM", "GSAM"), ["What SAM and its relatives do", "What SAM and its relatives cost"]),
    ],
)
def test_the_headings_name_the_method(write_sweep, methods, headings):
    topics = [finding.topic for finding in by_topic(load_sweep(write_sweep(family_records(methods))))]
    assert [topic for topic in dict.fromkeys(topics) if "SAM" in topic] == headings


def test_plain_runs_are_paired_with_each_value_of_a_methods_argument(write_sweep, plain):
    runs = [*plain]
    for alpha, factor in ((0.2, 1.0), (0.4, 2.0)):
        for run in (with_method(record, "GSAM", alpha=alpha) for record in plain):
            runs.append(
                replace(run, metrics={k: v * factor for k, v in run.metrics.items() if k.startswith("hessian/")})
            )
    said = "\n".join(findings(load_sweep(write_sweep(runs))))
    # GSAM of the known sweep multiplies lambda_max by 0.25
    assert "With Adam at the fixed rate, GSAM (rho 0.05, alpha 0.2) multiplies lambda_max by 0.250 at batch 16" in said
    assert "With Adam at the fixed rate, GSAM (rho 0.05, alpha 0.4) multiplies lambda_max by 0.500 at batch 16" in said
    assert "not the only difference" not in said


def test_another_difference_than_the_methods_own_is_told(write_sweep, plain):
    run = with_method(plain[0], "GSAM", key="mine", stop=3)
    run = replace(run, config=run.config | {"optimizer.lr": 0.01, "model.optimizer.lr": 0.01})
    first, last = cells(table := load_sweep(write_sweep([plain[0], run]))).values()
    assert also_differs(table, first, last, "rho") == "lr 0.001 to 0.01"


def test_a_setting_that_goes_with_the_method_splits_no_family_but_is_told(write_sweep, plain):
    clipped = [with_method(run, "GSAM") for run in plain]  # at the radius of SAM
    clipped = [replace(run, config=run.config | {"trainer.gradient_clip_val": 1.0}) for run in clipped]
    table = load_sweep(write_sweep([*plain, *(with_method(run, "SAM") for run in plain), *clipped]))
    assert [family.name for family in families(table)] == ["Adam"]
    (text,) = (text for text in findings(table) if ", GSAM (rho 0.05) multiplies" in text)
    assert text.endswith("(not the only difference: gradient_clip_val None to 1.0).")
    (text,) = (text for text in findings(table) if ", SAM (rho 0.05) multiplies" in text)
    assert "not the only difference" not in text


def test_radius_0_stands_in_for_plain_training_but_not_in_time(write_sweep, plain):
    stand_ins = [with_method(run, "SAM", rho=0.0) for run in plain]
    runs = [*stand_ins, *(with_method(run, "SAM") for run in plain), *(with_method(run, "WSAM") for run in plain)]
    said = "\n".join(findings(load_sweep(write_sweep(runs))))
    # 0.5 over 0.5, and 0.2 over 0.5: the known sweep has SAM at 0.5 times plain whatever its radius
    assert "SAM (rho 0.05) multiplies lambda_max by 1.00 at batch 16" in said
    assert "WSAM (rho 0.05) multiplies lambda_max by 0.400 at batch 16" in said
    assert "costs" not in said
    # Where there are runs without, those are the ones to compare with.
    said = "\n".join(findings(load_sweep(write_sweep([*runs, *plain], "both"))))
    assert "SAM (rho 0.05) multiplies lambda_max by 0.500 at batch 16" in said
    assert "WSAM (rho 0.05) multiplies lambda_max by 0.200 at batch 16" in said
    assert "\nSAM costs 2.00x the time per optimizer step (over 4 pairs of settings)." in said


def test_of_too_many_settings_of_methods_the_best_of_each_is_treated(write_sweep, plain):
    runs = [*plain]
    for i in range(MAX_VARIANTS):
        for run in (with_method(record, "GSAM", alpha=i / 10) for record in plain):
            runs.append(replace(run, metrics=run.metrics | {"test/acc": 0.99 if i == 3 else 0.9}))
    runs += [with_method(run, "SAM") for run in plain]
    zero = with_method(plain[0], "GSAM", rho=0.0, alpha=0.3)  # the best, but plain training
    table = load_sweep(write_sweep([*runs, replace(zero, metrics=zero.metrics | {"test/acc": 0.999})]))
    (family,) = families(table)
    assert [variant.words for variant in family.variants] == ["without SAM", "SAM rho 0.05", "GSAM rho 0.05, alpha 0.3"]
    assert (
        "Of 12 methods with their settings, the sentences and figures treat the best of each method: without SAM; "
        "SAM rho 0.05; GSAM rho 0.05, alpha 0.3."
    ) in notes(table)


def test_without_plain_runs_the_base_is_named(write_sweep, plain):
    said = findings(load_sweep(write_sweep([with_method(run, "WSAM") for run in plain])))
    assert any("with Adam and WSAM (rho 0.05) (0.156 to 2.86)" in text for text in said)  # 0.78 / 5, 14.3 / 5


def test_a_failed_run_is_listed_with_its_method(write_sweep, plain):
    lost = [failed(with_method(plain[1], "GSAM", alpha=alpha), "out of memory") for alpha in (0.2, 0.4)]
    both = with_method(with_method(plain[1], "SAM"), "GSAM")
    table = load_sweep(write_sweep([*plain, *lost, failed(both, "keep one of them")]))
    assert [name for _, name, _ in lost_runs(table)] == [
        "batch 64, GSAM and SAM rho 0.05",
        "batch 64, GSAM rho 0.05, alpha 0.2",
        "batch 64, GSAM rho 0.05, alpha 0.4",
    ]


@pytest.mark.parametrize(("seeds", "said"), [(1, False), (2, True), (3, True), (5, False)])
def test_an_interval_over_few_seeds_is_said_to_reach_beyond_what_is_possible(write_sweep, seeds, said) -> None:
    runs = [make_record("Adam", "none", 64, sam=False, seed=seed) for seed in range(seeds)]
    assert any("beyond what is possible" in note for note in notes(load_sweep(write_sweep(runs)))) is said


def test_of_many_settings_that_diverged_six_are_named_and_the_others_counted(write_sweep) -> None:
    lost = {"train/loss": 2.31, "test/loss": 2.31}
    records = [
        replace(record, metrics=record.metrics | lost) if record.metrics["batch/global"] > 16 else record
        for record in known_records()
    ]
    said = diverged(load_sweep(write_sweep(records)))
    assert said.startswith("24 of 32 runs diverged, and no comparison uses them: ")
    assert said.count(";") == 6
    assert "; and 18 more settings, all of them listed. The rule: " in said
