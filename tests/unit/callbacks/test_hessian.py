"""HessianSpectrum on modules whose curvature is known in closed form."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import HessianSpectrum, LossReductionCheck
from lbtrain._lightning import LightningModule
from lbtrain.callbacks import _hessian_figures
from tests.modules import LeastSquares, Plain, Quadratic, digits_like, fit
from tests.problems import matrix_with

SPECTRUM = (5.0, 3.0, 1.0, 0.5, -0.4, -1.0)
EXACT = {"tol": 1e-9, "figures": ()}


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def measured(module, data=None, **options):
    """Fit with a rate of zero steps to speak of, and return the result and the Trainer."""
    callback = HessianSpectrum(**{**EXACT, **options})
    data = data or DataLoader(TensorDataset(torch.zeros(4, len(SPECTRUM), dtype=torch.float64)), batch_size=2)
    trainer = fit(module, data, [callback])
    return callback.result, trainer


class Scaled(LightningModule):
    """L = mean over samples of s (w - m)'A(w - m) / 2 + height: each batch has its own multiple of A."""

    def __init__(self, matrix, start, *, height=0.0, lr=0.0):
        super().__init__()
        self.matrix, self.height, self.lr = matrix, height, lr
        self.w = nn.Parameter(start.clone())

    def training_step(self, batch, batch_idx):
        return batch[0].mean() * (self.w @ self.matrix @ self.w) / 2 + self.height

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def scales(*values, batch_size=1):
    return DataLoader(TensorDataset(double(values)), batch_size=batch_size)


def test_the_whole_spectrum_of_a_quadratic_is_its_closed_form():
    A = matrix_with(SPECTRUM)
    result, trainer = measured(Quadratic(A, torch.zeros(6, dtype=torch.float64), lr=0.1), top_k=3)
    metrics = trainer.callback_metrics
    expected = {
        "lambda_1": 5.0, "lambda_2": 3.0, "lambda_3": 1.0, "lambda_max": 5.0, "lambda_min": -1.0, "condition": 5.0,
        "negative_ratio": 0.2, "stability": 0.25, "trace": 8.1, "trace_stderr": 0.0, "converged": 1.0,
        "frobenius": math.sqrt(sum(x * x for x in SPECTRUM)), "gradient_norm": 0.0, "loss": 0.0, "interrupted": 0.0,
        "lambda_max_batches": 5.0, "lambda_max_batches_stderr": 0.0, "lambda_max_split": 5.0,
    }  # fmt: skip
    for key, value in expected.items():
        assert metrics[f"hessian/{key}"].item() == pytest.approx(value, rel=1e-7, abs=1e-7), key
    assert result.density.num_probes == 1
    assert result.engine == "autograd"
    assert (result.spectrum.vectors, result.layers, result.line) == (None, {}, None)


def test_eigenvectors_are_kept_when_asked_for():
    A = matrix_with(SPECTRUM)
    result, _ = measured(Quadratic(A, torch.zeros(6, dtype=torch.float64)), top_k=2, keep_vectors=True)
    V = result.spectrum.vectors
    torch.testing.assert_close(A @ V, V @ torch.diag(double([5.0, 3.0])), atol=1e-6, rtol=0)
    low = result.spectrum.min_vector
    torch.testing.assert_close(A @ low, -1.0 * low, atol=1e-6, rtol=0)


def test_the_curvature_of_batches_gives_the_sampling_error_of_lambda_max():
    # Batches of 2, 2 and 1 samples: multiples 2, 4 and 9 of A.
    data = scales(1.0, 3.0, 2.0, 6.0, 9.0, batch_size=2)
    result, _ = measured(Scaled(matrix_with(SPECTRUM), torch.zeros(6, dtype=torch.float64)), data, top_k=1)
    weights, values = double([0.4, 0.4, 0.2]), 5 * double([2.0, 4.0, 9.0])
    mean = (weights * values).sum().item()
    stderr = (3 / 2 * (weights**2 * (values - mean) ** 2).sum()).sqrt().item()
    assert result.over_batches.value == pytest.approx(mean) == pytest.approx(result.spectrum.lambda_max)
    assert result.over_batches.stderr == pytest.approx(stderr)
    assert result.over_batches.num_batches == 3
    # The first half are batches 0 and 2 with mean (2 * 2 + 9) / 3, the second batch 1; the directions agree.
    assert result.split == pytest.approx(5 * ((2 * 2 + 9) / 3 + 4) / 2, rel=1e-3)


