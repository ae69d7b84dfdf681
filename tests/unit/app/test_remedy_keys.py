"""The knobs of remedies in a config's own keys: only keys that are there and have an effect, as valid overrides."""

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lbtrain import _lightning
from lbtrain._lightning import MisconfigurationException
from lbtrain.app import leftovers
from lbtrain.app.instantiate import instantiate, validate
from lbtrain.app.remedy_keys import name_remedies, remedy_keys
from lbtrain.callbacks._diagnosis_file import DIAGNOSIS_NAME
from lbtrain.callbacks._diagnosis_result import Names
from lbtrain.callbacks.diagnostics import OptimizationDiagnostics
from lbtrain.functional.diagnosis import Remedy

MINE = "mine.Net"


def composed(*overrides):
    with initialize_config_module("lbtrain.conf", version_base="1.3"):
        return compose("train", list(overrides))


def keys(*overrides):
    return remedy_keys(composed(*overrides))


def test_the_default_run_has_its_keys():
    assert keys("callbacks=[lr_scaling,checkpoint]") == {
        "lr": "optimizer.lr",
        "momentum": "optimizer.momentum",
        "batch_size": "data.batch_size",
        "reduction": "model.reduction",
        "gradient_clip_val": "trainer.gradient_clip_val",
        "warmup_steps": "callbacks.lr_scaling.warmup_steps",
        "averaging": "callbacks=[lr_scaling,weight_averaging,checkpoint]",
    }


def test_adam_has_no_momentum_to_set():
    assert "momentum" not in keys("optimizer=adam")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"optimizer": {"lr": 1.0}, "model": {"lr": 1.0, "optimizer": "${optimizer}"}}, {"lr": "optimizer.lr"}),
        # Nothing takes the group: its rate would have no effect.
        ({"optimizer": {"lr": 1.0}, "model": {"lr": 1.0}}, {"lr": "model.lr"}),
        ({"optimizer": {"lr": 1.0}, "model": {}}, {}),
        ({"model": {"batch_size": 8}, "data": {"batch_size": 8}}, {"batch_size": "data.batch_size"}),
        ({"model": {"network": {"init_scale": 1.0}}}, {"init_scale": "model.network.init_scale"}),
        ({"model": {"network": {"init_scale": None}}}, {"init_scale": "model.network.init_scale"}),
        (
            {"model": {"network": {"bias": 0.0, "activation": "relu"}}},
            {k: f"model.network.{k}" for k in ("bias", "activation")},
        ),
        # Whether there is a bias at all is another question than its first value.
        ({"model": {"network": {"bias": True}}}, {}),
        ({"data": {"normalize": False}}, {"normalize": "data.normalize"}),
        ({"data": {"normalize": "imagenet"}}, {}),
        ({"trainer": {"warmup_steps": 3}}, {"warmup_steps": "trainer.warmup_steps"}),
        ({"data": {"batch_size": "${nowhere}"}}, {"batch_size": "data.batch_size"}),
        (
            {"scheduler": {"milestones": [3]}, "model": {"scheduler": "${scheduler}"}},
            {"decay_epoch": "scheduler.milestones=[{}]"},
        ),
        ({"scheduler": {"milestones": [3]}, "model": {}}, {}),
        ({"callbacks": None}, {}),
    ],
)
def test_a_key_is_found_where_it_has_an_effect(config, expected):
    assert remedy_keys(OmegaConf.create(config)) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["scheduler=step"], "scheduler.step_size"),
        (["scheduler=cosine"], None),
        (["scheduler=none"], None),
        # Then the schedule counts optimizer steps, and an epoch would be taken for a step.
        (["scheduler=step", "model.scheduler_interval=step"], None),
    ],
)
def test_a_decay_is_named_where_it_counts_epochs(overrides, expected):
    assert keys(*overrides).get("decay_epoch") == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "callbacks.lr_scaling.warmup_steps"),
        (["callbacks=[hessian]"], None),
        # From the tuned to the scaled rate, where both are the same, there is nothing to warm up.
        (["callbacks.lr_scaling.rule=none"], None),
        # The callback takes one of the two lengths.
        (["callbacks.lr_scaling.warmup_epochs=2"], None),
    ],
)
def test_a_warmup_is_named_where_there_is_one_to_set(overrides, expected):
    assert keys(*overrides).get("warmup_steps") == expected


