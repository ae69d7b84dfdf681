"""The spectra of a run: what stands in spectrum.json and in the tables, and that it is what was measured."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from lbtrain._lightning import CSVLogger, rank_zero_only
from lbtrain.app.leftovers import forget
from lbtrain.app.spectra import SPECTRUM_NAME, spectra, tables, write_spectra
from lbtrain.callbacks.hessian import HessianSpectrum
from lbtrain.callbacks.sharpness import Sharpness
from tests.modules import Plain, digits_like, fit


class Tables(CSVLogger):
    """Takes tables as wandb's logger does."""

    def __init__(self, directory):
        super().__init__(directory)
        self.taken = {}

    def log_table(self, key, columns=None, data=None, step=None):
        self.taken[key] = (columns, data, step)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A Trainer that has measured the Hessian with its layers, and the Gauss-Newton matrix without."""
    directory = tmp_path_factory.mktemp("run")
    common = {"figures": (), "split_check": False}
    whole = HessianSpectrum(top_k=3, by_layer=True, trace_probes=4, density_probes=2, density_steps=8, **common)
    other = HessianSpectrum(top_k=2, matrix="ggn", engine="autograd", **common)
    trainer = fit(Plain(), digits_like(), [whole, other], logger=Tables(directory / "logs"))
    write_spectra(trainer, directory / "made")
    return trainer, whole.result, directory / "made"


def read(directory):
    return json.loads((directory / SPECTRUM_NAME).read_text())


def test_the_file_has_what_was_measured_of_each_matrix(measured):
    _, result, directory = measured
    found = read(directory)
    assert set(found) == {"hessian", "ggn"}
    parts = found["hessian"]
    assert parts["eigenvalues"] == list(result.spectrum.eigenvalues) == sorted(parts["eigenvalues"], reverse=True)
    assert parts["residuals"] == list(result.spectrum.residuals)
    assert (parts["lambda_min"], parts["sigma"]) == (result.spectrum.lambda_min, result.density.sigma)
    for name in ("grid", "density", "density_stderr"):
        assert parts[name] == getattr(result.density, name).tolist()
    assert list(parts["layers"]) == sorted(result.layers)
    for name, layer in parts["layers"].items():
        block = result.layers[name]
        assert (layer["lambda_max"], layer["lambda_min"]) == (block.lambda_max, block.lambda_min)
        assert ("trace" in layer) == (block.trace is not None)
    assert len(found["ggn"]["eigenvalues"]) == 2
    assert "layers" not in found["ggn"]


def test_wandb_gets_eigenvalues_density_and_layers_as_tables(measured):
    trainer, result, _ = measured
    taken = trainer.logger.taken
    assert {"spectrum/hessian", "spectrum/hessian_density", "spectrum/hessian_layers", "spectrum/ggn"} <= set(taken)
    columns, rows, step = taken["spectrum/hessian"]
    assert columns == ["index", "eigenvalue", "residual"]
    pairs = zip(result.spectrum.eigenvalues, result.spectrum.residuals, strict=True)
    assert rows == [[i, *pair] for i, pair in enumerate(pairs, start=1)]
    assert step == trainer.global_step
    columns, rows, _ = taken["spectrum/hessian_density"]
    assert columns == ["eigenvalue", "density", "density_stderr"]
    assert [row[1] for row in rows] == result.density.density.tolist()
    columns, rows, _ = taken["spectrum/hessian_layers"]
    assert columns == ["layer", "lambda_max", "lambda_min", "trace"]
    assert {row[0]: row[1] for row in rows} == {name: block.lambda_max for name, block in result.layers.items()}


def fake(*callbacks, **options):
    return SimpleNamespace(callbacks=list(callbacks), loggers=[], fast_dev_run=False, **options)


def hessian_with(**spectrum):
    callback = HessianSpectrum()
    ends = {"eigenvalues": (2.0,), "residuals": (0.1,), "lambda_min": 0.5, "lambda_min_residual": 0.0, "trace": None}
    values = SimpleNamespace(**{**ends, **spectrum})
    callback.result = SimpleNamespace(spectrum=values, density=None, layers={}, matrix="hessian")
    return callback


def test_numbers_that_json_has_no_word_for_come_back_as_floats(tmp_path):
    write_spectra(fake(hessian_with(eigenvalues=(math.inf, math.nan), residuals=(0.0, -math.inf))), tmp_path)
    parts = read(tmp_path)["hessian"]
    assert parts["eigenvalues"] == ["inf", "nan"]
    assert parts["residuals"] == [0.0, "-inf"]
    assert math.isnan(float(parts["eigenvalues"][1]))
    assert set(parts) == {"eigenvalues", "residuals", "lambda_min", "lambda_min_residual"}


def test_an_empty_density_is_left_out():
    callback = hessian_with()
    callback.result.density = SimpleNamespace(grid=torch.empty(0), density=torch.empty(0), sigma=math.nan)
    assert "grid" not in spectra(fake(callback))["hessian"]
    assert list(tables(spectra(fake(callback)))) == ["spectrum/hessian"]


def test_without_a_measurement_there_is_no_file(tmp_path):
    write_spectra(fake(HessianSpectrum(), Sharpness()), tmp_path)
    trial = fake(hessian_with())
    trial.fast_dev_run = True
    write_spectra(trial, tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    write_spectra(fake(hessian_with()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_fresh_run_removes_the_spectrum_of_the_one_before(tmp_path):
    (tmp_path / SPECTRUM_NAME).touch()
    forget(tmp_path)
    assert not list(tmp_path.iterdir())
