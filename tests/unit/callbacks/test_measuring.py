"""HessianSpectrum and Sharpness on a Trainer: dense references, keys, no trace, and what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lbtrain import SAM, HessianSpectrum, LossReductionCheck, Sharpness
from lbtrain._lightning import Callback, LightningDataModule, MisconfigurationException
from tests.modules import Everything, Plain, digits_like, fit, same

EXACT = {"tol": 1e-9, "max_matvecs": 2000}


def dense(module, loader):
    """Return the eigenvalues of the mean loss's Hessian over the whole data set, largest first."""
    x, y = (torch.stack(column) for column in zip(*loader.dataset, strict=True))
    named = {k: v.detach() for k, v in module.named_parameters() if v.requires_grad}
    flat = torch.cat([v.reshape(-1) for v in named.values()])

    def loss(vector):
        parts, start = {}, 0
        for key, value in named.items():
            parts[key] = vector[start : start + value.numel()].reshape(value.shape)
            start += value.numel()
        names = {k.removeprefix("net."): v for k, v in parts.items()}
        return nn.functional.cross_entropy(functional_call(module.net, names, (x,)), y)

    return torch.linalg.eigvalsh(hessian(loss)(flat)).flip(0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batch_size", [8, 9, 48])
def test_eigenvalues_match_the_dense_hessian(reduction, batch_size):
    # 9 leaves a short last batch, which must count by its size; the shuffling must not matter.
    loader = digits_like(48, batch_size, dtype=torch.float64, shuffle=True)
    module = Plain(dtype=torch.float64, reduction=reduction, lr=0.1 if reduction == "mean" else 0.005)
    spectrum = HessianSpectrum(top_k=4, **EXACT)
    trainer = fit(module, loader, [spectrum], max_epochs=3)
    truth = dense(module, loader)
    found = spectrum.result.spectrum
    assert found.converged
    torch.testing.assert_close(torch.tensor(found.eigenvalues, dtype=torch.float64), truth[:4], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.lambda_min, truth[-1].item(), rtol=1e-6, atol=1e-7)
    metrics = trainer.callback_metrics
    assert metrics["hessian/lambda_max"].item() == metrics["hessian/lambda_1"].item() == found.eigenvalues[0]
    assert metrics["hessian/condition"].item() == pytest.approx(found.eigenvalues[0] / found.eigenvalues[3])
    assert metrics["hessian/stability"].item() == pytest.approx(module_rate(trainer) * truth[0].item() / 2, rel=1e-6)
    assert metrics["time/measure_s"].item() == pytest.approx(spectrum.result.seconds)


def module_rate(trainer):
    return trainer.optimizers[0].param_groups[0]["lr"]


class Softmax(Plain):
    """Softmax regression at zero weights, where the Hessian is (1/C)(I - 11'/C) (x) X'X/n."""

    def __init__(self):
        super().__init__(dtype=torch.float64, lr=0.0)
        self.net = nn.Linear(6, 4, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.net.weight)


def test_softmax_regression_at_zero_matches_its_closed_form_with_multiplicities():
    loader = digits_like(40, 40, dtype=torch.float64, classes=4)
    spectrum = HessianSpectrum(top_k=7, tol=1e-8)
    fit(Softmax(), loader, [spectrum])
    x = torch.stack([sample for sample, _ in loader.dataset])
    mu = torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0)
    expected = (mu / 4).repeat_interleave(3)[:7]
    torch.testing.assert_close(torch.tensor(spectrum.result.spectrum.eigenvalues, dtype=torch.float64), expected)
    assert spectrum.result.spectrum.lambda_min == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_sharpness_of_a_quadratic_is_its_closed_form(start):
    curvature = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)

    class Bowl(Plain):
        def __init__(self):
            super().__init__(dtype=torch.float64, lr=0.0)
            self.net = nn.Linear(3, 1, bias=False, dtype=torch.float64)
            nn.init.constant_(self.net.weight, start)

        def training_step(self, batch, batch_idx):
            return 0.5 * (curvature * (self.net.weight[0] - batch[0]) ** 2).sum(1).mean()

    loader = DataLoader(TensorDataset(torch.full((4, 3), start, dtype=torch.float64)), batch_size=2)
    sharpness = Sharpness({name: {"num_steps": 40} for name in ("keskar", "sam")})
    trainer = fit(Bowl(), loader, [sharpness])
    keskar = 50 * (curvature * (1e-3 * (start + 1)) ** 2).sum().item()
    assert trainer.callback_metrics["sharpness/keskar"].item() == pytest.approx(keskar, rel=1e-9)
    assert trainer.callback_metrics["sharpness/sam"].item() == pytest.approx(0.05**2 * 4 / 2, rel=1e-6)
    assert trainer.callback_metrics["sharpness/keskar_stderr"].item() == pytest.approx(0, abs=1e-12)
    assert trainer.callback_metrics["time/measure_s"].item() == pytest.approx(sharpness.result.seconds)


