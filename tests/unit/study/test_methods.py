"""Which method a run trains with, held against the callbacks and their YAMLs; and what a sweep makes of it."""

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import lbtrain
from lbtrain.app.config import flat
from lbtrain.app.signatures import locate
from lbtrain.study.axes import sam_rho
from lbtrain.study.conditions import cells, label
from lbtrain.study.families import families
from lbtrain.study.left_out import repeated
from lbtrain.study.load import load_sweep
from lbtrain.study.methods import DEFAULTS, Variant, arguments, members, method_label
from lbtrain.study.pages import notes
from lbtrain.study.settings import extra_columns, method_options, other_keys
from tests.unit.study.known_sweep import METHODS, family_records, make_record, with_method

YAMLS = sorted((Path(__file__).parents[3] / "conf" / "callbacks").glob("*.yaml"))
PLAIN = make_record("Adam", "none", 64, sam=False)
SAM = {"callbacks.sam._target_": "lbtrain.callbacks.sam.SAM", "callbacks.sam.rho": 0.05}
GSAM = {"callbacks.mine._target_": "lbtrain.callbacks.gsam.GSAM", "callbacks.mine.rho": 0.1}


def climbs(target: str) -> bool:
    """Whether this is a class of SAM's family."""
    return "Climber" in {kind.__name__ for kind in inspect.getmro(locate(target))}


@pytest.mark.parametrize("path", YAMLS, ids=[path.stem for path in YAMLS])
def test_the_yamls_of_the_family_and_no_others_have_a_method(path: Path) -> None:
    node = OmegaConf.load(path)
    config = flat(OmegaConf.create({"callbacks": node}))
    if any(climbs(entry["_target_"]) for entry in node.values()):
        usual = {key: method for method, (key, *_) in METHODS.items()}
        assert (method_label(config), sam_rho(config)) == (usual[path.stem], node[path.stem]["rho"])
        assert set(arguments(config)) == set(node[path.stem]) - {"_target_", "rho", "adaptive", "p", "exclude", "only"}
    else:
        assert (members(config), method_label(config), sam_rho(config)) == ({}, "", 0.0)


def test_what_a_config_leaves_out_is_as_the_callback_has_it() -> None:
    family = {name for name in lbtrain.__all__ if climbs(f"lbtrain.{name}")}
    assert set(DEFAULTS) == family
    for name in family:
        parameters = inspect.signature(getattr(lbtrain, name)).parameters.values()
        # No list is an argument without a value.
        defaults = {p.name: p.default for p in parameters if p.name not in {"exclude", "only"}}
        assert {key: repr(value) for key, value in DEFAULTS[name].items()} == {k: repr(v) for k, v in defaults.items()}
    bare = {"callbacks.mine._target_": "lbtrain.LookSAM"}
    assert (sam_rho(bare), arguments(bare)["alpha"]) == (0.1, 0.7)


@pytest.mark.parametrize(
    ("config", "method", "rho"),
    [
        ({}, "", 0.0),
        ({"callbacks.sam": None}, "", 0.0),
        (SAM, "SAM", 0.05),
        (SAM | {"callbacks.sam.rho": 0.0}, "SAM", 0.0),
        ({"callbacks.sam.rho": 0.05}, "SAM", 0.05),  # a record of before
        ({"callbacks.sam.rho": 0.5, "callbacks.sam.adaptive": True}, "ASAM", 0.5),
        (SAM | {"callbacks.sam.p": float("inf")}, "SAM p=inf", 0.05),
        (SAM | {"callbacks.sam.p": float("inf"), "callbacks.sam.adaptive": True}, "ASAM p=inf", 0.05),
        (GSAM, "GSAM", 0.1),
        (GSAM | {"callbacks.mine.adaptive": True}, "adaptive GSAM", 0.1),
        ({"callbacks.mine._target_": "lbtrain.GSAM"}, "GSAM", 0.05),
        ({"callbacks.mine._target_": "mine.BetterSAM", "callbacks.mine.rho": 2}, "BetterSAM", 2.0),
        ({"callbacks.mine._target_": "mine.code.SAM", "callbacks.mine.rho": 2}, "mine.SAM", 2.0),
        ({"callbacks.sam._target_": "mine.Flat", "callbacks.sam.rho": 0.1}, "Flat", 0.1),
        ({"callbacks.mine._target_": "mine.NotSAM"}, "", 0.0),  # a name alone says nothing
        ({"optimizer._target_": "pytorch_optimizer.SAM", "optimizer.rho": 0.05}, "", 0.0),
        (
            {"callbacks.sharpness._target_": "lbtrain.callbacks.sharpness.Sharpness", "callbacks.sharpness.rho": 1},
            "",
            0.0,
        ),
        (SAM | GSAM, "GSAM and SAM", 0.1),  # refused when training starts: a failed run
    ],
)
def test_method_and_radius(config: dict, method: str, rho: float) -> None:
    assert (method_label(config), sam_rho(config)) == (method, rho)


def test_arguments_do_not_depend_on_the_key_and_a_list_is_one() -> None:
    given = {"exclude.0": "biases", "exclude.1": "norms", "alpha": 0.2, "adaptive": False, "p": 2.0}
    one, other = ({f"callbacks.{key}.{name}": value for name, value in given.items()} for key in ("gsam", "mine"))
    one["callbacks.gsam._target_"] = other["callbacks.mine._target_"] = "lbtrain.GSAM"
    one["callbacks.gsam_too.alpha"] = 7
    assert arguments(one) == arguments(other)
    changed = {name: value for name, value in arguments(one).items() if DEFAULTS["GSAM"].get(name) != value}
    assert changed == {"exclude": "biases+norms", "alpha": 0.2}


