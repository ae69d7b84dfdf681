"""Dead and saturated units against closed form and against autograd."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from lbtrain.functional._activations import ENDS, KINDS, can_die, flat, silent
from lbtrain.functional._histogram import BINS, histogram
from lbtrain.functional.activity import activity_findings, unit_activity
from tests.problems import generator

NAN, INF = math.nan, math.inf
SHARE = 0.05


def columns(*values):
    """Samples below each other, one unit each column."""
    return torch.tensor(values, dtype=torch.float32).T


def numbers(units=64, dead=0, saturated=0, kind="relu"):
    return SimpleNamespace(kind=kind, units=units, dead=dead, saturated=saturated)


def counted(outputs, kind, **options):
    return unit_activity(outputs, kind, **options).dead_and_saturated()


# --- one layer -------------------------------------------------------------------------------------------------------


def test_a_relu_unit_is_dead_only_if_it_is_zero_on_every_sample():
    outputs = columns([0, 0, 0], [0, 1e-6, 0], [1, 2, 3])
    assert counted(outputs, "relu") == (1, 0)


def test_a_channel_is_dead_only_if_it_is_zero_at_every_position():
    outputs = torch.zeros(4, 3, 5, 5)
    outputs[2, 1, 4, 4] = 1.0
    assert counted(outputs, "relu") == (2, 0)
    assert unit_activity(outputs, "relu").positions == 100


@pytest.mark.parametrize(("shape", "dim", "units"), [((4, 7), None, 7), ((4, 5, 7), None, 7), ((4, 7, 5), -2, 7)])
def test_the_units_of_fewer_dimensions_are_in_the_last_one_unless_told(shape, dim, units):
    activity = unit_activity(torch.zeros(shape), "relu", unit_dim=dim)
    assert activity.units == units
    assert activity.dead_and_saturated() == (units, 0)


def test_units_at_an_end_on_nearly_all_samples_are_saturated_and_not_dead():
    outputs = torch.full((100, 4), 0.5)
    outputs[:, 0] = 1.0
    outputs[:95, 1] = 0.0  # just enough
    outputs[:94, 2] = 1.0  # one too few
    assert counted(outputs, "sigmoid") == (0, 2)
    assert unit_activity(outputs, "sigmoid").dead_and_saturated(sample_share=0.94) == (0, 3)


def test_a_unit_that_is_at_both_ends_in_turn_is_saturated():
    assert counted(columns([1, -1, 1, -1], [0, 0, 0, 0]), "tanh") == (0, 1)


def test_a_relu6_unit_dies_below_and_saturates_above():
    assert counted(columns([0, 0], [6, 6], [0, 6], [3, 6]), "relu6") == (1, 1)


def test_leaky_units_have_no_end():
    assert counted(torch.full((8, 3), -100.0), "leaky_relu") == (0, 0)


def test_values_that_are_not_finite_are_neither():
    assert counted(columns([NAN, NAN], [INF, INF], [-INF, -INF]), "relu") == (1, 0)  # relu never gives -inf
    assert counted(columns([NAN, NAN]), "sigmoid") == (0, 0)


def test_batches_add_up_dead_on_all_or_not_at_all():
    first, second = columns([0, 0], [0, 0], [1, 0]), columns([0, 0], [5, 0], [0, 0])
    activity = unit_activity(second, "relu", before=unit_activity(first, "relu"))
    assert (activity.positions, activity.dead_and_saturated()) == (4, (1, 0))
    assert sum(activity.histogram.counts) == 12


def test_other_units_cannot_be_added():
    with pytest.raises(ValueError, match="before must be of 3 relu units, got 2 relu units"):
        unit_activity(torch.zeros(4, 3), "relu", before=unit_activity(torch.zeros(4, 2), "relu"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: unit_activity(torch.zeros(4), "relu"), "outputs must have samples and units"),
        (lambda: unit_activity(torch.zeros(4, 2), "gelu"), "inputs must be given for gelu"),
        (lambda: unit_activity(torch.zeros(4, 2), "relu", derivative_share=0.0), "derivative_share must be a share"),
        (lambda: unit_activity(torch.zeros(4, 2), "relu").dead_and_saturated(sample_share=2), "sample_share must be"),
        (lambda: activity_findings({}, 1, dead_share=0), "dead_share must be a share"),
    ],
)
def test_arguments_out_of_range_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        given()


FUNCTIONS = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": functional.hardsigmoid,
    "hardtanh": functional.hardtanh,
    "elu": functional.elu,
    "celu": functional.celu,
    "selu": functional.selu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "hardswish": functional.hardswish,
}
# The largest derivative, on whose scale the share is; selu and elu: just below 0, where their flat side begins.
LARGEST = {"sigmoid": 0.25, "hardsigmoid": 1 / 6, "selu": -ENDS["selu"][0]}


def test_every_kind_is_compared_with_autograd():
    assert set(FUNCTIONS) == KINDS


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("share", [0.05, 0.01])
def test_activations_are_flat_where_autograd_finds_no_derivative(kind, share):
    inputs = torch.linspace(-12.02, 12.01, 4001, dtype=torch.float64, requires_grad=True)
    outputs = FUNCTIONS[kind](inputs)
    (derivative,) = torch.autograd.grad(outputs.sum(), inputs)
    none = derivative.abs() < share * LARGEST.get(kind, 1.0)
    found = flat(kind, outputs, share, None)
    found = torch.zeros(4001, dtype=torch.bool) if found is None else found
    if can_die(kind):
        found = found | silent(kind, outputs, inputs, share)
    crossing = torch.zeros(4001, dtype=torch.bool)  # smooth ones pass 0 once on their way down, without staying
    if kind in {"gelu", "silu", "mish", "hardswish"}:
        crossing = none & (inputs > -2.2)
    assert found.any() or kind == "leaky_relu"
    assert torch.equal(found, none & ~crossing)


def test_ends_can_be_others():
    assert counted(torch.full((4, 2), 3.0), "hardtanh", ends=(-3.0, 3.0)) == (0, 2)
    assert counted(torch.full((4, 2), 1.0), "hardtanh", ends=(-3.0, 3.0)) == (0, 0)
    outputs = functional.elu(torch.full((4, 2), -9.0), alpha=0.5)
    assert counted(outputs, "elu", ends=(-0.5, None)) == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_counted_too(dtype):
    assert counted(torch.sigmoid(torch.full((4, 2), 30.0)).to(dtype), "sigmoid") == (0, 2)
    assert counted(torch.zeros(4, 2, dtype=dtype), "relu") == (2, 0)


def test_nothing_of_a_graph_is_held():
    inputs = torch.randn(4, 3, generator=generator(), requires_grad=True)
    activity = unit_activity(functional.gelu(inputs), "gelu", inputs=inputs)
    assert not activity.idle.requires_grad


# --- histograms ------------------------------------------------------------------------------------------------------


def test_a_histogram_agrees_with_counting():
    values = torch.rand(1000, generator=generator()) * 4 - 1
    found = histogram(values)
    assert len(found.counts) == BINS
    assert len(found.edges) == BINS + 1
    assert sum(found.counts) == 1000
    for i in (0, 17, 39):
        inside = (values >= found.edges[i]) & (values < found.edges[i + 1])
        assert abs(found.counts[i] - int(inside.sum())) <= 1  # a value on an edge, in float32


def test_a_histogram_widens_by_doubling_and_forgets_nothing():
    first = histogram(torch.linspace(0, 1, 400))
    both = histogram(torch.tensor([2.5, -0.7]), first)
    assert (both.edges[0], both.edges[-1]) == (-4.0, 4.0)
    assert sum(both.counts) == 402
    assert sum(both.counts[20:25]) == 400
    assert both.counts[16] == both.counts[32] == 1


def test_known_limits_are_kept():
    found = histogram(torch.full((10,), 0.5), limits=(0.0, 1.0))
    assert (found.edges[0], found.edges[-1], sum(found.counts)) == (0.0, 1.0, 10)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-30, 1e30])
def test_one_value_alone_has_a_histogram(value):
    found = histogram(torch.full((5, 2), value))
    assert sum(found.counts) == 10
    assert all(a < b for a, b in zip(found.edges, found.edges[1:], strict=False))


def test_values_that_are_not_finite_are_left_out_of_a_histogram():
    found = histogram(torch.tensor([0.0, NAN, 1.0, INF, -INF]))
    assert (sum(found.counts), found.edges[0], found.edges[-1]) == (2, 0.0, 1.0)
    assert sum(histogram(torch.tensor([NAN])).counts) == 0
    assert sum(histogram(torch.zeros(0, 3)).counts) == 0
    assert histogram(torch.tensor([NAN]), found) == found


@pytest.mark.parametrize("shape", [(2**8, 2**10), (2**10, 2**8), (3**5, 2**10)])
def test_of_many_values_a_part_is_counted_that_has_all_units_and_all_samples(shape):
    for values in (torch.arange(shape[0])[:, None].expand(shape), torch.arange(shape[1])[None].expand(shape)):
        found = histogram(values.float())
        assert 2**11 < sum(found.counts) <= 2**12
        assert max(found.counts) - min(found.counts) < 0.4 * max(found.counts)  # as even as the values


# --- the run ---------------------------------------------------------------------------------------------------------


def test_dead_units_are_named_with_layer_numbers_and_step():
    history = {
        "conv1": [(0, numbers(32)), (20, numbers(32, 3)), (40, numbers(32, 15)), (60, numbers(32, 15))],
        "conv2": [(0, numbers()), (20, numbers(dead=52)), (40, numbers(dead=61)), (60, numbers(dead=61))],
        "fc": [(0, numbers(10)), (20, numbers(10)), (40, numbers(10)), (60, numbers(10, 8))],
    }
    (finding,) = activity_findings(history, 256, rate=0.4)
    assert finding.problem == "dead units"
    assert finding.evidence == (
        "layer conv2: 61 of 64 relu units are dead on 256 samples, 52 of them since step 20; 1 other layer likewise"
    )
    assert finding.since == 20
    assert finding.severity == pytest.approx(61 / 64 / 0.8)
    assert finding.numbers == {"units": 64, "dead": 61, "saturated": 0, "samples": 256, "layers": 2}
    assert finding.remedies[0].changes == {"lr": 0.13}
    assert finding.remedies[1].changes == {"warmup_steps": 40}
    assert finding.figure == "diagnosis_units"


def test_units_dead_from_the_start_are_cured_by_the_start():
    (finding,) = activity_findings({"net.0": [(0, numbers(dead=64)), (5, numbers(dead=64))]}, 256, rate=0.1)
    assert finding.evidence == "layer net.0: 64 of 64 relu units are dead on 256 samples from the start"
    assert finding.since == 0
    assert finding.remedies[0].changes == {"bias": 0.0, "init_scale": 1.0}


def test_saturated_units_are_a_finding_of_their_own():
    history = {"a": [(0, numbers(8, 0, 8, "sigmoid"))], "b": [(0, numbers(8, 0, 8, "sigmoid"))]}
    (finding,) = activity_findings(history, 100)
    assert finding.evidence == (
        "layer a: 8 of 8 sigmoid units are saturated on nearly all of 100 samples from the start; "
        "1 other layer likewise"
    )
    assert [remedy.changes for remedy in finding.remedies] == [{"init_scale": 1.0}, {"activation": "relu"}]
    (later,) = activity_findings({"a": [(0, numbers(8)), (9, numbers(8, 0, 5, "tanh"))]}, 100)
    assert later.since == 9
    assert later.remedies[0].words == "lower the learning rate by a factor of 3"
    assert not later.remedies[0].changes


def test_what_has_passed_or_is_less_than_the_threshold_is_no_finding():
    assert activity_findings({"a": [(0, numbers(dead=64)), (5, numbers(dead=51))]}, 256) == ()
    assert activity_findings({"a": [(0, numbers(dead=51, saturated=31))]}, 256) == ()
    assert activity_findings({"a": [(0, numbers(units=0))], "b": []}, 256) == ()
    assert activity_findings({}, 256) == ()


def test_the_step_is_that_of_the_last_stretch():
    steps = [(0, 64), (10, 64), (20, 0), (30, 52), (40, 60)]
    (finding,) = activity_findings({"a": [(step, numbers(dead=dead)) for step, dead in steps]}, 256)
    assert finding.since == 30


@pytest.mark.parametrize("kind", ["relu", "gelu", "tanh", "sigmoid"])
def test_a_usual_start_has_no_finding(kind):
    torch.manual_seed(0)
    x, history = torch.randn(256, 64), {}
    for i in range(12):
        before = nn.Linear(64, 64)(x).detach()
        x = FUNCTIONS[kind](before)
        dead, saturated = counted(x, kind, inputs=before)
        history[f"net.{i}"] = [(0, numbers(64, dead, saturated, kind))]
    assert activity_findings(history, 256) == ()
