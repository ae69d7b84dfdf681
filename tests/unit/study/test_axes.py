import math

import pytest

from lbtrain.functional.scaling import AUTO
from lbtrain.study.axes import (
    AUTO_LAWS,
    METRICS,
    batch_size,
    capital,
    diverged,
    higher_is_better,
    learning_rate,
    num_classes,
    optimizer_label,
    rate_label,
    sam_rho,
    words,
)


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"optimizer._target_": "torch.optim.Adam"}, "Adam"),
        ({"optimizer._target_": "torch.optim.SGD", "optimizer.momentum": 0}, "SGD"),
        ({"optimizer._target_": "torch.optim.SGD", "optimizer.momentum": 0.9}, "SGD momentum 0.9"),
        (
            {"optimizer._target_": "torch.optim.SGD", "optimizer.momentum": 0.9, "optimizer.nesterov": True},
            "SGD Nesterov 0.9",
        ),
        ({"model.optimizer._target_": "mine.Lion"}, "Lion"),
        ({"model.optimizer._target_": "mine.Lion", "optimizer._target_": "torch.optim.Adam"}, "Adam"),
        ({}, ""),
    ],
)
def test_optimizer(config: dict, label: str) -> None:
    assert optimizer_label(config) == label


@pytest.mark.parametrize(
    ("rule", "label"),
    [(None, "fixed"), ("none", "fixed"), (0, "fixed"), ("linear", "linear"), ("sqrt", "sqrt"), (0.7, "power 0.7")],
)
def test_rate(rule: object, label: str) -> None:
    assert rate_label({"callbacks.lr_scaling.rule": rule}) == label


@pytest.mark.parametrize(
    ("optimizer", "label"),
    [
        ("torch.optim.SGD", "linear"),
        ("torch.optim.Adam", "sqrt"),
        ("pytorch_optimizer.Lamb", "sqrt"),
        ("mine.Lion", "auto"),
    ],
)
def test_automatic_rate_is_named_by_the_law_in_effect(optimizer: str, label: str) -> None:
    assert rate_label({"optimizer._target_": optimizer, "callbacks.lr_scaling.rule": "auto"}) == label


def test_rules_of_several_optimizers_are_all_named() -> None:
    rules = {"callbacks.lr_scaling.rule.0": "linear", "callbacks.lr_scaling.rule.1": 0.5}
    assert rate_label(rules) == "linear / power 0.5"
    assert rate_label({**rules, "callbacks.lr_scaling.rule.1": "linear"}) == "linear"


def test_laws_are_those_that_the_callback_takes() -> None:
    assert {name: rule for rule, names in AUTO.items() for name in names} == AUTO_LAWS


def test_absent_axes() -> None:
    assert rate_label({}) == "fixed"
    assert sam_rho({}) == sam_rho({"callbacks.sam": None}) == sam_rho({"callbacks.sam.rho": 0.0}) == 0.0
    assert batch_size({}, {}) is None
    assert learning_rate({}, {}) is None
    assert num_classes({}) is None


def test_what_was_measured_goes_before_what_was_asked() -> None:
    config = {"data.batch_size": 64, "optimizer.lr": 0.01}
    assert batch_size(config, {"batch/global": 256.0}) == 256
    assert batch_size(config, {}) == 64
    assert learning_rate(config, {"lr/base": 0.01, "lr/scaled": 0.04}) == 0.04
    assert learning_rate(config, {}) == 0.01


@pytest.mark.parametrize(
    ("metrics", "classes", "expected"),
    [
        ({"train/loss": 2.25}, 10, False),  # 98 % of ln 10 is 2.2565
        ({"train/loss": 2.26}, 10, True),
        ({"train/loss": 2.26}, 100, False),
        ({"train/loss": 2.26}, None, False),
        ({"train/loss": math.nan}, None, True),
        ({"train/loss": 0.1, "test/loss": math.inf}, 10, True),
        ({"test/loss": 5.0}, 10, False),
        ({}, 10, False),
    ],
)
def test_diverged(metrics: dict, classes: int | None, expected: bool) -> None:
    assert diverged(metrics, classes) is expected


def test_direction_and_words() -> None:
    for metric in ("test/acc", "val/acc_epoch", "val/f1_score", "gap/acc", "target/reached"):
        assert higher_is_better(metric), metric
    for metric in ("val/loss", "val/acc_loss", "test/acc_stderr", "hessian/lambda_max", "mine/space"):
        assert not higher_is_better(metric), metric
    for metric in METRICS:
        assert higher_is_better(metric) is (metric.endswith("/acc") or metric == "target/reached"), metric
    assert words("test/acc") == "test accuracy"
    assert words("val/mine") == "val/mine"


def test_the_keys_of_times_and_targets_have_words_and_units() -> None:
    keys = ["time/epoch_s", "target/value", "target/reached", "target/steps", "target/epochs", "target/s"]
    keys += ["noise/b_simple", "hessian/trace", "run/attempts"]
    for key in keys:
        assert key in METRICS
        assert "/" not in words(key)
    units = {key: METRICS[key][1] for key in keys}
    assert [key for key, unit in units.items() if unit == "s"] == ["time/epoch_s", "target/s"]
    assert (units["noise/b_simple"], units["target/steps"]) == ("samples", "optimizer steps")


@pytest.mark.parametrize(
    ("metric", "begins"),
    [
        ("target/steps", "Steps to the target"),
        ("sharpness/sam", "SAM sharpness"),
        ("hessian/lambda_max", "lambda_max"),
        ("mine/metric", "mine/metric"),
    ],
)
def test_words_at_the_beginning_of_a_line(metric: str, begins: str) -> None:
    assert capital(words(metric)) == begins
