"""Dot-and-interval plots of one metric over the methods of a run.

`plot_layout` only computes where things go; the report draws it as inline SVG, so that the page's own colours
and fonts apply. `interval_plot` draws the same picture to a PNG, SVG or PDF file with matplotlib.

Example:
    >>> interval_plot(Path("accuracy.png"), read_json(run / "scores.json"), metric="accuracy")
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta.baselines.roles import WITHOUT_MERGING, is_control
from mta.errors import ConfigError, DataError
from mta.evaluation.formats import format_interval, format_score, metric_title
from mta.evaluation.measures import MEASURES
from mta.evaluation.notes import run_line
from mta.evaluation.scores_file import check_scores, finite, interval_of
from mta.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
BLUE, GREY = "#0072b2", "#6b6b6b"
ROW, TOP, BOTTOM = 24, 8, 26
WIDTH, RIGHT = 430, 52
NAME_LETTERS, LETTER, BESIDE_NAME = 24, 6.8, 14
"""Longest name shown whole, width of a letter, room beside the names; the margin is as wide as the names need."""
LEAST_LEFT = 96.0


@dataclass(frozen=True, slots=True)
class PlotRow:
    """One method in a plot; positions are pixels of the layout."""

    name: str
    short: str
    """The name, cut where it is too long for the margin."""
    is_control: bool
    y: float
    x: float
    low: float | None
    high: float | None
    value: str
    interval: str


@dataclass(frozen=True, slots=True)
class PlotLayout:
    """Where everything of one plot goes, in pixels of its own view box."""

    metric: str
    title: str
    width: int
    height: int
    left: float
    right: float
    """Ends of the axis."""
    axis_y: float
    ticks: tuple[tuple[float, str], ...]
    """(x, text) of each tick."""
    rows: tuple[PlotRow, ...]
    control_x: float | None
    """Where the best control's point estimate lies, or None without controls."""
    control_name: str


def plot_layout(scores: Mapping[str, Any], metric: str) -> PlotLayout:
    """Compute the plot of one metric: a row per method that has a value, in the order of the scores.

    Raises:
        DataError: `scores` is not the content of a scores.json, or no method has the metric.
    """
    methods = _methods_with(scores, metric)
    start, end = padded(*_extent(methods, metric))
    ticks = nice_ticks(start, end)
    longest = min(max(map(len, scores["methods"])), NAME_LETTERS)  # of the run, so that its plots line up
    left, right = round(max(LEAST_LEFT, BESIDE_NAME + LETTER * longest), 2), float(WIDTH - RIGHT)

    def place(value: float) -> float:
        return round(left + (right - left) * (value - start) / (end - start), 2)

    rows = tuple(
        _row(name, method, metric, y=TOP + ROW * (index + 0.5), place=place)
        for index, (name, method) in enumerate(methods.items())
    )
    control = best_control(scores, metric)
    axis_y = TOP + ROW * len(rows)
    return PlotLayout(
        metric=metric,
        title=metric_title(metric),
        width=WIDTH,
        height=axis_y + BOTTOM,
        left=left,
        right=right,
        axis_y=axis_y,
        ticks=tuple((place(tick), tick_text(tick, ticks[1] - ticks[0])) for tick in ticks),
        rows=rows,
        control_x=None if control is None else place(methods[control]["metrics"][metric]),
        control_name=control or "",
    )


def best_control(scores: Mapping[str, Any], metric: str) -> str | None:
    """Name the best control of those that merge no anchors, by its point estimate; None where none has the metric."""
    if metric not in MEASURES:
        return None
    values = {
        name: value
        for name in WITHOUT_MERGING
        if (value := finite(scores["methods"].get(name, {}).get("metrics", {}).get(metric))) is not None
    }
    best = max if MEASURES[metric].higher_is_better else min
    return best(values, key=lambda name: values[name]) if values else None


