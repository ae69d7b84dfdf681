"""Figures of curvature: what is drawn, how it looks, and where it goes."""

import ast
import io
import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import image
from matplotlib.colors import to_hex
from PIL import Image

from lbtrain._lightning import CSVLogger, Trainer, WandbLogger, rank_zero_only
from lbtrain.callbacks import _curvature_figures, _drawing, _landscape_figures, _pictures
from lbtrain.callbacks._curvature_figures import (
    density_figure,
    layers_figure,
    line_figure,
    plane_figure,
    tracks_figure,
)
from lbtrain.callbacks._drawing import BLUE, ORANGE, between, levels_between, png_of
from lbtrain.callbacks._landscape_figures import _smooth
from lbtrain.callbacks._pictures import publish_figure, run_directory
from lbtrain.functional.density import density
from lbtrain.functional.landscape import LossLine, LossPlane
from tests.problems import generator

SGD = "SGD, edge at lr (lambda_max + wd) = 2"
NAN, INF = math.nan, math.inf


def spectral_density(probes=3):
    values = torch.cat([torch.zeros(40), torch.tensor([-0.5, 2.0, 6.0])]).double()
    return density(
        lambda v: values * v, 43, num_probes=probes, num_steps=12, generator=generator(), dtype=torch.float64
    )


def tracks(rate=0.1, tops=(5.0, 9.0, 12.0)):
    return [
        {
            "step": 10 * i,
            "epoch": i,
            "hessian/lambda_1": top,
            "hessian/lambda_2": top / 2,
            "hessian/lambda_10": top / 20,
            "hessian/lambda_max": top,
            "hessian/lambda_max_residual": 0.5,
            "hessian/stability": rate * top / 2,
        }
        for i, top in enumerate(tops)
    ]


def line(values=(3.0, 1.0, 2.0), errors=(0.1, 0.0, 0.3)):
    return LossLine((-1.0, 0.0, 2.0), values, errors, 1.0, 4)


def plane(values=((1.0, 2.0), (3.0, 400.0), (2.0, 5.0))):
    return LossPlane((-1.0, 0.0, 1.0), (-0.5, 0.5), values, 1.5, 7)


def layers(count=3):
    return {f"net.{i}": SimpleNamespace(lambda_max=float(i + 1), lambda_max_residual=0.25) for i in range(count)}


FIGURES = {
    "density": lambda: density_figure(spectral_density()),
    "one probe": lambda: density_figure(spectral_density(1)),
    "tracks": lambda: tracks_figure(tracks(), law=SGD),
    "one track": lambda: tracks_figure(tracks(tops=(5.0,))),
    "line": lambda: line_figure(line(), curvature=2.0),
    "plane": lambda: plane_figure(plane()),
    "layers": lambda: layers_figure(layers(), whole=SimpleNamespace(lambda_max=7.0, lambda_max_residual=0.1)),
    "many layers": lambda: layers_figure({f"a.rather.long.name.of.layer{k}": v for k, v in layers(60).items()}),
}


def curves(figure):
    """Return x and y of each line by colour and dash."""
    return {
        (to_hex(drawn.get_color()).upper(), drawn.get_linestyle()): (list(drawn.get_xdata()), list(drawn.get_ydata()))
        for drawn in figure.axes[0].lines
    }


@cache
def rendered(name):
    """Return a figure and its PNG, drawn once for all tests."""
    figure = FIGURES[name]()
    return figure, png_of(figure)


@pytest.mark.parametrize("name", ["tracks", "plane"])
def test_the_same_numbers_make_the_same_bytes(name):
    assert png_of(FIGURES[name]()) == rendered(name)[1]


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_fits_its_frame(name):
    pixels = image.imread(io.BytesIO(rendered(name)[1]))[..., :3]
    assert pixels.shape[1] == 900
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert np.all(edge == 1.0)  # white, and nothing is cut off


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_says_in_words_and_numbers_what_is_seen(name):
    figure, png = rendered(name)
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.info == {"Description": figure.get_label(), "dpi": picture.info["dpi"]}
    assert any(character.isdigit() for character in figure.get_label())
    assert figure.get_label().endswith(".")
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.get_ylabel()


