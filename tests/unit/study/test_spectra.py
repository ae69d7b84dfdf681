import json
import math
from pathlib import Path

import numpy as np
import pytest

from lbtrain.study.draw_spectra import draw_spectra
from lbtrain.study.load import load_sweep
from lbtrain.study.spectra import MAX_LINES, spectra, spectra_alt
from tests.unit.study.known_sweep import BATCHES, make_record, write_spectrum


@pytest.fixture
def sweep(write_sweep) -> Path:
    runs = [make_record("Adam", "none", batch, sam=False, seed=seed) for batch in BATCHES for seed in (0, 1)]
    folder = write_sweep(runs)
    for i, run in enumerate(runs):
        write_spectrum(folder / str(i), run.metrics["hessian/lambda_max"] * (1 + run.config["seed"]))
    return folder


def test_the_densities_are_averaged_over_the_seeds(sweep) -> None:
    (panel,) = spectra(load_sweep(sweep), "hessian")
    assert panel.title == "Adam"
    assert [density.batch for density in panel.densities] == list(BATCHES)
    first = panel.densities[0]
    assert (first.num_seeds, first.lambda_max.mean) == (2, pytest.approx(1.5 * 0.78))
    grid, density = np.asarray(first.grid), np.asarray(first.density)
    assert (grid[0], grid[-1]) == pytest.approx((-0.156, 1.2 * 1.56))
    # Each seed's bump at its largest eigenvalue, at half its height in the mean of two.
    for place in (0.78, 1.56):
        assert density[np.argmin(np.abs(grid - place))] == pytest.approx(5e-4, rel=0.1)
    # Where one seed has no density, the mean is half of the other's and not more.
    assert density[1] == pytest.approx(math.exp(-((grid[1] / 0.039) ** 2) / 2) / 2, rel=0.4)  # read off linearly
    assert "Adam: largest eigenvalue 1.17 at 16, 3.00 at 64, 9.45 at 256, 21.5 at 1024" in spectra_alt("T", [panel])


@pytest.mark.parametrize("text", ["{", "[]", '{"hessian": {}}', '{"hessian": {"grid": [1, 2], "density": ["nan", 1]}}'])
def test_a_run_without_a_readable_density_is_left_out(sweep, text) -> None:
    (sweep / "1" / "spectrum.json").write_text(text)
    (panel,) = spectra(load_sweep(sweep), "hessian")
    assert [density.num_seeds for density in panel.densities] == [1, 2, 2, 2]
    assert spectra(load_sweep(sweep), "ggn") == []


def test_the_words_of_a_record_are_numbers(sweep) -> None:
    path = sweep / "0" / "spectrum.json"
    parts = json.loads(path.read_text())
    parts["hessian"]["eigenvalues"][0] = "nan"
    path.write_text(json.dumps(parts))
    (panel,) = spectra(load_sweep(sweep), "hessian")
    assert panel.densities[0].lambda_max.n == 1


def test_many_batch_sizes_are_thinned_to_both_ends_and_some_between(write_sweep) -> None:
    from dataclasses import replace

    plain = make_record("Adam", "none", 16, sam=False)
    sizes = [2**k for k in range(2, 12)]
    runs = [
        replace(plain, config=plain.config | {"data.batch_size": size}, metrics=plain.metrics | {"batch/global": size})
        for size in sizes
    ]
    folder = write_sweep(runs)
    for i in range(len(runs)):
        write_spectrum(folder / str(i), 1.0 + i)
    (panel,) = spectra(load_sweep(folder), "hessian")
    assert len(panel.densities) == MAX_LINES
    assert (panel.densities[0].batch, panel.densities[-1].batch) == (4, 2048)


def test_lines_differ_in_colour_dash_and_marker_and_far_eigenvalues_share_a_logarithmic_axis(sweep) -> None:
    axes = draw_spectra("Title", spectra(load_sweep(sweep), "hessian")).axes[0]
    for look in ("get_color", "get_linestyle", "get_marker"):
        assert len({str(getattr(line, look)()) for line in axes.get_lines()}) == 4 or look == "get_linestyle"
    assert axes.get_xscale() == "symlog"  # 1.17 to 21.4
    assert axes.get_yscale() == "log"
