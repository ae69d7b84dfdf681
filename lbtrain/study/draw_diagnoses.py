"""Draw how many runs of each setting have each problem."""

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lbtrain.study.diagnoses import in_order
from lbtrain.study.diagnosis_sheets import Counted
from lbtrain.study.drawing import DPI, WIDTH, headline
from lbtrain.study.phrases import count

MAX_ROWS = 24  # settings; more are not legible at this width, and all of them stand in the table
_COLOURS = "cividis_r"  # of equal steps to the eye, with every colour vision (Nunez et al. 2018); dark is every run
_NONE = "#eeeeee"
_ROW, _BAND = 0.45, 0.5  # inches of a row; share of it that the squares take, below the name of the setting
_LETTERS = 48  # of 10 points fit into a row
_WIDE = 6  # columns that have room for "2 of 3"; more have it for "2"


def drawn_settings(settings: Sequence[Counted]) -> list[Counted]:
    """Choose the settings that the figure shows.

    Args:
        settings: As `by_setting` gives them.

    Returns:
        All of them; where these are too many, those with the most problems, in the order of the settings.
    """
    if len(settings) <= MAX_ROWS:
        return list(settings)
    most = sorted(settings, key=_share, reverse=True)[:MAX_ROWS]
    return [setting for setting in settings if setting in most and setting.problems]


def diagnoses_alt(title: str, settings: Sequence[Counted]) -> str:
    """Put the figure into words.

    Args:
        title: Headline of the figure.
        settings: As `by_setting` gives them.

    Returns:
        The problems of each setting with their counts, and how many settings have none or are not shown.
    """
    shown = drawn_settings(settings)
    parts = [
        f"{setting.label}: "
        + ", ".join(f"{name} in {n} of {count(of, 'run')}" for name in _columns(shown) for n, of in _has(setting, name))
        for setting in shown
        if setting.problems
    ]
    healthy = sum(not setting.problems for setting in settings)
    if healthy:
        parts.append(f"{count(healthy, 'setting')} without a problem")
    hidden = sum(bool(setting.problems) for setting in settings) - sum(bool(setting.problems) for setting in shown)
    if hidden:
        parts.append(f"{count(hidden, 'more setting')} with problems in the table")
    return f"{title}. {'; '.join(parts)}."


def draw_diagnoses(title: str, settings: Sequence[Counted]) -> Figure:
    """Draw a square for each setting and problem, darker the more of its runs have it, with their number.

    Args:
        title: Headline.
        settings: As `by_setting` gives them; at least one has a problem.

    Returns:
        The figure.
    """
    shown = drawn_settings(settings)
    names = _columns(shown)
    figure = Figure(figsize=(WIDTH, 2.5 + _ROW * len(shown)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for place, setting in zip(range(len(shown) - 1, -1, -1), shown, strict=True):
        for column, name in enumerate(names):
            _square(axes, column, place, setting.problems.get(name), len(names) <= _WIDE)
        # Above its squares and from the left edge: long names need the whole width.
        across = axes.get_yaxis_transform()
        axes.text(0.01, place + _BAND + 0.1, _fitting(setting.label), transform=across, fontsize=10, in_layout=False)
    axes.set_xlim(0, len(names))
    axes.set_ylim(-0.05, len(shown))
    axes.xaxis.tick_top()
    axes.set_xticks([column + 0.5 for column in range(len(names))], names, rotation=90)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    headline(figure, title)
    return figure


def _square(axes: Axes, column: int, place: int, share: tuple[int, int] | None, wide: bool) -> None:
    colour = colormaps[_COLOURS](share[0] / share[1]) if share else _NONE
    axes.add_patch(Rectangle((column, place), 1, _BAND, facecolor=colour, edgecolor="white", linewidth=0.8))
    if share:
        dark = share[0] / share[1] > 0.52  # where white letters stand out more than black ones, at least 4.5 to 1
        axes.text(
            column + 0.5,
            place + _BAND / 2,
            f"{share[0]} of {share[1]}" if wide else str(share[0]),
            ha="center",
            va="center_baseline",
            color="white" if dark else "black",
            fontsize=10,
        )


def _fitting(label: str) -> str:
    # Both ends: the optimizer stands first, the batch size and the method last.
    first, *rest = label.split(", ")
    shown = label
    while rest and len(shown) > _LETTERS:
        rest = rest[1:]
        shown = ", ".join([first, "...", *rest])
    return shown if len(shown) <= _LETTERS else f"{shown[: _LETTERS - 4]} ..."


def _columns(shown: Sequence[Counted]) -> list[str]:
    return in_order({name for setting in shown for name in setting.problems})


def _has(setting: Counted, name: str) -> list[tuple[int, int]]:
    return [setting.problems[name]] if name in setting.problems else []


def _share(setting: Counted) -> float:
    return sum(number / of for number, of in setting.problems.values())