def test_the_density_is_drawn_down_to_a_tenth_of_a_single_eigenvalue():
    found = spectral_density()
    figure = density_figure(found, lambda_max=6.5, lambda_min=-0.75)
    x, y = curves(figure)[BLUE, "-"]
    alone = 1 / (43 * found.sigma * math.sqrt(2 * math.pi))
    assert x == found.grid.tolist()
    assert y == pytest.approx(found.density.clamp_min(alone / 10).tolist())
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] == pytest.approx(alone / 10)
    assert curves(figure)[_drawing.GREY.upper(), ":"][1] == [alone, alone]
    marks = [drawn.get_xdata()[0] for drawn in axes.lines if to_hex(drawn.get_color()).upper() == ORANGE]
    assert marks == [-0.75, 6.5]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["height of one eigenvalue"]
    assert [text.get_text() for text in axes.texts] == [
        r"$\lambda_{\min}$ = -0.75",
        r"$\lambda_{\max}$ = 6.5",
    ]
    assert figure.get_label().startswith("Density of the 43 eigenvalues, on a logarithmic scale, from -0.75 to 6.5")


def test_the_density_has_a_band_of_its_standard_error_where_probes_give_one():
    for probes, bands in ((3, 2), (1, 1)):  # the area below the curve is one of them
        assert len(density_figure(spectral_density(probes)).axes[0].collections) == bands


def test_tracks_show_the_edge_where_stability_would_be_one():
    figure = tracks_figure(tracks(rate=0.1), law=SGD)
    drawn = curves(figure)
    assert drawn[ORANGE, "--"] == ([0, 10, 20], pytest.approx([20.0, 20.0, 20.0]))  # 2 / lr
    solid = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [list(line.get_ydata()) for line in solid] == [[5.0, 9.0, 12.0], [2.5, 4.5, 6.0], [0.25, 0.45, 0.6]]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [r"$\lambda_{1}$", r"$\lambda_{2}$", r"$\lambda_{10}$", "edge of stability, 2/lr"]
    assert figure.axes[0].get_yscale() == "log"
    assert figure.get_label() == (
        "Largest eigenvalue: 5 at step 0, 12 at step 20, at most 12; edge of stability, 2/lr: 20 at the end."
    )


@pytest.mark.parametrize(
    ("law", "name"),
    [
        (SGD, "edge of stability, 2/lr"),
        ("SGD, edge at lr (1 - dampening) (lambda_max + wd) = 2 + 2 mu", "edge of stability, SGD with momentum"),
        (
            "SGD with Nesterov momentum, edge at lr (1 + 2 mu) (lambda_max + wd) = 2 + 2 mu",
            "edge of stability, SGD with Nesterov momentum",
        ),
        ("Adam, edge at lr (1 - b1) lambda_max(P^-1 (H + wd)) = 2 + 2 b1", "edge of stability, Adam"),
        ("", "edge of stability"),
    ],
)
def test_the_edge_bears_the_name_of_its_law(law, name):
    assert tracks_figure(tracks(), law=law).legends[0].get_texts()[-1].get_text() == name


def test_tracks_leave_out_what_was_not_finite_or_has_no_edge():
    points = tracks()
    points[1] |= {"hessian/lambda_1": NAN, "hessian/lambda_max": NAN}
    points[2] |= {"hessian/stability": NAN, "hessian/lambda_10": -0.1}
    figure = tracks_figure(points)
    assert curves(figure)[ORANGE, "--"] == ([0], [20.0])
    assert list(figure.axes[0].lines[0].get_xdata()) == [0, 20]
    assert figure.axes[0].get_yscale() == "linear"  # a negative one among them
    without = tracks_figure([{**point, "hessian/stability": NAN} for point in points])
    assert (ORANGE, "--") not in curves(without)
    assert without.get_label() == "Largest eigenvalue: 5 at step 0, 12 at step 20, at most 12."


