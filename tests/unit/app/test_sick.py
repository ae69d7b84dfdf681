"""The parts of the sick runs: their curvature is what they say, and their faults are faults."""

import math

import pytest
import torch
from torch import nn

from lbtrain.app.data import DigitsData
from lbtrain.app.sick import DecayOnce, SquaredError
from lbtrain.app.sick_data import DigitsTargets, LeastSquaresData, NoisyDigits, ShiftedDigits, largest_curvature
from lbtrain.app.sick_networks import DetachedNorm, LinearMap, Perceptron, ResidualNet, Threshold, WrongTanh


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def dense_hessian(module, batch):
    """Return the Hessian of the training loss in the weights of a `LinearMap`."""
    weight, (inputs, targets) = module.network.weight, batch

    def loss(w):
        return (inputs.flatten(1) @ w.view_as(weight).T - targets).square().sum(1).mean() / 2

    return torch.autograd.functional.hessian(loss, weight.detach().reshape(-1))


@pytest.mark.parametrize("lambda_max", [1.0, 3.0])
def test_the_hessian_of_least_squares_has_the_chosen_largest_eigenvalue(lambda_max):
    data = LeastSquaresData(samples=60, features=4, outputs=2, lambda_max=lambda_max, condition=5.0)
    module = SquaredError(LinearMap(4, 2), sgd)
    spectrum = torch.linalg.eigvalsh(dense_hessian(module, data.dataset.tensors))
    assert spectrum[-1].item() == pytest.approx(lambda_max, rel=1e-5)
    assert spectrum[-2].item() == pytest.approx(lambda_max, rel=1e-5)  # once per output
    assert 2 < spectrum[-1] / spectrum[0] < 12


def test_the_digits_are_scaled_to_the_chosen_curvature_and_their_targets_are_one_hot():
    images, targets = DigitsTargets(lambda_max=2.0).split.train.tensors
    assert largest_curvature(images) == pytest.approx(2.0, rel=1e-5)
    plain = DigitsData().split.train.tensors
    assert torch.equal(targets.argmax(1), plain[1])
    assert torch.equal(targets.sum(1), torch.ones(len(targets)))
    assert torch.allclose(images / images.std(), plain[0] / plain[0].std(), atol=1e-5)


def test_a_part_of_the_least_squares_has_nearly_the_curvature_of_the_whole():
    inputs = LeastSquaresData(samples=512).dataset.tensors[0]
    assert largest_curvature(inputs) == pytest.approx(1.0, rel=1e-5)
    assert largest_curvature(inputs[:128]) == pytest.approx(1.0, abs=0.2)


def test_so_many_samples_have_targets_that_are_not_numbers():
    targets = LeastSquaresData(nan_targets=3).dataset.tensors[1]
    assert int(targets.isnan().all(1).sum()) == int(targets.isnan().any(1).sum()) == 3
    assert not LeastSquaresData().dataset.tensors[1].isnan().any()


def test_shifted_digits_are_those_of_the_study_once_they_are_normalized():
    shifted, plain = ShiftedDigits().split.train.tensors[0], DigitsData().split.train.tensors[0]
    assert shifted.mean().item() == pytest.approx(1000, rel=1e-4)
    assert shifted.std().item() == pytest.approx(1, rel=1e-2)
    assert torch.equal(ShiftedDigits(normalize=True).split.train.tensors[0], plain)


def test_so_many_training_labels_are_drawn_anew_and_no_others():
    noisy, plain = NoisyDigits(noise=0.4).split, DigitsData().split
    images, labels = noisy.train.tensors
    assert torch.equal(images, plain.train.tensors[0])
    wrong = (labels != plain.train.tensors[1]).float()
    # A tenth of the draws hit the class that was there: 0.36 differ, with a standard error of 0.013.
    assert wrong.mean().item() == pytest.approx(0.36, abs=0.04)
    assert torch.equal(noisy.test.tensors[1], plain.test.tensors[1])
    assert torch.equal(noisy.val.tensors[1], plain.val.tensors[1])
    assert torch.equal(NoisyDigits(noise=0.0).split.train.tensors[1], plain.train.tensors[1])
    assert torch.equal(labels, NoisyDigits(noise=0.4).split.train.tensors[1])


