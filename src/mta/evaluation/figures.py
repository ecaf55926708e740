"""Line charts of sweeps and of growth: figures 2 to 6 of the paper, from saved files; `chart_drawing` draws them.

Example:
    >>> sweep_charts(read_json(sweep / "scores.json"))[0].title
    'lamp-2, mta: accuracy'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mta.errors import DataError
from mta.evaluation.formats import metric_name, metric_title
from mta.evaluation.notes import basis_line
from mta.evaluation.scores_file import check_scores, finite, interval_of, shown_metrics
from mta.evaluation.table import comparison_rows
from mta.files import safe_name

MEGABYTE, MINUTE = 1e6, 60.0


@dataclass(frozen=True, slots=True)
class Point:
    """One measured value, with its 95 % interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points that belong together."""

    name: str
    points: tuple[Point, ...]
    colour: int = 0
    """Which of two colours: 0 or 1."""
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart, before anything is placed."""

    name: str
    """For file names."""
    heading: str
    """What charts of one figure have in common, with its place in the paper."""
    title: str
    """Of a file with this chart alone."""
    caption: str
    """Below the heading."""
    x_title: str
    y_title: str
    lines: tuple[Line, ...]
    reference: Line | None = None
    """One point whose height is drawn as a dashed line across; its x plays no part."""
    note: str = ""
    tests: str = ""
    """Which points differ for certain."""
    from_zero: bool = False


def sweep_charts(scores: Mapping[str, Any]) -> list[Chart]:
    """Make a chart for each metric of a sweep: its values along x, the score and its interval along y.

    Raises:
        DataError: not the scores of a sweep.
    """
    scores = check_scores(scores)
    sweep = scores.get("sweep")
    wanted = {"over", "title", "figure", "method", "values"}
    if not isinstance(sweep, Mapping) or not wanted <= sweep.keys() or not _are_points(sweep["values"], scores):
        raise DataError(
            f"these scores of {scores['task']} are not of a sweep; give a folder that `mta sweep` has written"
        )
    return [_sweep_chart(scores, sweep, metric) for metric in shown_metrics(scores)]


def _are_points(values: Any, scores: Mapping[str, Any]) -> bool:
    return isinstance(values, Mapping) and all(
        label in scores["methods"] and finite(value) is not None for label, value in values.items()
    )


def _sweep_chart(scores: Mapping[str, Any], sweep: Mapping[str, Any], metric: str) -> Chart:
    values = sorted(sweep["values"].items(), key=lambda item: float(item[1]))
    points = [_score_point(scores, label, metric, float(x)) for label, x in values]
    unchanged = [label for label in scores["methods"] if label not in sweep["values"]]
    asked = _score_point(scores, unchanged[0], metric, 0.0) if unchanged else None
    name = f"{sweep['figure']} {scores['task']} {sweep['over']} {sweep['method']} {metric}"
    return Chart(
        name=safe_name(name.lower().replace(" ", "-")),
        heading=f"{sweep['figure']}. {_first_upper(str(sweep['title']))}: {scores['task']}, {sweep['method']}",
        title=f"{scores['task']}, {sweep['method']}: {metric_name(metric)}",
        caption=metric_title(metric),
        x_title=str(sweep["title"]),
        y_title=metric_title(metric),
        lines=(Line(name=str(sweep["method"]), points=tuple(point for point in points if point)),),
        reference=Line(name=_unchanged(scores, asked), points=(asked,), colour=1) if asked else None,
        note=basis_line(scores),
        tests=certain_differences(scores, metric),
    )


def certain_differences(scores: Mapping[str, Any], metric: str) -> str:
    """Say which points of a sweep are better or worse than the one they are compared with; "" without tests."""
    rows = [row for row in comparison_rows(scores) if row["metric"] == metric_title(metric)]
    if not rows:
        return ""
    found = {
        word: ", ".join(row["b"] for row in rows if row["verdict"] == f"{row[side]} better")
        for word, side in (("better", "b"), ("worse", "a"))
    }
    told = "; ".join(f"{word}: {points}" for word, points in found.items() if points)
    against = "the dashed line" if rows[0]["a"] not in scores["sweep"]["values"] else str(rows[0]["a"])
    return f"Against {against}, paired tests (Holm): {told or 'no certain difference'}."


def _unchanged(scores: Mapping[str, Any], point: Point) -> str:
    """Name the weights of the point that was not changed, and its band."""
    settings = (scores.get("run") or {}).get("settings") or {}
    weights = (settings.get("merge") or {}).get("weights", "similarity")
    name = "by similarity (Eq. 6)" if weights == "similarity" else f"as asked: {weights}"
    return name if point.low is None else f"{name}, band: its interval"


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _score_point(scores: Mapping[str, Any], label: str, metric: str, x: float) -> Point | None:
    method = scores["methods"][label]
    value, interval = finite(method["metrics"].get(metric)), interval_of(method, metric)
    return None if value is None else Point(x, value, *(interval or (None, None)))


def growth_charts(growth: Any) -> list[Chart]:
    """Make the charts of training time and of stored bytes against the number of users.

    Raises:
        DataError: not the content of a growth.json.
    """
    points = growth.get("points") if isinstance(growth, Mapping) else None
    if not isinstance(points, list | tuple) or not points or not all(map(_is_growth_point, points)):
        raise DataError("this is not the content of a growth.json (points with method, users, seconds, bytes)")
    names = dict.fromkeys(str(point["method"]) for point in points)
    cheaper = _who_is_cheaper(growth)
    return [
        Chart(
            name=safe_name(f"figure-2-{growth.get('task')}-{measure}"),
            heading=f"Figure 2. Cost of users: {growth.get('task')}",
            title=f"{growth.get('task')}: {title}",
            caption=_first_upper(title),
            x_title="users",
            y_title=unit,
            lines=tuple(_growth_line(points, name, measure, size) for name in names),
            note=" ".join((f"Base {growth.get('base')}.", "The bank is part of every point of MTA.", *cheaper)),
            from_zero=True,
        )
        for measure, title, unit, size in (
            ("seconds", "training time", "minutes", MINUTE),
            ("bytes", "stored", "MB", MEGABYTE),
        )
    ]


def _who_is_cheaper(growth: Mapping[str, Any]) -> list[str]:
    rows = growth.get("break_even")
    found = rows if isinstance(rows, list | tuple) else ()
    return [str(row["statement"]) for row in found if isinstance(row, Mapping) and "statement" in row]


def _is_growth_point(point: Any) -> bool:
    return (
        isinstance(point, Mapping)
        and "method" in point
        and all(finite(point.get(name)) is not None for name in ("users", "seconds", "bytes"))
    )


def _growth_line(points: Sequence[Mapping[str, Any]], name: str, measure: str, size: float) -> Line:
    own = tuple(Point(float(p["users"]), float(p[measure]) / size) for p in points if p["method"] == name)
    return Line(name=name, points=own, colour=int(name.startswith("oppu")), dashed=name.endswith("q,v"))
