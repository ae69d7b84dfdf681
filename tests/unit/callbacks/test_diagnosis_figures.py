"""The figures of a diagnosis: what is drawn, and that nothing is drawn without content."""

import io
import math
from functools import cache

import numpy as np
import pytest
from matplotlib import image
from matplotlib.text import Text

from lbtrain.callbacks._diagnosis_figures import draw_diagnosis
from lbtrain.callbacks._diagnosis_panels import shown_layers
from lbtrain.callbacks._drawing import png_of
from lbtrain.callbacks._evidence import Evidence, Flow, Point, Units
from lbtrain.functional.diagnosis import Finding

NAN, INF = math.nan, math.inf
EDGES, COUNTS = tuple(i / 40 for i in range(41)), (500, *range(39))


def units(dead=0, saturated=0, kind="relu"):
    return Units(kind, 64, dead, saturated, EDGES, COUNTS)


def point(step, loss=1.0, *, layers=2, stability=None, **values):
    names = [f"model.layers.{i}" for i in range(layers)]
    flow = {name: Flow(0.1 * 10**i, 0.2, 1e-3 if step else None) for i, name in enumerate(names)}
    seen = {name: units(dead=min(i, 64)) for i, name in enumerate(names)}
    return Point(step, 0, loss, 1.0, 0.1, stability=stability, **{"units": seen, "flow": flow, **values})


def usual(steps=60, layers=2):
    losses = [2.0 - i / steps for i in range(steps)]
    points = [point(s, 2.0 - s / steps, layers=layers, stability=s / 30) for s in range(0, steps + 1, steps // 6)]
    return Evidence(losses, [0.1] * steps, points)


def diverged():
    return Evidence([1.0, 5.0, 1e30, NAN, NAN], [0.1] * 5, [point(0), point(2, 1e30), point(4, NAN)])


def found(problem, since, figure=None):
    return Finding(problem, "evidence", {}, 2.0, since, (), figure)


FINDINGS = (
    found("dead units", 20, "diagnosis_units"),
    found("instability", 21),
    found("exploding gradients", 22, "diagnosis_flow"),
    found("summed loss", 0),
    found("label imbalance", None),
)
RUNS = {
    "usual": usual,
    "long": lambda: usual(3000, 30),
    "first step": lambda: Evidence([2.3], [0.1], [point(0)]),
    "diverged": diverged,
}


@cache
def drawn(name, with_findings=True):
    return draw_diagnosis(RUNS[name](), FINDINGS if with_findings else ())


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("usual", "diagnosis_curve"),
        ("long", "diagnosis_units"),
        ("long", "diagnosis_flow"),
        ("diverged", "diagnosis_curve"),
        ("first step", "diagnosis_units"),
    ],
)
def test_each_figure_fits_its_frame_and_says_in_words_and_numbers_what_is_seen(name, stem):
    figure = drawn(name)[stem]
    pixels = image.imread(io.BytesIO(png_of(figure)))[..., :3]
    assert pixels.shape[1] == 900
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert np.all(edge == 1.0)  # white, and nothing is cut off
    words = figure.get_label()
    assert words.endswith(".")
    assert any(character.isdigit() for character in words)
    assert "nan" not in words


def test_only_figures_with_content_are_drawn():
    assert draw_diagnosis(Evidence(), FINDINGS) == {}
    assert list(draw_diagnosis(Evidence([1.0], [0.1]), ())) == ["diagnosis_curve"]
    assert list(draw_diagnosis(Evidence([NAN], [0.1], [point(0, NAN, units={}, flow={})]), ())) == []
    assert list(draw_diagnosis(Evidence([], [], [point(0, NAN, flow={})]), ())) == ["diagnosis_units"]
    lost = {"a": Flow(NAN, NAN, NAN)}
    assert draw_diagnosis(Evidence([], [], [point(0, NAN, units={}, flow=lost)]), ()) == {}


def test_the_curve_shows_both_losses_the_edge_and_the_rate():
    figure = drawn("usual", False)["diagnosis_curve"]
    top, middle, low = figure.axes
    batches, subset = top.lines
    assert list(batches.get_ydata()) == pytest.approx([2.0 - i / 60 for i in range(60)])
    assert list(subset.get_xdata()) == [0, 10, 20, 30, 40, 50, 60]
    stability, edge = middle.lines
    assert list(stability.get_ydata()) == pytest.approx([s / 30 for s in range(0, 61, 10)])
    assert list(edge.get_ydata()) == [1, 1]
    assert set(low.lines[0].get_ydata()) == {0.1}
    assert "stability at most 2, at step 60" in figure.get_label()