def test_words_of_a_variant() -> None:
    plain, sam, gsam = Variant(), Variant("SAM", 0.05), Variant("GSAM", 0.05, (("alpha", "0.2"),))
    assert [v.words for v in (plain, sam, gsam)] == ["without SAM", "SAM rho 0.05", "GSAM rho 0.05, alpha 0.2"]
    assert [v.legend for v in (plain, sam, gsam)] == ["no SAM", "SAM 0.05", "GSAM 0.05, alpha 0.2"]
    assert [v.subject for v in (sam, gsam)] == ["SAM (rho 0.05)", "GSAM (rho 0.05, alpha 0.2)"]


def test_variants_are_sorted_from_plain_training_on() -> None:
    gsam = [Variant("GSAM", 0.05, (("alpha", alpha),)) for alpha in ("0.2", "0.4", "10")]
    order = [Variant(), Variant("GSAM", 0.0), Variant("SAM", 0.05), Variant("SAM", 0.1), Variant("ASAM", 0.01), *gsam]
    order.append(Variant("BetterSAM", 0.001))
    assert sorted(reversed(order), key=Variant.order) == order


def test_the_method_settles_the_keys_of_its_callback(write_sweep) -> None:
    table = load_sweep(write_sweep(family_records()))
    assert (other_keys(table), method_options(table)) == ([], {})
    assert list(table["method"].unique()) == ["", *METHODS]
    (family,) = families(table)
    assert family.name == "Adam"
    assert [variant.method for variant in family.variants] == ["", *METHODS]
    assert len(family.cells) == 4 * 9


def test_what_varies_within_a_method_is_its_own(write_sweep) -> None:
    seeds = [make_record("Adam", "none", 64, sam=False, seed=seed) for seed in (0, 1)]
    gsam = [with_method(run, "GSAM", alpha=alpha) for alpha in (0.2, 0.4) for run in seeds]
    table = load_sweep(write_sweep([PLAIN, with_method(PLAIN, "LookSAM"), *gsam]))
    assert (other_keys(table), method_options(table)) == ([], {"GSAM": ("alpha",)})
    assert extra_columns(table) == {"method.alpha": "alpha"}
    assert [len(cell.runs) for cell in cells(table).values()] == [1, 2, 2, 1]
    assert [label(c, cells(table)) for c in cells(table)] == [
        "without SAM",
        "GSAM rho 0.05, alpha 0.2",
        "GSAM rho 0.05, alpha 0.4",
        "LookSAM rho 0.1",  # whose alpha does not vary
    ]
    assert len(families(table)) == 1


def test_an_argument_that_goes_with_the_radius_is_no_setting_of_its_own(write_sweep) -> None:
    runs = [with_method(PLAIN, "SAM", rho=rho, eta=rho / 10) for rho in (0.05, 0.1)]
    assert method_options(load_sweep(write_sweep(runs))) == {}


def test_an_argument_and_another_setting_of_one_name_have_two_columns(write_sweep) -> None:
    runs = [with_method(PLAIN, "GSAM", alpha=alpha) for alpha in (0.2, 0.4)]
    runs = [replace(run, config=run.config | {"optimizer.alpha": a}) for run in runs for a in (0.9, 0.99)]
    names = extra_columns(load_sweep(write_sweep(runs)))
    assert names == {"config.optimizer.alpha": "alpha", "method.alpha": "method.alpha"}


def test_radius_0_is_plain_training_but_no_repeat_of_it(write_sweep) -> None:
    runs = [PLAIN, with_method(PLAIN, "SAM", rho=0.0), with_method(PLAIN, "GSAM", rho=0.0)]
    table = load_sweep(write_sweep(runs))
    assert [label(c, cells(table)) for c in cells(table)] == ["without SAM", "SAM rho 0", "GSAM rho 0"]
    assert not any("repeated" in note for note in notes(table))
    assert any("rho 0 trains as without it" in note for note in notes(table))


def test_one_method_under_two_keys_is_one_method(write_sweep) -> None:
    new = replace(with_method(PLAIN, "GSAM", key="mine"), started="2026-02-01T00:00:00+00:00")
    table = load_sweep(write_sweep([PLAIN, with_method(PLAIN, "GSAM"), new]))
    assert (other_keys(table), method_options(table)) == ([], {})
    assert [[run["run"] for run in cell.runs] for cell in cells(table).values()] == [["0"], ["2"]]
    assert [entry.words for entry in repeated(table)] == ["1: a newer run has the same settings and seed"]


def test_a_key_under_which_another_callback_stands_is_still_a_setting(write_sweep) -> None:
    noise = {"callbacks.mine._target_": "mine.Noise", "callbacks.mine.scale": 1.0}
    runs = [with_method(PLAIN, "GSAM", key="mine"), PLAIN, replace(PLAIN, config=PLAIN.config | noise)]
    assert other_keys(load_sweep(write_sweep(runs))) == ["callbacks.mine._target_"]


def test_records_of_before_are_sam(write_sweep) -> None:
    old, plain = make_record("Adam", "none", 64, sam=True), make_record("Adam", "none", 64, sam=False)
    new = with_method(plain, "SAM", every_n_steps=1, scope="rank")
    table = load_sweep(write_sweep([plain, old, new, with_method(plain, "SAM", every_n_steps=10)]))
    assert list(table["method"]) == ["", "SAM", "SAM", "SAM"]
    assert [c.sam.words for c in cells(table)] == [
        "without SAM",
        "SAM rho 0.05, every_n_steps 1",
        "SAM rho 0.05, every_n_steps 10",
    ]
