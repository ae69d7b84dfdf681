"""The argument `measures`: lists, mappings, names of one's own, and answers to mistakes."""

import math

import pytest
from omegaconf import OmegaConf

from lbtrain import Sharpness
from lbtrain.app.instantiate import instantiate
from lbtrain.callbacks._sharpness_choice import read
from lbtrain.callbacks._sharpness_kinds import KINDS


def plain(wanted):
    return [(w.name, w.kind, w.of_batches, dict(w.arguments)) for w in wanted]


@pytest.mark.parametrize(
    "measures",
    [
        ["keskar", {"sam": {"rho": 0.1}}],
        {"keskar": {}, "sam": {"rho": 0.1}},
        {"keskar": None, "sam": {"rho": 0.1}},
        (name for name in ("keskar", {"sam": {"rho": 0.1}})),
    ],
)
def test_lists_and_mappings_say_the_same(measures):
    assert plain(read(measures)) == [("keskar", "keskar", False, {}), ("sam", "sam", False, {"rho": 0.1})]


def test_one_name_needs_no_list():
    assert plain(read("sam")) == plain(read(["sam"]))
    assert Sharpness("m_sam").measures == {"m_sam": {}}


def test_a_name_of_ones_own_and_the_prefix_for_batches():
    found = read(["m_adaptive_inf", {"wide": {"kind": "m_sam", "rho": 1}}])
    assert plain(found) == [("m_adaptive_inf", "adaptive_inf", True, {}), ("wide", "sam", True, {"rho": 1})]


def test_a_config_arrives_as_written():
    node = OmegaConf.create({"_target_": "lbtrain.Sharpness", "measures": ["keskar", {"sam": {"p": math.inf}}]})
    assert instantiate(node).measures == {"keskar": {}, "sam": {"p": math.inf}}


def test_the_definitions_have_the_defaults_of_their_papers():
    shown = {name: kind.arguments | dict(kind.preset) for name, kind in KINDS.items()}
    assert shown["keskar"] == {"eps": 1e-3, "num_steps": 10, "num_starts": 1}
    assert shown["keskar_subspace"] == {"eps": 1e-3, "dim": 100, "num_steps": 10, "num_starts": 1}
    assert shown["sam"] == {"rho": None, "p": 2, "num_steps": 10}
    assert shown["sam_one_step"] == {"rho": None, "p": 2, "num_steps": 1}
    assert shown["sam_inf"] == {"rho": None, "p": math.inf, "num_steps": 10}
    assert shown["average"] == {"rho": 0.05, "p": 2, "num_pairs": 10}
    assert shown["adaptive"] == {"rho": None, "p": 2, "num_steps": 20}
    assert shown["adaptive_inf"] == {"rho": None, "p": math.inf, "num_steps": 20}
    assert shown["adaptive_kwon"] == {"rho": None, "p": 2, "eta": 0.01, "num_steps": 20}
    assert shown["adaptive_average"] == {"rho": 0.1, "p": 2, "num_pairs": 10}
    assert shown["scaled_hessian"] == {"tol": 1e-3, "max_matvecs": 300}
    assert shown["relative_flatness"] == {"layer": None, "num_probes": 100}


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        (["kesker"], "there is no measure 'kesker'; did you mean 'keskar'?"),
        (["m_average"], "there is no measure 'm_average'; did you mean"),
        (["xyz"], "there is no measure 'xyz'; valid: keskar, keskar_subspace, sam"),
        ({"mine": {"kind": "smm"}}, "there is no measure 'smm'; did you mean 'sam'?"),
        ({"sam": {"roh": 0.1}}, "sam takes no argument 'roh'; did you mean 'rho'?"),
        ({"sam_one_step": {"num_steps": 3}}, "sam_one_step takes no argument 'num_steps'; valid: rho, p"),
        ({"keskar": {"generator": 1}}, "keskar takes no argument 'generator'"),
        ({"keskar": {"eps": 0}}, "eps of keskar must be positive and finite, got 0"),
        ({"keskar": {"eps": None}}, "eps of keskar must be positive and finite, got None"),
        ({"sam": {"rho": True}}, "rho of sam must be positive and finite, got True"),
        ({"sam": {"rho": math.inf}}, "rho of sam must be positive and finite, got inf"),
        ({"adaptive": {"num_steps": 1.5}}, "num_steps of adaptive must be a whole number, at least 1, got 1.5"),
        ({"keskar": {"num_starts": 0}}, "num_starts of keskar must be a whole number, at least 1, got 0"),
        ({"average": {"num_pairs": "3"}}, "num_pairs of average must be a whole number, at least 1, got '3'"),
        ({"average": {"p": 1}}, "p of average must be 2 or infinity"),
        ({"average": {"p": [2]}}, "p of average must be 2 or infinity"),
        ({"adaptive_kwon": {"eta": -1}}, "eta of adaptive_kwon must be at least 0 and finite, got -1"),
        ({"scaled_hessian": {"max_matvecs": 1}}, "max_matvecs of scaled_hessian must be a whole number of products"),
        ({"relative_flatness": {"layer": 3}}, "layer of relative_flatness must be the name of a layer"),
        (["sam", "sam"], "measures has 'sam' twice: give one of them a name of its own, with kind: sam"),
        ({"a b": {"kind": "sam"}}, "'a b' cannot name a measure"),
        ({"sam_stderr": {"kind": "sam"}}, "'sam_stderr' cannot name a measure"),
        ([], "measures is empty: name at least one of keskar"),
        ("smm", "there is no measure 'smm'; did you mean 'sam'?"),
        ({"sam": {"rho": "x"}}, "rho of sam must be positive and finite, got 'x'"),
        (3, r"measures must be a list of names or a mapping, got 3; for example \['sam'\]"),
        ([3], "an entry of measures must be a name, or a name with a mapping of arguments, got 3"),
        ([{"sam": 0.1}], "an entry of measures must be a name, or a name with a mapping of arguments"),
        ([{"sam": {}, "keskar": {}}], "an entry of measures must be a name"),
    ],
)
def test_mistakes_are_answered(measures, message):
    with pytest.raises(ValueError, match=message):
        Sharpness(measures)


@pytest.mark.parametrize("arguments", [{"rho": None}, {"p": 2.0}, {"p": math.inf}, {"num_steps": 1}])
def test_what_means_the_default_or_is_at_the_edge_is_taken(arguments):
    assert read({"sam": arguments})[0].arguments == arguments


def test_probes_may_be_as_many_as_an_exact_sum_needs():
    assert read({"relative_flatness": {"num_probes": None, "layer": None}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number of samples"),
        ({"graph_memory_mb": -1}, "graph_memory_mb must be at least 0, got -1"),
        ({"normalize_logits": 1}, "normalize_logits must be True or False, got 1"),
        ({"every_n_steps": 0}, "every_n_steps must be a whole number of steps"),
    ],
)
def test_other_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sharpness(**arguments)
