"""Every ratio below is worked out by hand from the known table."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbtrain.study.compare import also_differs
from lbtrain.study.conditions import cells
from lbtrain.study.families import MAX_FAMILIES, families, ranked
from lbtrain.study.findings import by_topic, findings
from lbtrain.study.load import load_sweep
from tests.unit.study.known_sweep import BATCHES, failed, known_records, make_record


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