def test_a_single_measurement_shows_its_edge_too():
    figure = tracks_figure(tracks(tops=(5.0,)), law=SGD)
    (edge,) = (line for line in figure.axes[0].lines if to_hex(line.get_color()).upper() == ORANGE)
    assert (edge.get_marker(), list(edge.get_ydata())) == ("_", [20.0])
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())


def test_a_line_is_drawn_with_its_quadratic_model_and_its_error():
    figure = line_figure(line(), curvature=2.0, slope=-0.5)
    drawn = curves(figure)
    assert drawn[BLUE, "-"] == ([-1.0, 0.0, 2.0], [3.0, 1.0, 2.0])
    assert drawn[ORANGE, "--"] == ([-1.0, 0.0, 2.0], [2.5, 1.0, 4.0])  # 1 - d / 2 + d^2
    assert len(figure.axes[0].collections) == 1
    assert not line_figure(line(errors=(NAN,) * 3), curvature=2.0).axes[0].collections
    low, high = figure.axes[0].get_ylim()
    assert low < 1.0 < 3.0 < high < 3.5  # by the loss, not by the model


def test_what_is_not_finite_on_a_line_or_plane_is_left_out():
    assert curves(line_figure(line((INF, 1.0, 2.0)), curvature=2.0))[BLUE, "-"] == ([0.0, 2.0], [1.0, 2.0])
    figure = plane_figure(plane(((1.0, 2.0), (NAN, 4.0), (INF, 5.0))))
    assert "from 1 at (-1, -0.5) to 5." in figure.get_label()


def test_titles_name_the_matrix():
    for kind, name in (("hessian", ""), ("ggn", "Gauss-Newton ")):
        drawn = [
            density_figure(spectral_density(1), matrix=kind),
            tracks_figure(tracks(), matrix=kind),
            layers_figure(layers(), matrix=kind),
        ]
        titles = [figure.axes[0].get_title(loc="left") for figure in drawn]
        sharpness = f"{name}sharpness by layer"
        assert titles == [
            f"Density of the {name}eigenvalues",
            f"Largest {name}eigenvalues during training",
            sharpness[0].upper() + sharpness[1:],
        ]


@pytest.mark.parametrize("places", [(-1.0, 2.0), (-1.0, 0.0, 2.0), (-2.0, -1.0, 0.0, 0.5, 3.0, 4.0)])
def test_between_points_a_polynomial_stays_what_it_is(places):
    points, weights = between(places, 13)
    for power in range(min(4, len(places))):
        expected = points**power
        torch.testing.assert_close(weights @ torch.tensor(places, dtype=torch.float64) ** power, expected)


def test_a_plane_is_drawn_by_its_values_and_within_them():
    places = tuple(i / 4 for i in range(-4, 5))
    rise = LossPlane(places, places, tuple(tuple(a * a + 3 * b * b + a for b in places) for a in places), 0.0, 81)
    x, y, rows = _smooth(rise, -0.25, 5.0)
    a, b = np.meshgrid(x, y)
    assert rows.shape == (101, 101)
    assert rows == pytest.approx(a * a + 3 * b * b + a)
    steep = LossPlane(places, places, tuple(tuple(1.0 + 1e4 * (a > 0) for _ in places) for a in places), 1.0, 81)
    rows = _smooth(steep, 1.0, 10001.0)[2]
    assert (rows.min(), rows.max()) == (1.0, 10001.0)


def test_contours_are_even_in_the_logarithm_where_the_loss_spans_decades():
    found = levels_between(0.01, 100.0, 5)
    assert found == pytest.approx([0.01, 0.1, 1.0, 10.0, 100.0])
    assert levels_between(1.0, 9.0, 5) == [1.0, 3.0, 5.0, 7.0, 9.0]
    assert levels_between(-1.0, 99.0, 3) == [-1.0, 49.0, 99.0]
    for low, high in ((2.0, 2.0), (0.0, 0.0), (1e-30, 5.0), (3.0, 3.0 + 1e-15)):
        found = levels_between(low, high)
        assert found[0] <= low <= high <= found[-1]
        assert all(a < b for a, b in pairwise(found))


