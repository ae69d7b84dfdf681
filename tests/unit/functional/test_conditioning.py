"""Inputs, labels, values and spectra that make training hard are named; healthy ones are not."""

import math
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_digits

from lbtrain.functional.conditioning import (
    InvalidValues,
    balance_finding,
    conditioning_finding,
    feature_finding,
    feature_scales,
    invalid_values,
    label_balance,
    named_tensors,
)
from lbtrain.functional.training_curve import Curve
from tests.problems import generator


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def inputs_found(x, **thresholds):
    return feature_finding(feature_scales(x), **thresholds)


def digits(samples=256, seed=0):
    rows = torch.randperm(1797, generator=generator(seed))[:samples]
    return torch.tensor(load_digits().images, dtype=torch.float32)[rows], torch.tensor(load_digits().target)[rows]


@pytest.mark.parametrize("scale", [1.0, 1 / 16, 255 / 16])
@pytest.mark.parametrize("seed", range(3))
def test_digits_are_fine_as_images_and_as_columns(scale, seed):
    images, labels = digits(seed=seed)
    for x in (images[:, None] * scale, images.flatten(1) * scale, images * scale, (images.flatten(1) - 4.9) / 6):
        assert inputs_found(x) is None
    assert balance_finding(label_balance(labels)) is None
    assert invalid_values({"[0]": images, "[1]": labels}) is None


def test_mean_and_spread_are_those_of_the_columns():
    x = torch.tensor([[1.0, 5.0, 7.0], [3.0, 5.0, 9.0]])
    found = feature_scales(x)
    assert found.means.tolist() == [2.0, 5.0, 8.0]
    assert found.stds.tolist() == [1.0, 0.0, 1.0]
    images = normal(8, 3, 4, 4) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    found = feature_scales(images)
    assert found.kind == "channel"
    torch.testing.assert_close(found.stds, images.double().std(dim=(0, 2, 3), correction=0))
    torch.testing.assert_close(found.means, images.double().mean(dim=(0, 2, 3)))


@pytest.mark.parametrize(("mean", "spread"), [(1000.0, 1.0), (3.0, 0.1), (0.1, 0.01), (0.0, 5.0), (30.0, 20.0)])
def test_the_condition_number_of_one_column_is_at_least_what_is_said(mean, spread):
    x = mean + spread * normal(4000).double()
    X = torch.stack([x, torch.ones_like(x)], dim=1)
    low, high = torch.linalg.eigvalsh(X.T @ X / len(X)).tolist()
    assert high / low >= 0.99 * (1 + (x.mean() / x.std()).item() ** 2)


def test_inputs_near_1000_with_spread_1_are_named_with_the_remedy():
    x = normal(256, 3)
    x[:, 1] += 1000
    found = inputs_found(x)
    assert found.problem == "ill-conditioned inputs"
    assert "column 1 (mean 1000, std" in found.evidence
    assert "of 3 is far from zero" in found.evidence
    assert found.remedies[0].changes == {"normalize": True}
    assert found.severity == pytest.approx(100, rel=0.2)
    assert found.numbers["condition"] == pytest.approx(1e6, rel=0.3)
    assert inputs_found(x, offset=2000.0) is None
    assert inputs_found((x - x.mean(0)) / x.std(0)) is None


def test_channels_far_from_zero_are_named():
    found = inputs_found(normal(32, 2, 4, 4) - torch.tensor([0.0, 50.0])[:, None, None])
    assert "channel 1 (mean -50" in found.evidence


def test_columns_in_other_scales_are_named():
    found = inputs_found(normal(256, 3) * torch.tensor([1.0, 1e4, 3.0]))
    assert "the spread of column 1 is" in found.evidence
    assert found.numbers["ratio"] == pytest.approx(1e4, rel=0.2)
    assert inputs_found(normal(256, 3) * torch.tensor([1.0, 20.0, 3.0])) is None


def test_constant_sparse_and_one_hot_columns_are_no_problem():
    x = normal(256, 4)
    x[:, 0] = 1234.567
    x[:, 1] = 0
    x[3, 1] = 1e-3
    x[:, 2] = (torch.arange(256) % 10 == 0).float() * 1e3
    assert inputs_found(x) is None
    assert inputs_found(torch.eye(8)[torch.arange(256) % 8]) is None


