"""Where everything of a line chart goes, for the page that draws it, and the same chart drawn to a file.

Example:
    >>> draw_chart(Path("k.png"), chart)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mta.errors import DataError
from mta.evaluation.figures import Chart, Line, Point
from mta.evaluation.formats import format_interval, format_score
from mta.evaluation.plots import nice_ticks, padded, picture_format, plain_text, tick_text, write_figure

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 46
COLOURS = ("#0072b2", "#d55e00")
"""Okabe and Ito's blue and vermilion: apart for every kind of colour vision, and in grey by their dashes and marks."""
MOST_X_LABELS = 9
GREY = "#6b6b6b"


@dataclass(frozen=True, slots=True)
class Mark:
    """One point of a placed line, in pixels."""

    x: float
    y: float
    low: float | None
    high: float | None
    text: str
    """What the point says, for whoever cannot see it."""


@dataclass(frozen=True, slots=True)
class PlacedLine:
    """One line of a placed chart."""

    name: str
    colour: int
    dashed: bool
    marks: tuple[Mark, ...]

    @property
    def path(self) -> str:
        """Corners of the line, as SVG writes them."""
        return " ".join(f"{mark.x},{mark.y}" for mark in self.marks)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartLayout:
    """Where everything of one chart goes, in pixels of its own view box."""

    chart: Chart
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    """Ends of the axes."""
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[PlacedLine, ...]
    reference: PlacedLine | None


def chart_layout(chart: Chart) -> ChartLayout:
    """Compute where everything of a chart goes.

    Raises:
        DataError: the chart has no points.
    """
    points = [point for line in chart.lines for point in line.points]
    if not points:
        raise DataError(f"cannot draw {chart.title!r}: it has no points")
    left, right, top, bottom = float(LEFT), float(WIDTH - RIGHT), float(TOP), float(HEIGHT - BOTTOM)
    x_low, x_high = padded(min(point.x for point in points), max(point.x for point in points))
    y_low, y_high = _y_range(chart, points)

    def at_x(value: float) -> float:
        return round(left + (right - left) * (value - x_low) / (x_high - x_low), 2)

    def at_y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - y_low) / (y_high - y_low), 2)

    def placed(line: Line) -> PlacedLine:
        marks = tuple(
            Mark(
                at_x(point.x),
                at_y(point.y),
                None if point.low is None else at_y(point.low),
                None if point.high is None else at_y(point.high),
                _said(line, point),
            )
            for point in line.points
        )
        return PlacedLine(line.name, line.colour, line.dashed, marks)

    y_ticks = nice_ticks(y_low, y_high)
    return ChartLayout(
        chart=chart,
        width=WIDTH,
        height=HEIGHT,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=tuple((at_x(value), text) for value, text in _x_labels(points, x_low, x_high)),
        y_ticks=tuple((at_y(tick), tick_text(tick, y_ticks[1] - y_ticks[0])) for tick in y_ticks),
        lines=tuple(map(placed, chart.lines)),
        reference=placed(chart.reference) if chart.reference else None,
    )


def _y_range(chart: Chart, points: Sequence[Point]) -> tuple[float, float]:
    every = [*points, *(chart.reference.points if chart.reference else ())]
    bounds = [value for point in every for value in (point.y, point.low, point.high) if value is not None]
    low, high = padded(min(bounds), max(bounds))
    return (0.0 if chart.from_zero or low < 0 <= min(bounds) else low), high


def _x_labels(points: Sequence[Point], low: float, high: float) -> list[tuple[float, str]]:
    """The measured values where they are few, else round numbers."""
    values = sorted({point.x for point in points})
    if len(values) <= MOST_X_LABELS:
        return [(value, f"{value:g}") for value in values]
    ticks = nice_ticks(low, high)
    return [(tick, tick_text(tick, ticks[1] - ticks[0])) for tick in ticks]


def _said(line: Line, point: Point) -> str:
    interval = None if point.low is None or point.high is None else (point.low, point.high)
    return f"{line.name}, {point.x:g}: {format_score(point.y)} {format_interval(interval)}".strip()


def draw_chart(path: Path, chart: Chart) -> None:
    """Draw a chart to `path`, as PNG, SVG or PDF by its ending.

    Raises:
        ConfigError: the ending is none of the three.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and few callers plot
    from matplotlib.figure import Figure

    kind = picture_format(path)
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for line in chart.lines:
        _draw_line(axes, line)
    if chart.reference:
        _draw_reference(axes, chart.reference)
    labels = _x_labels([p for line in chart.lines for p in line.points], *axes.get_xlim())
    axes.set_xticks([value for value, _ in labels], [text for _, text in labels])
    axes.set_ylim(*_y_range(chart, [point for line in chart.lines for point in line.points]))
    axes.set_xlabel(plain_text(chart.x_title))
    axes.set_ylabel(plain_text(chart.y_title))
    axes.set_title(plain_text(chart.title), fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    if chart.reference or len(chart.lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    write_figure(path, figure, kind)


def _draw_line(axes: Any, line: Line) -> None:
    colour, x = COLOURS[line.colour], [point.x for point in line.points]
    for point in line.points:
        if point.low is not None:
            axes.plot((point.x, point.x), (point.low, point.high), color=colour, linewidth=1.5, alpha=0.5)
    axes.plot(
        x,
        [point.y for point in line.points],
        marker="s" if line.colour else "o",
        linestyle="--" if line.dashed else "-",
        color=colour,
        markerfacecolor="white" if line.dashed else colour,
        label=plain_text(line.name),
    )


def _draw_reference(axes: Any, line: Line) -> None:
    (point,) = line.points
    if point.low is not None:
        axes.axhspan(point.low, point.high, color=GREY, alpha=0.12, linewidth=0)
    axes.axhline(point.y, color=COLOURS[line.colour], linestyle="--", linewidth=1.4, label=plain_text(line.name))