def test_a_plane_where_all_losses_agree_is_drawn_all_the_same():
    png_of(plane_figure(plane(((2.0, 2.0),) * 3)))


def test_bars_stand_in_the_order_of_the_network_with_the_bound_on_their_error():
    figure = layers_figure(layers(), whole=SimpleNamespace(lambda_max=7.0, lambda_max_residual=0.1))
    (axes,) = figure.axes
    bars = sorted(axes.patches, key=lambda bar: -bar.get_y())
    assert [bar.get_width() for bar in bars] == [1.0, 2.0, 3.0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["net.0", "net.1", "net.2"]
    whiskers = next(c for c in axes.collections).get_segments()
    assert [sorted(end[0] for end in whisker) for whisker in whiskers] == [[0.75, 1.25], [1.75, 2.25], [2.75, 3.25]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["whole network, 7"]
    assert figure.get_label() == "Largest eigenvalue by layer: net.0 1; net.1 2; net.2 3."


def test_of_many_layers_the_largest_are_shown():
    found = layers(30) | {"lost": SimpleNamespace(lambda_max=NAN, lambda_max_residual=NAN)}
    (axes,) = layers_figure(found).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"net.{i}" for i in range(10, 30)]
    assert axes.get_title(loc="left") == "Sharpness by layer (the 20 largest of 30)"


def test_of_a_long_name_the_end_is_shown():
    (axes,) = layers_figure({f"a.module.within.many.modules.{name}": v for name, v in layers(1).items()}).axes
    (label,) = axes.get_yticklabels()
    assert label.get_text() == "...thin.many.modules.net.0"
    assert len(label.get_text()) == 26


def test_where_there_is_nothing_to_see_a_figure_says_why():
    diverged = density(lambda v: v * NAN, 3, generator=generator())
    empty = {
        density_figure(diverged): "no spectral density",
        tracks_figure([]): "no eigenvalue was measured",
        tracks_figure([{"step": 1, "hessian/lambda_1": NAN}]): "no eigenvalue was measured",
        line_figure(line((NAN,) * 3), curvature=NAN): "no loss is finite",
        plane_figure(plane(((NAN, NAN),) * 3)): "no plane of the loss",
        plane_figure(LossPlane((1.0,), (1.0, 2.0), ((1.0, 2.0),), 1.0, 3)): "no plane of the loss",
        layers_figure({"net": SimpleNamespace(lambda_max=NAN, lambda_max_residual=NAN)}): "no layer has",
    }
    for figure, words in empty.items():
        assert figure.get_label().startswith(words)
        assert figure.axes[0].texts[0].get_text() == figure.get_label()
        png_of(figure)


def test_a_users_style_changes_nothing_and_stays():
    import matplotlib as mpl

    before = rendered("tracks")[1]
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        assert png_of(FIGURES["tracks"]()) == before
        assert mpl.rcParams["font.size"] == 30


@pytest.mark.parametrize("module", [_curvature_figures, _landscape_figures, _drawing, _pictures])
def test_matplotlib_is_loaded_when_something_is_drawn(module):
    tree = ast.parse(Path(module.__file__).read_text())
    names = [n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)]
    names += [alias.name for n in tree.body if isinstance(n, ast.Import) for alias in n.names]
    assert not [name for name in names if name.split(".")[0] in ("matplotlib", "PIL", "numpy")]
    assert "pyplot" not in {
        name.split(".")[-1] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for name in [n.module]
    }