def interval_plot(path: Path, scores: Mapping[str, Any], metric: str, *, title: str | None = None) -> None:
    """Draw one metric of a run to `path`, as PNG, SVG or PDF by its ending.

    A dot is a point estimate, a line its 95 % interval over people; controls are hollow and grey, and the
    dashed line marks the best of those that merge no anchors.

    Raises:
        ConfigError: the ending is none of the three.
        DataError: `scores` is not the content of a scores.json, or no method has the metric.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and few callers plot
    from matplotlib.figure import Figure

    kind = picture_format(path)
    methods = _methods_with(scores, metric)
    figure = Figure(figsize=(7, 1.2 + 0.32 * len(methods)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (name, method) in enumerate(methods.items()):
        colour = GREY if is_control(name) else BLUE
        pair = interval_of(method, metric)
        if pair is not None:
            axes.plot(pair, (index, index), color=colour, linewidth=2, solid_capstyle="round")
        face = "white" if is_control(name) else colour
        axes.plot(method["metrics"][metric], index, "o", color=colour, markerfacecolor=face, markersize=7)
    control = best_control(scores, metric)
    if control is not None:
        axes.axvline(methods[control]["metrics"][metric], color=GREY, linestyle="--", linewidth=1, zorder=0)
    figure.supxlabel(plain_text(_key(methods, control)), fontsize=8, color=GREY, x=0.01, horizontalalignment="left")
    axes.set_yticks(range(len(methods)), [plain_text(name) for name in methods])
    axes.invert_yaxis()
    axes.set_xlabel(plain_text(metric_title(metric)))
    axes.set_title(plain_text(title if title is not None else run_line(scores)), fontsize=10, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    write_figure(path, figure, kind)


def _key(methods: Mapping[str, Any], control: str | None) -> str:
    """Say what the marks of a picture mean, as far as it has them."""
    hollow = "hollow: controls" if any(map(is_control, methods)) else ""
    dashed = f"dashed: {control}, the best control without merging" if control else ""
    return "; ".join(filter(None, ["Lines: 95 % intervals over people", hollow, dashed]))


def picture_format(path: Path) -> str:
    """One of `FORMATS`, by the ending of `path`.

    Raises:
        ConfigError: the ending is none of them.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ConfigError(f"cannot draw to {path.name!r}: choose a name that ends in .{', .'.join(FORMATS)}")
    return kind


def write_figure(path: Path, figure: Figure, kind: str) -> None:
    """Write a drawn figure; the same figure gives the same bytes, whenever it is drawn."""
    import matplotlib

    image = io.BytesIO()
    undated = {"Date": None} if kind == "svg" else {"CreationDate": None} if kind == "pdf" else None
    with matplotlib.rc_context({"svg.hashsalt": "mta"}):
        figure.savefig(image, format=kind, dpi=160, metadata=undated)
    write_bytes(path, image.getvalue())


def plain_text(text: str) -> str:
    """Keep matplotlib from reading a name between dollar signs as mathematics."""
    return text.replace("$", r"\$")


def _methods_with(scores: Mapping[str, Any], metric: str) -> dict[str, Mapping[str, Any]]:
    methods = check_scores(scores)["methods"]
    found = {name: method for name, method in methods.items() if finite(method["metrics"].get(metric)) is not None}
    if not found:
        known = sorted({name for method in methods.values() for name in method["metrics"]})
        raise DataError(f"no method has a value for {metric!r}; the scores hold: {', '.join(known) or 'none'}")
    return found


def _row(name: str, method: Mapping[str, Any], metric: str, *, y: float, place: Any) -> PlotRow:
    value, pair = method["metrics"][metric], interval_of(method, metric)
    return PlotRow(
        name=name,
        short=name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…",
        is_control=is_control(name),
        y=y,
        x=place(value),
        low=None if pair is None else place(pair[0]),
        high=None if pair is None else place(pair[1]),
        value=format_score(value),
        interval=format_interval(pair),
    )


def _extent(methods: Mapping[str, Mapping[str, Any]], metric: str) -> tuple[float, float]:
    points = [float(method["metrics"][metric]) for method in methods.values()]
    bounds = [bound for method in methods.values() for bound in interval_of(method, metric) or ()]
    return min(points + bounds), max(points + bounds)


def padded(low: float, high: float) -> tuple[float, float]:
    """Leave a little room at both ends, and a visible range where all values are equal."""
    room = 0.04 * (high - low)
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):
        room = 0.05 * max(1.0, abs(low))
    return low - room, high + room


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers inside [low, high], two to seven of them."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)] if last > first else [low, high]


def tick_text(value: float, step: float) -> str:
    """Write a tick with as many decimals as its distance to the next one needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step * 10**decimals, 6) % 1:
        decimals += 1  # a step of 2.5
    return f"{value:.{decimals}f}" if abs(value) < 1e5 else f"{value:.3g}"