class Look(Callback):
    """Keeps what must not change when the measurements that follow it run."""

    def on_train_end(self, trainer, pl_module):
        self.state = {k: v.clone() for k, v in pl_module.state_dict().items()}
        self.modes = [m.training for m in pl_module.modules()]
        self.gradients = [None if p.grad is None else p.grad.clone() for p in pl_module.parameters()]
        self.calls, self.stream = pl_module.calls, torch.get_rng_state()


def test_measuring_leaves_no_trace():
    module, look = Everything(), Look()
    after = Look()
    spectrum, sharpness = HessianSpectrum(top_k=2, tol=0.05, max_matvecs=20), Sharpness()
    fit(module, digits_like(), [look, spectrum, sharpness, after])
    assert same(look.state, after.state)
    assert look.modes == after.modes
    assert look.calls == after.calls == 6
    assert torch.equal(look.stream, after.stream)
    for a, b in zip(look.gradients, after.gradients, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert spectrum.result.spectrum.lambda_max > 0


def test_the_same_weights_give_the_same_numbers():
    results = []
    for seed in (0, 0, 1):
        spectrum = HessianSpectrum(top_k=2, num_samples=20, seed=seed)
        torch.manual_seed(0)
        fit(Plain(lr=0.0), digits_like(), [spectrum])
        results.append(spectrum.result.spectrum.eigenvalues)
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_a_data_module_may_choose_what_to_measure_on():
    class Data(LightningDataModule):
        def train_dataloader(self):
            return digits_like(48, 8)

        def measure_dataloader(self):
            return digits_like(24, 6, dtype=torch.float32)

    chosen, direct = HessianSpectrum(top_k=2), HessianSpectrum(top_k=2)
    module = Plain(lr=0.0)
    fit(module, None, [chosen], datamodule=Data())
    twin = Plain(lr=0.0)
    twin.load_state_dict(module.state_dict())
    fit(twin, digits_like(24, 6), [direct])
    assert chosen.result.spectrum.eigenvalues == direct.result.spectrum.eigenvalues


def test_a_diverged_run_is_measured_as_not_a_number():
    module = Plain(lr=math.inf)
    spectrum, sharpness = HessianSpectrum(top_k=2), Sharpness()
    trainer = fit(module, digits_like(), [spectrum, sharpness], max_epochs=2)
    for key in ("hessian/lambda_max", "hessian/lambda_min", "hessian/stability", "sharpness/keskar", "sharpness/sam"):
        assert math.isnan(trainer.callback_metrics[key]), key
    assert not spectrum.result.spectrum.converged


def test_works_beside_sam_and_the_check():
    spectrum = HessianSpectrum(top_k=1)
    trainer = fit(Plain(), digits_like(), [SAM(), LossReductionCheck(), spectrum])
    assert "hessian/lambda_max" in trainer.callback_metrics


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HessianSpectrum(top_k=0), "top_k must be a whole number of eigenvalues, at least 1, got 0"),
        (lambda: HessianSpectrum(tol=0), "tol must be above 0 and below 1, got 0"),
        (lambda: HessianSpectrum(max_matvecs=5), "max_matvecs must be a whole number above top_k = 5, got 5"),
        (lambda: HessianSpectrum(num_samples=0), "num_samples must be a whole number of samples"),
        (lambda: HessianSpectrum(batch_size=1.5), "batch_size must be a whole number of samples"),
        (lambda: HessianSpectrum(graph_memory_mb=-1), "graph_memory_mb must be at least 0"),
        (lambda: HessianSpectrum(seed=-1), "seed must be a whole number, at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("callback", [HessianSpectrum(), Sharpness(), LossReductionCheck()])
def test_manual_optimization_is_refused(callback):
    module = Plain()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="needs automatic optimization"):
        fit(module, digits_like(), [callback])


@pytest.mark.parametrize("callback", [HessianSpectrum(), Sharpness()])
def test_data_without_an_order_is_refused_before_training(callback):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(digits_like().dataset)

    class Untrained(Plain):
        def training_step(self, batch, batch_idx):
            raise AssertionError("trained")

    with pytest.raises(MisconfigurationException, match=r"define measure_dataloader\(\) on the data module"):
        fit(Untrained(), DataLoader(Stream(), batch_size=4), [callback], max_steps=2)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_two_spectra_of_one_matrix_are_refused(matrix):
    other = "ggn" if matrix == "hessian" else "hessian"
    pair = [HessianSpectrum(top_k=3, num_samples=10, matrix=matrix), HessianSpectrum(top_k=1, matrix=matrix)]
    with pytest.raises(MisconfigurationException, match=f"under {matrix}/.* measure matrix='{other}' with the other"):
        fit(Plain(), digits_like(), pair)


def test_more_eigenvalues_than_parameters_are_refused_before_training():
    with pytest.raises(MisconfigurationException, match="top_k=60 eigenvalues of a Hessian with 53 rows"):
        fit(Plain(), digits_like(), [HessianSpectrum(top_k=60)])