def test_a_constant_channel_has_no_spread_though_its_mean_is_rounded():
    images = normal(32, 2, 7, 7)
    images[:, 1] = 0.1
    found = feature_scales(images)
    assert found.stds[1] == 0
    assert found.dense.tolist() == [True, False]
    assert feature_finding(found) is None


def test_few_samples_and_values_that_are_not_finite_say_nothing():
    assert inputs_found(normal(8, 2) + 1000) is None
    x = normal(64, 2)
    x[0, 0], x[1, 1] = math.nan, math.inf
    assert inputs_found(x) is None
    x[:, 1] = 1000 + normal(64)
    assert "column 1" in inputs_found(x).evidence


def test_half_precision_inputs_are_measured_in_full():
    assert "column 0 (mean 1000" in inputs_found((normal(64, 2) * 4 + torch.tensor([1000.0, 0.0])).half()).evidence


def test_inputs_that_have_no_scale_are_refused():
    for x, message in (
        (torch.zeros(4, 2, dtype=torch.long), "must be floating"),
        (torch.zeros(4), "samples and columns"),
    ):
        with pytest.raises(ValueError, match=message):
            feature_scales(x)


def labels_of(*counts):
    return torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])


def test_a_class_that_outnumbers_the_others_is_named():
    found = balance_finding(label_balance(labels_of(6, 240, 8, 7)))
    assert found.problem == "label imbalance"
    assert found.evidence.startswith("labels: class 1 has 92% of 261 samples, 34.3 times as many as the median class")
    assert "the rarest, class 0, has 2.3%" in found.evidence
    assert found.severity == pytest.approx(240 / 7 / 10)


def test_two_classes_are_compared_with_each_other():
    assert label_balance(labels_of(95, 5)).ratio == 19
    assert balance_finding(label_balance(labels_of(95, 5))) is not None
    assert balance_finding(label_balance(labels_of(85, 15))) is None


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_even_classes_are_in_balance_however_many(classes):
    for seed in range(5):
        assert balance_finding(label_balance(torch.randint(0, classes, (256,), generator=generator(seed)))) is None


def test_a_single_class_ignored_labels_and_no_label_are_no_imbalance():
    assert balance_finding(label_balance(labels_of(100))) is None
    assert balance_finding(label_balance(labels_of(12, 1, 1, 1))) is None
    assert balance_finding(label_balance(torch.tensor([-100] * 50 + [0, 1]))) is None
    assert balance_finding(label_balance(torch.zeros(0, dtype=torch.long))) is None
    assert label_balance(torch.tensor([True, False, True])).counts == {1: 2, 0: 1}


def test_targets_of_a_regression_are_refused():
    with pytest.raises(ValueError, match="targets of a regression have no classes"):
        label_balance(torch.rand(5))


@dataclass
class Sample:
    x: torch.Tensor
    y: torch.Tensor


def test_tensors_of_a_batch_are_found_by_their_paths():
    t = torch.zeros(2)
    point = namedtuple("point", "a b")
    batch = [{"x": t, "deep": [t, "text"]}, point(t, 3), Sample(t, t), t]
    paths = ["[0]['x']", "[0]['deep'][0]", "[1].a", "[2].x", "[2].y", "[3]"]
    assert list(named_tensors(batch)) == paths
    assert list(named_tensors(t)) == [""]


def test_values_that_are_not_finite_are_counted_by_sample():
    x, y = torch.zeros(10, 3), torch.zeros(10)
    x[2, 0] = x[2, 1] = x[5, 2] = math.nan
    y[7] = math.inf
    found = invalid_values(named_tensors([x, y]))
    assert found.problem == "invalid data"
    assert found.evidence == (
        "batch[0]: 2 of 10 samples have values that are not finite (3 NaN): numbers 2, 5, from 0; "
        "batch[1]: 1 of 10 samples has values that are not finite (1 infinite): number 7, from 0"
    )
    assert found.numbers == {"samples": 2.0, "share": 0.2, "nan": 3.0, "inf": 1.0}