def test_averaging_stands_behind_the_diagnosis_and_before_what_measures_the_mean_and_once():
    given = keys("callbacks=[hessian,lr_scaling,sharpness,diagnostics]")["averaging"]
    assert given == "callbacks=[lr_scaling,diagnostics,weight_averaging,hessian,sharpness]"
    assert keys("callbacks=[hessian,checkpoint]")["averaging"] == "callbacks=[weight_averaging,hessian,checkpoint]"
    assert "averaging" not in keys("callbacks=[weight_averaging,checkpoint]")
    assert "averaging" not in keys("callbacks=none")


def test_a_callback_that_the_command_line_adds_by_itself_is_not_named_as_a_group():
    given = ["callbacks=[checkpoint]", f"+callbacks.mine._target_={MINE}"]
    with initialize_config_module("lbtrain.conf", version_base="1.3"):
        cfg = compose("train", given, return_hydra_config=True)
    try:
        HydraConfig.instance().set_config(cfg)
        assert remedy_keys(cfg)["averaging"] == "callbacks=[weight_averaging,checkpoint]"
    finally:
        HydraConfig.instance().cfg = None


CHANGES = {
    "lr": 0.0123456,
    "momentum": 0.9,
    "batch_size": 64,
    "reduction": "mean",
    "gradient_clip_val": 0.5,
    "warmup_steps": 120,
    "decay_epoch": 20,
    "averaging": True,
}


def test_every_remedy_is_a_valid_override_that_arrives():
    given = ["scheduler=step", "callbacks=[lr_scaling,checkpoint]"]
    names = Names(keys(*given), rate_factor=4.0)
    overrides = names.overrides(Remedy("all at once", CHANGES))
    assert len(overrides) == len(CHANGES) == len(names.keys)
    assert len(OverridesParser.create().parse_overrides(overrides)) == len(overrides)
    cfg = composed(given[0], *overrides)
    validate(cfg)
    assert (cfg.optimizer.lr, cfg.optimizer.momentum, cfg.data.batch_size) == (0.0031, 0.9, 64)
    assert (cfg.model.reduction, cfg.callbacks.lr_scaling.warmup_steps, cfg.scheduler.step_size) == ("mean", 120, 20)
    assert list(cfg.callbacks) == ["lr_scaling", "weight_averaging", "checkpoint"]
    assert cfg.trainer.gradient_clip_val == 0.5


@pytest.mark.parametrize("rate", [3.0, 1e-7, 12345.6, 0.1])
def test_rates_of_any_size_are_read_back_to_two_digits(rate):
    (override,) = Names(keys()).overrides(Remedy("a rate", {"lr": rate}))
    assert composed(override).optimizer.lr == pytest.approx(rate, rel=0.05)


def test_milestones_are_a_list():
    (override,) = Names({"decay_epoch": "scheduler.milestones=[{}]"}).overrides(Remedy("later", {"decay_epoch": 12}))
    assert OverridesParser.create().parse_override(override).value() == [12]


def test_a_diagnosis_without_keys_gets_those_of_the_config_and_others_keep_theirs():
    bare, told, other = OptimizationDiagnostics(), OptimizationDiagnostics(keys={"lr": "rate"}), object()
    cfg = composed("callbacks=[diagnostics]")
    name_remedies([bare, told, other], cfg)
    assert bare.keys == remedy_keys(cfg)
    assert told.keys == {"lr": "rate"}


def test_an_old_lightning_is_told_of_when_weight_averaging_is_asked_for(monkeypatch):
    node = composed("callbacks=[weight_averaging]").callbacks.weight_averaging
    assert instantiate(node).should_update(step_idx=0)
    monkeypatch.delattr(_lightning._callbacks, "EMAWeightAveraging")
    monkeypatch.setattr(_lightning, "EMAWeightAveraging", _lightning._callback_since("EMAWeightAveraging", "2.6.0"))
    with pytest.raises(
        MisconfigurationException, match=r"EMAWeightAveraging is in Lightning 2.6.0 and later, and .* is"
    ):
        instantiate(node)


def test_a_fresh_start_forgets_an_earlier_diagnosis(tmp_path):
    (tmp_path / DIAGNOSIS_NAME).touch()
    leftovers.forget(tmp_path)
    assert not list(tmp_path.iterdir())
