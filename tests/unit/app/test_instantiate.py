import inspect
import subprocess
import sys
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from lbtrain import _lightning
from lbtrain.app import signatures
from lbtrain.app.instantiate import ConfigError, instantiate, instantiate_each, nearest, validate


class Ball:
    def __init__(self, rho=0.05, adaptive=False):
        if rho < 0:
            raise ValueError(f"rho must be at least 0, got {rho}")
        self.rho, self.adaptive = rho, adaptive


class Needy:
    def __init__(self, inner, sizes=(), **options):
        self.inner, self.sizes, self.options = inner, sizes, options


class Adam:
    """Stands for the optimizer of an old release."""

    def __init__(self, lr=0.1):
        self.lr = lr


Adam.__module__ = "torch.optim.adam"


class AbsentError(OSError):
    pass


def broken(path):
    raise AbsentError(2, "no such thing", path)


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    module = type(sys)("app_fakes")
    module.__dict__.update(Ball=Ball, Needy=Needy, Adam=Adam, broken=broken, limit=3)
    monkeypatch.setitem(sys.modules, "app_fakes", module)


def _cfg(text):
    return OmegaConf.create(text)


def _problems(text):
    with pytest.raises(ConfigError) as caught:
        validate(_cfg(text))
    first, *rest = str(caught.value).splitlines()
    assert first == f"{len(rest)} problem{'s' * (len(rest) > 1)} in the config; nothing was started:"
    return [line.strip() for line in rest]


def test_right_config_passes():
    validate(_cfg("a: 1\nb: ${a}\ncallbacks: {sam: {_target_: app_fakes.Ball, rho: 0.1}, off: null}\nlogger: {}"))


def test_typo_in_an_argument_is_answered_with_the_nearest():
    assert _problems("callbacks: {sam: {_target_: app_fakes.Ball, rh: 0.1}}") == [
        "callbacks.sam.rh: Ball has no argument 'rh'; did you mean 'rho'?"
    ]


def test_argument_like_no_other_is_answered_with_all():
    assert _problems("x: {_target_: app_fakes.Ball, zzz: 0.1}") == [
        "x.zzz: Ball has no argument 'zzz'; valid: rho, adaptive"
    ]


def test_targets_that_do_not_exist():
    assert _problems(
        "a: {_target_: app_fakes.Bal}\nb: {_target_: no_such_thing.A}\nc: {_target_: app_fakes.limit}"
    ) == [
        "a._target_: app_fakes has no 'Bal'; did you mean 'Ball'?",
        "b._target_: no module 'no_such_thing' is installed, needed for 'no_such_thing.A'",
        "c._target_: must name a class or a function, got 'app_fakes.limit'",
    ]


def test_nearest_looks_at_modules_that_are_not_imported():
    (problem,) = _problems("a: {_target_: lbtrain.app.modles.Classifier}")
    assert problem == "a._target_: lbtrain.app has no 'modles'; did you mean 'models'?"