def test_without_curvature_there_is_no_panel_of_stability():
    assert [axes.get_ylabel() for axes in drawn("first step")["diagnosis_curve"].axes] == ["loss", "rate"]


def test_findings_are_marked_and_named_where_they_began_in_every_panel():
    figure = drawn("usual")["diagnosis_curve"]
    for axes in figure.axes:
        steps = {line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"}
        assert steps == {20, 21, 22}
    names = [text for text in texts(figure) if text in {f.problem for f in FINDINGS}]
    assert sorted(names) == ["dead units", "exploding gradients", "instability"]


def test_names_of_marks_do_not_cover_each_other():
    figure = drawn("usual")["diagnosis_curve"]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_losses_that_are_not_finite_are_marked_and_counted():
    figure = drawn("diverged")["diagnosis_curve"]
    assert "not finite from step 3" in texts(figure)
    assert figure.get_label().endswith("; 2 losses are not finite.")
    assert figure.axes[0].get_yscale() == "log"


def test_a_long_curve_is_drawn_as_its_mean_within_its_range():
    losses = [1.0 + (i % 2) for i in range(6000)]
    figure = draw_diagnosis(Evidence(losses, [0.1] * 6000), ())["diagnosis_curve"]
    (line,) = figure.axes[0].lines
    assert len(line.get_xdata()) == 600
    assert list(line.get_ydata()) == pytest.approx([1.5] * 600)
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1.0, 2.0)


def test_shares_of_units_are_drawn_by_layer():
    evidence = Evidence([], [], [point(0, units={"a": units(), "b": units()}),
                                 point(5, units={"a": units(16), "b": units(0, 48, "tanh")})])  # fmt: skip
    figure = draw_diagnosis(evidence, [found("dead units", 5)])["diagnosis_units"]
    dead, saturated = (
        next(a for a in figure.axes if a.get_title("left") == t) for t in ("Dead units", "Saturated units")
    )
    assert [list(line.get_ydata()) for line in dead.lines if line.get_linestyle() == "-"] == [[0, 0.25], [0, 0]]
    assert [list(line.get_ydata()) for line in saturated.lines] == [[0, 0], [0, 0.75]]
    assert (
        figure.get_label()
        == "Units at step 5: a, 64 relu, 16 dead and 0 saturated; b, 64 tanh, 0 dead and 48 saturated."
    )
    assert {"a (relu)", "b (tanh)", "dead units"} <= set(texts(figure))


def test_histograms_are_those_of_the_last_step_with_values():
    lost = Units("relu", 64, 0, 0, EDGES, (0,) * 40)
    evidence = Evidence([], [], [point(3, units={"a": units(7)}), point(6, units={"a": lost})])
    assert draw_diagnosis(evidence, ())["diagnosis_units"].get_label().startswith("Units at step 3: a, 64 relu, 7 dead")


def test_the_flow_shows_a_line_for_each_layer_and_the_usual_update():
    figure = drawn("usual", False)["diagnosis_flow"]
    gradients, weights, updates = figure.axes
    assert [set(line.get_ydata()) for line in gradients.lines] == [{0.1}, {1.0}]
    assert [set(line.get_ydata()) for line in weights.lines] == [{0.2}, {0.2}]
    assert list(updates.lines[0].get_ydata()) == [1e-3, 1e-3]
    assert [len(line.get_xdata()) for line in updates.lines[1:]] == [6, 6]  # the first point has no update
    assert len(drawn("first step")["diagnosis_flow"].axes) == 2


def test_of_many_layers_eight_are_shown_ends_and_notable_ones_among_them():
    layers = [f"l{i}" for i in range(30)]
    assert list(shown_layers(layers[:3])) == layers[:3]
    assert list(shown_layers(layers)) == ["l0", "l4", "l8", "l12", "l17", "l21", "l25", "l29"]
    chosen = list(shown_layers(layers, ["l13", "l1"]))
    assert {"l0", "l1", "l13", "l29"} <= set(chosen)
    assert len(chosen) == 8
    assert chosen == sorted(chosen, key=layers.index)
    assert "(8 of 30)" in drawn("long")["diagnosis_flow"].axes[0].get_title("left")
    assert shown_layers([]) == {}


def test_the_worst_layer_is_always_shown():
    seen = {f"l{i}": units(dead=60 if i == 13 else 0) for i in range(30)}
    figure = draw_diagnosis(Evidence([], [], [point(0, units=seen)]), ())["diagnosis_units"]
    assert "l13 (relu)" in texts(figure)