def test_seeds_give_other_samples_and_the_same_seed_the_same():
    first, again, other = (LeastSquaresData(seed=seed).dataset.tensors[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_units_are_equal_without_a_scale_of_their_own_and_he_s_with_one():
    first, second, last = (
        layer.weight
        for layer in Perceptron(hidden=[6, 5], init_scale=0.0, equal_scale=1.0).layers
        if isinstance(layer, nn.Linear)
    )
    assert torch.equal(first, first[:1].expand_as(first))
    assert first.std() > 0
    assert torch.equal(second, second[:1, :1].expand_as(second))
    assert torch.equal(last, last[:, :1].expand_as(last))
    assert last.std() > 0
    sound = Perceptron(hidden=[400]).layers[1].weight
    assert sound.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.02)
    assert not Perceptron(init_scale=0.0).layers[1].weight.any()


def test_a_perceptron_has_its_bias_its_norms_and_its_fixed_output():
    network = Perceptron(hidden=[5, 3], bias=-10.0, batch_norm=True, fixed_output=True)
    layers = [type(layer) for layer in network.layers]
    assert layers == [nn.Flatten, *2 * [nn.Linear, nn.BatchNorm1d, nn.ReLU], nn.Linear]
    assert torch.equal(network.layers[4].bias, torch.full((3,), -10.0))
    assert not network.layers[-1].bias.any()
    assert {name for name, p in network.named_parameters() if not p.requires_grad} == {
        "layers.7.weight",
        "layers.7.bias",
    }
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_residual_network_gives_scores_and_normalizes_each_convolution():
    network = ResidualNet(width=4, blocks=2)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 5
    assert network(torch.randn(3, 1, 8, 8)).shape == (3, 10)
    # Blocks of zeros change nothing: what comes in is positive already.
    inputs = torch.randn(3, 1, 8, 8)
    for norm in norms[1:]:
        nn.init.zeros_(norm.weight)
    assert torch.equal(network.eval()(inputs), network.dense(network.stem(inputs).mean((2, 3))))


def derivative(module, at):
    """Return autograd's and the central difference's derivative along a random direction."""
    at = at.double().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    along, read = (torch.randn(at.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    value = lambda x: (read * module(x)).sum()
    (gradient,) = torch.autograd.grad(value(at), at)
    step = 1e-6
    with torch.no_grad():
        difference = (value(at + step * along) - value(at - step * along)) / (2 * step)
    return (gradient * along).sum().item(), difference.item()


@pytest.mark.parametrize(("module", "sound"), [(nn.Tanh(), True), (WrongTanh(), False), (DetachedNorm(), False)])
def test_the_slips_give_the_right_values_and_a_wrong_derivative(module, sound, generator):
    by_autograd, by_difference = derivative(module, torch.randn(4, 5, generator=generator))
    assert (by_autograd == pytest.approx(by_difference, rel=1e-6)) == sound
    if isinstance(module, WrongTanh):
        x = torch.randn(3, generator=generator)
        assert torch.equal(module(x), x.tanh())


def test_thresholds_have_derivative_zero_and_keep_the_graph(generator):
    at = torch.randn(4, generator=generator).requires_grad_()
    outputs = Threshold()(at)
    assert set(outputs.tolist()) <= {-1.0, 1.0}
    outputs.sum().backward()
    assert not at.grad.any()


@pytest.fixture
def unlogged(monkeypatch):
    """Let modules log without a Trainer."""
    monkeypatch.setattr(SquaredError, "log", lambda *_, **__: None)


@pytest.mark.usefixtures("unlogged")
def test_the_squared_error_is_half_the_mean_over_samples_of_the_sum_over_outputs():
    module = SquaredError(LinearMap(2, 2), sgd)
    batch = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    assert module.training_step(batch, 0).item() == (1 + 4 + 0 + 1) / 2 / 2


@pytest.mark.usefixtures("unlogged")
def test_the_noise_of_the_targets_is_of_training_alone():
    module = SquaredError(LinearMap(3, 2), sgd, target_noise=2.0)
    batch = torch.zeros(20_000, 3), torch.zeros(20_000, 2)
    assert module.training_step(batch, 0).item() == pytest.approx(2 * 4 / 2, rel=0.05)
    assert module.eval().training_step(batch, 0).item() == 0


def test_the_rate_falls_once():
    optimizer = sgd([nn.Parameter(torch.zeros(1))])
    schedule = DecayOnce(optimizer, decay_epoch=2, factor=0.1)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Perceptron(activation="rellu"), "activation must be one of relu, .*, got 'rellu'"),
        (lambda: Perceptron(hidden=[0]), "must be whole numbers of at least 1"),
        (lambda: LeastSquaresData(batch_size=0), "batch_size must be a whole number of at least 1, got 0"),
        (lambda: LeastSquaresData(condition=0.5), "condition at least 1"),
        (lambda: LeastSquaresData(nan_targets=600), "nan_targets must lie between 0 and samples=512, got 600"),
        (lambda: DigitsTargets(lambda_max=0.0), "lambda_max must be above 0, got 0.0"),
        (lambda: NoisyDigits(noise=1.5), "noise must lie between 0 and 1, got 1.5"),
        (lambda: SquaredError(LinearMap(), sgd, target_noise=-1.0), "target_noise must be at least 0, got -1.0"),
        (lambda: DecayOnce(sgd([nn.Parameter(torch.zeros(1))]), decay_epoch=0), "decay_epoch .* at least 1, got 0"),
        (lambda: DecayOnce(sgd([nn.Parameter(torch.zeros(1))]), factor=0.0), "factor must be above 0, got 0.0"),
    ],
)
def test_what_is_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