def test_the_split_estimate_takes_the_direction_from_one_half_and_the_curvature_from_the_other():
    class Crossed(Scaled):
        def training_step(self, batch, batch_idx):
            return (batch[0] * self.w**2).sum(1).mean() / 2

    # Means diag(4, 3): lambda_max 4 along the first axis. One half is diag(7, 1), the other diag(1, 5).
    rows = double([[7.0, 1.0], [1.0, 5.0]])
    data = DataLoader(TensorDataset(rows), batch_size=1)
    result, _ = measured(Crossed(None, torch.ones(2, dtype=torch.float64)), data, top_k=1)
    assert result.spectrum.lambda_max == pytest.approx(4.0)
    assert result.split == pytest.approx((1.0 + 1.0) / 2, abs=0.1)


def test_one_batch_cannot_be_split():
    result, trainer = measured(Scaled(matrix_with(SPECTRUM), torch.zeros(6, dtype=torch.float64)), scales(1.0))
    assert math.isnan(result.split)
    assert math.isnan(result.over_batches.stderr)
    assert math.isnan(trainer.callback_metrics["hessian/lambda_max_split"])
    assert "one batch gives no standard error over the data" in result.sentence()


class TwoLayers(LightningModule):
    """L = u'Au / 2 + v'Bv / 2 with a coupling c u[0] v[0]: the blocks are A and B whatever c is."""

    def __init__(self, coupling=0.3):
        super().__init__()
        self.first, self.second = nn.Linear(2, 1, dtype=torch.float64), nn.Linear(1, 1, dtype=torch.float64)
        self.A, self.B, self.coupling = matrix_with([4.0, 2.0, -1.0]), matrix_with([3.0, -2.0], 1), coupling
        for p in self.parameters():
            nn.init.zeros_(p)

    def training_step(self, batch, batch_idx):
        u = torch.cat([p.flatten() for p in self.first.parameters()])
        v = torch.cat([p.flatten() for p in self.second.parameters()])
        return 1 + u @ self.A @ u / 2 + v @ self.B @ v / 2 + self.coupling * u[0] * v[0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_layers_have_the_spectra_of_their_own_blocks():
    result, trainer = measured(TwoLayers(), scales(1.0, 1.0), top_k=1, by_layer=True)
    found = {name: (s.lambda_max, s.lambda_min, s.trace.value) for name, s in result.layers.items()}
    assert found == {"first": pytest.approx((4.0, -1.0, 5.0)), "second": pytest.approx((3.0, -2.0, 1.0))}
    metrics = trainer.callback_metrics
    assert metrics["hessian/layer/first/lambda_max"].item() == pytest.approx(4.0)
    assert metrics["hessian/layer/second/lambda_min"].item() == pytest.approx(-2.0)
    assert metrics["hessian/layer/second/lambda_min_residual"].item() < 1e-6
    assert metrics["hessian/layer/second/trace"].item() == pytest.approx(1.0)
    assert metrics["hessian/layer/second/trace_stderr"].item() == result.layers["second"].trace.stderr


def test_a_saddle_is_told_with_the_layer_that_leads_down(capsys, caplog):
    caplog.set_level("INFO")
    result, _ = measured(TwoLayers(coupling=0.0), scales(1.0, 1.0), top_k=1)
    assert result.critical_point.kind == "saddle"
    assert result.saddle_layers[0] == ("second", pytest.approx(1.0))
    assert result.metrics()["hessian/verdict"] == "saddle"
    assert result.negative_ratio == pytest.approx(0.5)
    said = result.sentence()
    assert said.startswith("hessian: saddle")
    assert "100 % of the direction of lambda_min lies in second" in said
    assert "at 0.2 of the edge of stability" in said


@pytest.mark.parametrize(
    ("spectrum", "start", "height", "kind"),
    [
        ((5.0, 3.0, 1.0), 0.0, 1.0, "minimum"),
        ((5.0, 3.0, -1.0), 0.0, 1.0, "saddle"),
        ((1e-5, 1e-6, -1e-7), 1.0, 1.0, "plateau"),
        ((5.0, 3.0, 1.0), 1.0, 1.0, "not critical"),
    ],
)
def test_the_verdict_is_that_of_the_quadratic(spectrum, start, height, kind):
    w = torch.full((3,), start, dtype=torch.float64)
    result, _ = measured(Scaled(matrix_with(spectrum), w, height=height), scales(1.0, 1.0), top_k=1)
    assert result.critical_point.kind == kind
    assert result.sentence().startswith(f"hessian: {kind}")
    assert "does not depend on the parameters" not in result.sentence()


def test_a_constant_loss_is_said_to_be_one():
    result, _ = measured(Scaled(torch.zeros(3, 3).double(), double([1.0, 2.0, 3.0]), height=1.0), scales(1.0), top_k=1)
    assert "the loss does not depend on the parameters" in result.sentence()


@pytest.mark.parametrize(
    ("precision", "options", "why"),
    [
        ("bf16-mixed", {"tol": 1e-6}, "residual above tol=1e-06: products are rounded in precision bf16-mixed"),
        ("32-true", {"max_matvecs": 3}, "not converged within max_matvecs=3 products"),
        ("32-true", {}, ""),
    ],
)
def test_what_has_not_converged_says_why(precision, options, why):
    callback = HessianSpectrum(top_k=1, figures=(), **options)
    fit(Plain(), digits_like(), [callback], precision=precision)
    spectrum = callback.result.spectrum
    assert spectrum.converged == (not why)
    assert callback.result.unconverged.startswith(why)
    assert bool(callback.result.unconverged) == bool(why)
    assert why in callback.result.sentence()
    if spectrum.converged:
        size = max(spectrum.lambda_max, -spectrum.lambda_min)
        assert max(*spectrum.residuals, spectrum.lambda_min_residual) <= 1e-3 * size


def test_a_stability_that_is_not_known_is_said_with_its_reason():
    class Unknown(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    module = Plain(optimizer=lambda p: Unknown(p, lr=0.0))
    result, trainer = measured(module, digits_like(), top_k=1, tol=1e-3)
    assert math.isnan(trainer.callback_metrics["hessian/stability"])
    assert f"hessian/stability is not known: {result.stability.law}" in result.sentence()


def test_the_gauss_newton_matrix_of_least_squares_is_its_hessian_under_keys_of_its_own():
    data = digits_like(dtype=torch.float64)
    both = [HessianSpectrum(top_k=2, **EXACT), HessianSpectrum(top_k=2, matrix="ggn", **EXACT)]
    trainer = fit(LeastSquares("mean"), data, both)
    metrics = trainer.callback_metrics
    for key in ("lambda_1", "lambda_2", "lambda_min", "stability"):
        assert metrics[f"ggn/{key}"].item() == pytest.approx(metrics[f"hessian/{key}"].item(), rel=1e-6), key
    assert both[1].result.critical_point is None
    assert both[1].result.sentence().startswith("ggn: lambda_max")


def test_the_gauss_newton_matrix_of_a_network_is_not_its_hessian_and_has_no_negative_eigenvalue():
    both = [HessianSpectrum(top_k=1, **EXACT), HessianSpectrum(top_k=1, matrix="ggn", **EXACT)]
    fit(Plain(dtype=torch.float64), digits_like(dtype=torch.float64), both)
    hessian, ggn = (callback.result.spectrum for callback in both)
    assert hessian.lambda_min < -1e-3
    assert ggn.lambda_min == pytest.approx(0, abs=1e-9)
    assert ggn.lambda_max != pytest.approx(hessian.lambda_max, rel=1e-3)


def test_differences_find_what_double_backward_finds():
    both = [HessianSpectrum(top_k=2, **EXACT | {"tol": 1e-5, "engine": e}) for e in ("autograd", "differences")]
    for callback in both:
        fit(Plain(dtype=torch.float64), digits_like(dtype=torch.float64), [callback])
    exact, differences = (callback.result for callback in both)
    assert (exact.engine, differences.engine) == ("autograd", "differences")
    assert differences.spectrum.lambda_max == pytest.approx(exact.spectrum.lambda_max, rel=1e-4)
    assert exact.engine_error == 0 < differences.engine_error


def test_a_density_of_its_own_has_error_bars():
    result, trainer = measured(
        Quadratic(matrix_with(SPECTRUM), torch.zeros(6, dtype=torch.float64)),
        top_k=1, density_probes=20, density_steps=6, trace_probes=0,
    )  # fmt: skip
    assert result.density.num_probes == 20
    assert abs(result.density.trace - 8.1) < 4 * result.density.trace_stderr
    assert trainer.callback_metrics["hessian/trace"].item() == pytest.approx(result.density.trace)
    assert trainer.callback_metrics["hessian/frobenius"].item() > 0


def test_mixed_precision_is_measured_and_says_by_which_engine():
    callback = HessianSpectrum(top_k=1, tol=0.05, figures=())
    module, reference = Plain(), HessianSpectrum(top_k=1, tol=0.01, figures=())
    fit(module, digits_like(), [callback], precision="bf16-mixed")
    twin = Plain(lr=0.0)
    twin.load_state_dict(module.state_dict())
    fit(twin, digits_like(), [reference])
    assert callback.result.engine in ("autograd", "differences")
    assert callback.result.spectrum.lambda_max == pytest.approx(reference.result.spectrum.lambda_max, rel=0.1)


def test_the_result_does_not_depend_on_what_else_is_measured():
    def run(**options):
        callback = HessianSpectrum(top_k=2, figures=(), **options)
        fit(Plain(), digits_like(), [LossReductionCheck(), callback])
        return callback.result.spectrum.eigenvalues

    assert run() == run(every_n_steps=1, by_layer=True, split_check=False, density_probes=1, density_steps=4)


def test_figures_lie_in_the_directory_of_the_run(tmp_path):
    asked = HessianSpectrum(top_k=2, every_n_steps=2, by_layer=True, figures=_hessian_figures.NAMES)
    fit(Plain(), digits_like(), [asked], default_root_dir=tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {f"hessian_{name}.png" for name in ("density", "tracks", "line", "plane", "layers")}


def test_a_trainer_that_leaves_nothing_behind_gets_no_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(Plain(), digits_like(), [HessianSpectrum(top_k=1)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix": "ggm"}, "matrix must be of 'hessian', 'ggn', got 'ggm'; did you mean 'ggn'"),
        ({"engine": "autograde"}, "got 'autograde'; did you mean 'autograd'"),
        ({"figures": ["tracks", "layer"]}, "got 'layer'; did you mean 'layers'"),
        ({"trace_probes": -1}, "trace_probes must be a whole number of probes, at least 0, got -1"),
        ({"density_probes": 1.5}, "density_probes must be a whole number of probes, at least 0, got 1.5"),
        ({"density_steps": 1}, "density_steps must be a whole number of steps, at least 2, got 1"),
        ({"basis_memory_mb": 0}, "basis_memory_mb must be above 0, or None for no bound, got 0"),
        ({"by_layer": "yes"}, "by_layer must be True or False, got 'yes'"),
        ({"split_check": 1}, "split_check must be True or False, got 1"),
        ({"every_n_steps": 0}, "every_n_steps must be a whole number of steps, at least 1"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HessianSpectrum(**options)