def test_several_batches_count_together():
    seen, many, unknown = InvalidValues("the data", 1, 2), InvalidValues(), InvalidValues("the subset", step=0)
    for i in range(4):
        y = torch.zeros(8)
        y[: i % 2] = math.nan
        seen.add({"[1]": y, "[0]": torch.ones(8, 2, dtype=torch.long)})
        for one in (many, unknown):
            one.add({"": y + torch.tensor([math.inf, math.inf] + 6 * [0.0])})
    # Of the second of two ranks: the 8th and the 24th sample that it reads.
    assert seen.finding().evidence.startswith("batch[1]: 2 of 32 samples of the data have ")
    assert seen.finding().evidence.endswith("numbers 17, 49, from 0")
    assert many.finding().evidence.endswith(": numbers 0, 1, 8, 9, 16, ..., from 0")
    assert unknown.finding().evidence.endswith("infinite)")


def test_missing_values_that_the_model_expects_are_fine():
    y = torch.full((4,), math.nan)
    assert invalid_values({"y": y}, loss=0.3) is None
    assert invalid_values({"y": y}, loss=math.nan).evidence.startswith("y: 4 of 4 samples")
    assert invalid_values({"": y}).evidence.startswith("batch: 4 of 4 samples")
    assert invalid_values({"attention_mask": torch.full((4, 4), -math.inf)}) is None
    assert invalid_values({"attention_mask": torch.full((4, 4), math.nan)}) is not None
    assert invalid_values({"x": torch.zeros(0, 3), "scalar": torch.tensor(1.0)}) is None


def test_a_wide_spectrum_explains_slow_progress_only():
    values = [100.0, *torch.logspace(-2.8, -0.8, 41, dtype=torch.float64).tolist()]  # the median of 42 is the 21st
    found = conditioning_finding(values, 0.8)
    assert found.problem == "ill-conditioning"
    assert found.numbers["condition"] == pytest.approx(10**3.8)
    assert "the loss is at 80% of its start" in found.evidence
    assert [dict(r.changes) for r in found.remedies] == [{"normalize": True}, {"momentum": 0.9}, {}]
    assert conditioning_finding(values, 0.4) is None
    assert conditioning_finding(values, 5.9e6) is None  # diverged
    assert conditioning_finding(torch.logspace(0, 2, 61), 0.8) is None


WIDE = [100.0, *[1e-2] * 20]


def crept(levels, *, noise=0.3, losses=None):
    return Curve(losses or levels[:-1], steps=list(range(len(levels))), levels=levels, noises=[noise] * len(levels))


def test_a_loss_that_creeps_on_is_blamed_on_the_spectrum_and_one_at_its_floor_is_not():
    creeping = [2.0 - 0.3 * (i / 60) ** 0.5 for i in range(61)]
    floor = [1.7 + 0.3 * math.exp(-i / 3) for i in range(61)]
    jumped = [*creeping[:20], 4.0, *creeping[21:]]
    assert conditioning_finding(WIDE, 0.85, curve=crept(creeping)) is not None
    assert conditioning_finding(WIDE, 0.85, curve=crept(creeping, noise=0.9)) is None  # the noise of labels
    assert conditioning_finding(WIDE, 0.85, curve=crept(creeping, losses=[1.7] * 60)) is None  # learned by heart
    assert conditioning_finding(WIDE, 0.85, curve=crept([v + 1e-6 * (-1) ** i for i, v in enumerate(floor)])) is None
    assert conditioning_finding(WIDE, 0.85, curve=crept(jumped)) is None


def test_weights_of_a_density_move_the_median():
    values = [100.0, 1.0, 0.01]
    assert conditioning_finding(values, 0.9, weights=[0.5, 0.4, 0.1]) is None
    assert conditioning_finding(values, 0.9, weights=[0.01, 0.02, 0.97]).numbers["median"] == 0.01


def test_zero_and_negative_eigenvalues_have_no_say():
    values = [100.0, 0.01, 0.01, *[0.0] * 50, *[1.4e-4] * 50, *[-1.0] * 50]
    assert conditioning_finding(values, 0.9).numbers["median"] == 0.01


@pytest.mark.parametrize("values", [[], [-1.0], [math.nan, 1.0], [0.0]])
def test_without_a_positive_curvature_there_is_nothing_to_say(values):
    assert conditioning_finding(values, 0.9) is None
    assert conditioning_finding([100.0, 1e-3, 1e-3], math.nan) is None


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="must be as many"):
        conditioning_finding([1.0], 0.9, weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="thresholds must be positive"):
        conditioning_finding([1.0], 0.9, slow=0.0)
