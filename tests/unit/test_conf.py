"""The YAMLs show every argument of their classes, say what each means, and compose."""

import inspect
import itertools
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from lbtrain.app.config import flat
from lbtrain.app.instantiate import ConfigError, instantiate, validate
from lbtrain.app.signatures import HYDRA_KEYS, NEWER, locate
from lbtrain.functional.scaling import auto_rule
from lbtrain.study.axes import rate_label

CONF = Path(__file__).parents[2] / "conf"
YAMLS = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))
# What train.py and the model pass themselves.
FROM_CODE = {"Trainer": {"callbacks", "logger"}, "Optimizer": {"params"}, "LRScheduler": {"optimizer"}}


def _nodes(node, path):
    if isinstance(node, DictConfig) and "_target_" in node:
        yield path, node
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            value = node[key]
            if isinstance(value, (DictConfig, ListConfig)):
                yield from _nodes(value, f"{path}.{key}")


NODES = [(path, node) for name in YAMLS for path, node in _nodes(OmegaConf.load(CONF / name), name)]


def _options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize(("path", "node"), NODES, ids=[path for path, _ in NODES])
def test_node_shows_every_argument(path, node):
    target = locate(node["_target_"])
    parameters = {
        name: p
        for name, p in inspect.signature(target).parameters.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    ancestors = {kind.__name__ for kind in inspect.getmro(target)} if isinstance(target, type) else set()
    from_code = set().union(*(names for kind, names in FROM_CODE.items() if kind in ancestors))
    shown = set(node) - HYDRA_KEYS
    later = {name for owner, name in NEWER if owner in ancestors}
    assert shown - later == set(parameters) - from_code - later


def _needs_comment(line):
    # Headings, entries of lists and comments speak for themselves.
    text = line.strip()
    return bool(text) and not text.startswith(("#", "- ", "[")) and not text.endswith(":")


@pytest.mark.parametrize("name", [name for name in YAMLS if not name.startswith("hydra/")])
def test_every_value_has_a_comment(name):
    lines = (CONF / name).read_text().splitlines()
    assert not [line for line in lines if _needs_comment(line) and "  # " not in line]


@pytest.mark.parametrize("name", [path for path in YAMLS if path.startswith(("callbacks/", "logger/"))])
def test_callbacks_and_loggers_have_one_key_named_as_the_file(name):
    node = OmegaConf.load(CONF / name)
    stem = Path(name).stem
    assert list(node) == ([] if stem == "none" else [stem])


def _compose(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


CHOICES = [
    f"{group}={option}"
    for group in ("data", "model", "optimizer", "scheduler", "trainer", "experiment", "debug", "callbacks", "logger")
    for option in _options(group)
]


@pytest.mark.parametrize("choice", ["seed=0", *CHOICES])
def test_every_choice_composes_and_is_valid(choice):
    validate(_compose(choice))


# Tuned on the digits at the base batch of 16.
RATES = {"sgd": 0.01, "momentum": 0.01, "nesterov": 0.01, "lars": 1.0, "lamb": 0.003}


@pytest.mark.parametrize("name", _options("optimizer"))
def test_optimizers_are_built_as_their_yaml_says(name):
    node = _compose(f"optimizer={name}").optimizer
    optimizer = instantiate(node)([torch.nn.Parameter(torch.zeros(2))])
    group = optimizer.param_groups[0]
    assert group["lr"] == RATES.get(name, 0.001)
    assert group.get("momentum", 0) == (0.9 if name in {"momentum", "nesterov", "lars"} else 0)
    assert group.get("nesterov", False) == (name == "nesterov")


@pytest.mark.parametrize("model", ["convnet", "mlp", "linear"])
@pytest.mark.parametrize("scheduler", ["none", "cosine", "step"])
def test_models_are_built_with_optimizer_and_scheduler(model, scheduler):
    cfg = _compose(f"model={model}", f"scheduler={scheduler}", "optimizer=adam")
    described = instantiate(cfg.model).configure_optimizers()
    assert type(described["optimizer"]).__name__ == "Adam"
    assert ("lr_scheduler" in described) == (scheduler != "none")


def test_callbacks_compose_by_name():
    assert list(_compose("callbacks=[sam,hessian]").callbacks) == ["sam", "hessian"]
    assert not _compose("callbacks=none").callbacks


def _study_jobs():
    params = OmegaConf.load(CONF / "experiment" / "surlemont2022.yaml").hydra.sweeper.params
    parser = OverridesParser.create()
    axes = []
    for key, text in params.items():
        override = parser.parse_override(f"{key}={text}")
        axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
    return list(itertools.product(*axes))


def test_study_is_two_optimizers_two_updates_two_rates_four_batches():
    jobs = _study_jobs()
    assert len(jobs) == len(set(jobs)) == 32
    laws = set()
    for job in jobs:
        cfg = _compose("experiment=surlemont2022", *job)
        scaling, scaled = cfg.callbacks.lr_scaling, cfg.scaling == "scaled"
        laws.add((cfg.optimizer._target_.rsplit(".", 1)[1], cfg.optimizer.lr, cfg.scaling, scaling.rule))
        assert scaling.warmup_epochs == (10.0 if scaled else 0.0)
        assert (scaling.base_batch_size, cfg.trainer.max_epochs) == (16, 30)
        assert cfg.callbacks.get("sam", {}).get("rho", 0.05) == 0.05
    assert laws == {
        ("SGD", 0.01, "fixed", "none"),
        ("SGD", 0.01, "scaled", "auto"),
        ("Adam", 0.001, "fixed", "none"),
        ("Adam", 0.001, "scaled", "auto"),
    }
    assert sum("sam]" in part for job in jobs for part in job) == 16


LAWS = {"sgd": "linear", "momentum": "linear", "nesterov": "linear", "lars": "linear"}


@pytest.mark.parametrize("optimizer", _options("optimizer"))
def test_study_has_a_law_for_every_optimizer(optimizer):
    cfg = _compose("experiment=surlemont2022", f"optimizer={optimizer}", "scaling=scaled")
    assert cfg.callbacks.lr_scaling.rule == "auto"
    built = instantiate(cfg.optimizer)([torch.nn.Parameter(torch.zeros(2))])
    assert auto_rule(built) == LAWS.get(optimizer, "sqrt")
    assert rate_label(flat(cfg)) == LAWS.get(optimizer, "sqrt")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
        (["optimizer=adam", "optimizer.betas=[0.9,1.5]"], "optimizer: Invalid beta parameter at index 1: 1.5"),
        (["optimizer=lamb", "optimizer.weight_decay=-1"], "optimizer: .*weight_decay"),
        (["ckpt_path=runs/nothing.ckpt"], "ckpt_path: there is no checkpoint 'runs/nothing.ckpt'; give the path"),
    ],
)
def test_what_would_end_a_run_as_it_starts_is_found_before(overrides, problem):
    if "optimizer=lamb" in overrides:
        pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ConfigError, match=problem):
        validate(_compose(*overrides))


@pytest.mark.parametrize("path", ["last", "s3://bucket/last.ckpt", str(CONF / "train.yaml")])
def test_a_checkpoint_that_may_be_there_is_left_to_lightning(path):
    validate(_compose(f"ckpt_path={path}"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"keskar": {}, "sam": {}, "average": {}, "adaptive": {}}),
        (["callbacks.sharpness.measures=[sam]"], {"sam": {}}),
        (["callbacks.sharpness.measures={sam:{rho:0.1}}"], {"sam": {"rho": 0.1}}),
    ],
)
def test_measures_of_sharpness_may_be_a_list_or_a_mapping(given, expected):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["callbacks=[sharpness]", *given])
    assert instantiate(cfg.callbacks.sharpness).measures == expected