def trainer(directory, logger=False, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(default_root_dir=directory, logger=logger, accelerator="cpu", **quiet, **options)


class Taker(CSVLogger):
    """Takes pictures as wandb's logger does, or refuses them."""

    def __init__(self, directory, *, fails=False):
        super().__init__(directory)
        self.fails, self.taken = fails, []

    def log_image(self, key, images, step=None, caption=None):
        if self.fails:
            raise OSError("no room")
        self.taken.append((key, [i.shape for i in images], step, caption))


class Board(CSVLogger):
    """Has a writer as TensorBoard's logger does."""

    def __init__(self, directory):
        super().__init__(directory)
        self.taken = []

    @property
    def experiment(self):
        return SimpleNamespace(add_image=lambda *given, **named: self.taken.append((given, named)))


def test_a_figure_is_written_into_the_directory_of_the_run(tmp_path):
    publish_figure(trainer(tmp_path), "tracks", FIGURES["tracks"])
    assert (tmp_path / "figures" / "tracks.png").read_bytes() == rendered("tracks")[1]
    assert len(list(tmp_path.rglob("*.*"))) == 1


def test_the_directory_of_a_run_is_its_loggers_if_that_has_one_for_each_run(tmp_path):
    assert run_directory(trainer(tmp_path)) == tmp_path
    logger = CSVLogger(tmp_path / "logs", name="run", version=3)
    assert run_directory(trainer(tmp_path, logger)) == tmp_path / "logs" / "run" / "version_3"


def test_loggers_that_take_pictures_get_the_figure_with_its_words(tmp_path):
    takes, board = Taker(tmp_path / "a"), Board(tmp_path / "b")
    figure = FIGURES["tracks"]()
    publish_figure(trainer(tmp_path, [CSVLogger(tmp_path / "c"), takes, board]), "tracks", figure)
    assert takes.taken == [("figures/tracks", [(540, 900, 3)], 0, [figure.get_label()])]
    (((key, pixels, step), named),) = board.taken
    assert (key, step, named) == ("figures/tracks", 0, {"dataformats": "HWC"})
    assert pixels.dtype == np.uint8
    assert pixels.shape == (540, 900, 3)


def test_a_logger_that_refuses_costs_one_warning_and_the_others_get_theirs(tmp_path):
    fails, takes = Taker(tmp_path / "a", fails=True), Taker(tmp_path / "b")
    host = trainer(tmp_path / "host", [fails, takes])
    with pytest.warns(UserWarning, match="^Taker has not taken the figure 'tracks': OSError: no room; the numbers are"):
        publish_figure(host, "tracks", FIGURES["tracks"])
    publish_figure(host, "line", FIGURES["line"])  # the second warning would be an error here
    assert [key for key, *_ in takes.taken] == ["figures/tracks", "figures/line"]
    assert len(list(tmp_path.rglob("*.png"))) == 2


def test_a_figure_that_cannot_be_drawn_or_written_does_not_fail_the_run(tmp_path):
    with pytest.warns(UserWarning, match="the figure 'x' is missing in the run's directory: ZeroDivisionError"):
        publish_figure(trainer(tmp_path), "x", lambda: 1 / 0)
    (tmp_path / "figures").write_text("a file in the way")
    with pytest.warns(UserWarning, match="the figure 'x' is missing in the run's directory: FileExistsError"):
        publish_figure(trainer(tmp_path), "x", FIGURES["tracks"])


def test_ctrl_c_while_drawing_is_heard(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_figure(trainer(tmp_path), "x", interrupted)


def test_a_trial_run_and_the_other_ranks_write_nothing(tmp_path, monkeypatch):
    publish_figure(trainer(tmp_path, fast_dev_run=True), "x", FIGURES["tracks"])
    host = trainer(tmp_path)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    publish_figure(host, "x", lambda: pytest.fail("drew"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_wandb_keeps_the_picture_with_the_run(tmp_path):
    wandb = pytest.importorskip("wandb")
    run = wandb.init(project="p", mode="offline", dir=tmp_path, settings=wandb.Settings(console="off", quiet=True))
    try:
        figure = FIGURES["line"]()
        publish_figure(trainer(tmp_path, WandbLogger(experiment=run)), "line", figure)
    finally:
        wandb.finish()
    (picture,) = tmp_path.glob("wandb/offline-run-*/files/media/images/figures/line_0_*.png")
    with Image.open(picture) as taken, Image.open(io.BytesIO(png_of(FIGURES["line"]()))) as drawn:
        assert np.array_equal(np.asarray(taken.convert("RGB")), np.asarray(drawn.convert("RGB")))