def test_module_that_fails_to_import_says_why(tmp_path, monkeypatch):
    (tmp_path / "halfway.py").write_text("import not_installed_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    (problem,) = _problems("a: {_target_: halfway.A}")
    assert "halfway, needed for 'halfway.A', does not import: No module named 'not_installed_at_all'" in problem


def test_missing_values_and_broken_references_are_named_once():
    assert _problems("a: {b: [1, '???']}\nc: ${a.b[1]}\nd: ${nowhere.x}") == [
        "a.b.1: value missing (???); give it as a.b.1=VALUE",
        "d: cannot resolve ${nowhere.x}: Interpolation key 'nowhere.x' not found",
    ]


def test_reference_to_the_running_job_is_no_problem_outside_of_it():
    validate(_cfg("a: ${hydra:runtime.output_dir}\ncallbacks: {x: {_target_: app_fakes.Ball, rho: '${a}'}}"))


def test_required_arguments():
    assert _problems("a: {_target_: app_fakes.Needy, sizes: [1]}") == [
        "a: Needy needs 'inner'; give a.inner, or write _partial_: true when code gives it later"
    ]
    validate(_cfg("a: {_target_: app_fakes.Needy, _partial_: true}"))
    validate(_cfg("a: {_target_: app_fakes.Needy, _args_: [1]}"))


def test_optimizer_of_another_app_may_get_its_parameters_from_code():
    sgd = "{_target_: torch.optim.SGD, lr: 1}"
    text = f"model: {{_target_: app_fakes.Needy, inner: 1, _recursive_: false, optimizer: {sgd}}}"
    validate(_cfg(text))
    own = text + "\ndata: {}\ntrainer: {}\ncallbacks: {}\nobjective: x\noptimizer: " + sgd
    assert _problems(own) == [
        "optimizer: SGD needs 'params'; give optimizer.params, or write _partial_: true when code gives it later"
    ]


def test_targets_that_take_anything_do():
    validate(_cfg("a: {_target_: app_fakes.Needy, inner: 1, whatever: 2}"))


def test_unknown_key_at_the_top():
    text = "data: {}\nmodel: {}\ntrainer: {}\ncallbacks: {}\nobjective: x\n"
    assert _problems(text + "trianer: {max_epochs: 3}") == [
        "trianer: unknown key; did you mean 'trainer'? "
        "(a key of your own is welcome once some value refers to it as ${trianer})"
    ]
    validate(_cfg(text + "scale: 3\nseed: ${scale}"))
    validate(_cfg("anything: {goes: 1}"))


def test_group_that_hydra_did_not_find():
    assert _problems("callbacks: [sam, hessian]") == [
        "callbacks: got the list ['sam', 'hessian'] where named nodes belong; group not found: is hydra.searchpath set?"
    ]
    assert "got the value 'csv'" in _problems("logger: csv")[0]


def test_values_for_a_callback_that_is_not_composed():
    assert _problems("callbacks: {sam: {_target_: app_fakes.Ball}, smm: {rho: 1}}") == [
        "callbacks.smm: no _target_ here; add it to the group, as callbacks=[...,smm], or drop these values with "
        "~callbacks.smm; did you mean 'sam'?"
    ]


def test_callbacks_check_their_own_arguments_and_all_problems_are_listed():
    assert _problems("callbacks: {sam: {_target_: app_fakes.Ball, rho: -1}}\na: ???") == [
        "a: value missing (???); give it as a=VALUE",
        "callbacks.sam: rho must be at least 0, got -1",
    ]


@pytest.mark.parametrize("text", ["callbacks: {_target_: app_fakes.Ball}", "callbacks: [{_target_: app_fakes.Ball}]"])
def test_other_ways_to_write_callbacks(text):
    validate(_cfg(text))
    (ball,) = instantiate_each(_cfg(text).callbacks)
    assert ball.rho == 0.05


def test_lists_and_mappings_arrive_as_plain_python():
    made = instantiate(_cfg("a: {_target_: app_fakes.Needy, inner: {b: [1]}, sizes: [1, 2]}").a)
    assert (type(made.inner), type(made.inner["b"]), type(made.sizes)) == (dict, list, list)


def test_objects_given_in_code_are_passed_as_they_are():
    given = [object()]
    made = instantiate(_cfg("n: 4\na: {_target_: app_fakes.Needy, sizes: ['${n}']}").a, inner=given)
    assert made.inner is given
    assert made.sizes == [4]


def test_partials():
    node = _cfg("a: {_target_: app_fakes.Ball, _partial_: true, rho: 1}").a
    assert instantiate(node)(adaptive=True).adaptive
    made = instantiate(node, rho=2)
    assert isinstance(made, partial)
    assert made().rho == 2


def test_nothing_gives_nothing():
    assert instantiate(None) is None
    assert instantiate_each(None) == []
    assert [b.rho for b in instantiate_each(_cfg("{a: {_target_: app_fakes.Ball, rho: 2}, b: null}"))] == [2]


@pytest.mark.parametrize("kwargs", [{}, {"rho": -2}])
def test_errors_of_a_constructor_keep_their_type_and_name_the_key(kwargs):
    cfg = _cfg("callbacks: {sam: {_target_: app_fakes.Ball, rho: -2}}")
    with pytest.raises(ValueError, match=r"^rho must be at least 0, got -2 \(config key callbacks\.sam\)$"):
        instantiate(cfg.callbacks.sam, **kwargs)


def test_errors_below_a_node_name_their_own_key():
    cfg = _cfg("x: {y: {_target_: app_fakes.Needy, inner: {_target_: app_fakes.Ball, rho: -2}}}")
    with pytest.raises(ValueError, match=r"\(config key x\.y\.inner\)$"):
        instantiate(cfg.x.y)


def test_errors_with_other_contents_stay_whole():
    with pytest.raises(AbsentError) as caught:
        instantiate(_cfg("a: {_target_: app_fakes.broken, path: p}").a)
    assert (caught.value.errno, caught.value.filename) == (2, "p")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: 1}", "a: cannot build {'b': 1}; a mapping with a _target_ is needed"),
        ("a: {_target_: os.system, command: ls}", "^a: "),
        ("a: {_target_: app_fakes.Needy}", "inner"),
    ],
)
def test_nodes_that_cannot_be_built(text, message):
    with pytest.raises((ConfigError, TypeError), match=message):
        instantiate(_cfg(text).a)


def test_argument_of_a_later_release_is_left_out_at_its_default_only():
    text = "model: {_target_: app_fakes.Needy, inner: {_target_: app_fakes.Adam, lr: 1, decoupled_weight_decay: false}}"
    validate(_cfg(text))
    assert instantiate(_cfg(text).model).inner.lr == 1
    assert _problems(text.replace("false", "true")) == [
        "model.inner.decoupled_weight_decay: Adam takes 'decoupled_weight_decay' from torch 2.7 on; "
        "upgrade, or set it to its default, False"
    ]


def test_later_arguments_have_the_defaults_of_the_installed_release():
    for (owner, name), later in signatures.NEWER.items():
        target = getattr(_lightning, owner, None) or getattr(torch.optim, owner)
        parameter = inspect.signature(target).parameters.get(name)
        assert parameter is None or parameter.default == later.default or parameter.default is later.default


def test_nearest():
    assert nearest("RHO", ["rho", "eps"]) == "rho"
    assert nearest("zzz", ["rho", "eps"]) is None
    assert nearest("x", []) is None


def test_reading_a_config_needs_no_torch():
    code = "import sys, lbtrain.app.instantiate, lbtrain.app.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_callbacks_that_climb_are_refused_before_anything_starts():
    cfg = OmegaConf.create({
        "callbacks": {
            "sam": {"_target_": "lbtrain.callbacks.sam.SAM"},
            "gsam": {"_target_": "lbtrain.callbacks.gsam.GSAM"},
        }
    })
    with pytest.raises(ConfigError, match="callbacks: SAM and GSAM each replace the gradient .* keep one of them"):
        validate(cfg)
