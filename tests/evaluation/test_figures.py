"""Charts of sweeps and of growth: every saved number is a point, everything lies inside, files are what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mta.errors import ConfigError, DataError
from mta.evaluation.chart_drawing import chart_layout, draw_chart
from mta.evaluation.figures import Chart, Line, Point, growth_charts, sweep_charts


def sweep_scores(values: dict[str, float], *, asked: float | None = None) -> dict[str, Any]:
    found = {**values, **({} if asked is None else {"as asked": asked})}
    return {
        "task": "lamp-2",
        "base": "tiny-random",
        "seeds": [42],
        "people": 3,
        "queries": 9,
        "comparisons": [],
        "methods": {
            name: {"metrics": {"accuracy": value}, "ci95": {"accuracy": [value - 0.1, value + 0.2]}}
            for name, value in found.items()
        },
        "sweep": {
            "over": "weight",
            "title": "weight of the nearest anchor",
            "figure": "Figure 3",
            "method": "mta",
            "values": {name: float(name) for name in values},
        },
    }


GROWTH = {
    "task": "lamp-2",
    "base": "tiny-random",
    "points": [
        {"method": f"{method} {layers}", "users": users, "seconds": 60.0 * users, "bytes": 1e6 * users * size}
        for method, size in (("mta", 1), ("oppu", 2))
        for layers in ("all-linear", "q,v")
        for users in (4, 8)
    ],
}


def test_every_value_of_a_sweep_is_a_point_with_its_interval() -> None:
    (chart,) = sweep_charts(sweep_scores({"1": 0.4, "0": 0.2, "0.5": 0.3}, asked=0.35))
    (line,) = chart.lines
    assert [(p.x, p.y) for p in line.points] == [(0.0, 0.2), (0.5, 0.3), (1.0, 0.4)]
    assert [p.low for p in line.points] == pytest.approx([0.1, 0.2, 0.3])
    assert [p.high for p in line.points] == pytest.approx([0.4, 0.5, 0.6])
    assert chart.reference is not None
    assert chart.reference.points[0].y == 0.35
    assert chart.heading == "Figure 3. Weight of the nearest anchor: lamp-2, mta"
    assert sweep_charts(sweep_scores({"0": 0.2, "1": 0.4}))[0].reference is None


def compared(point: str, *, low: float, high: float, p: float) -> dict[str, Any]:
    """The unchanged point less another one."""
    row = {"a": "as asked", "b": point, "metric": "accuracy", "difference": (low + high) / 2}
    return {**row, "ci95": [low, high], "p_value": p, "p_holm": p}


def test_the_note_names_the_points_that_differ_for_certain() -> None:
    scores = sweep_scores({"0": 0.2, "0.5": 0.3, "0.9": 0.9, "1": 0.4}, asked=0.35)
    assert sweep_charts(scores)[0].tests == ""
    unclear = [compared("0.5", low=-0.1, high=0.2, p=0.01), compared("1", low=0.1, high=0.2, p=0.06)]
    scores["comparisons"] = unclear
    assert sweep_charts(scores)[0].tests == "Against the dashed line, paired tests (Holm): no certain difference."
    scores["comparisons"] = [
        compared("0", low=0.1, high=0.2, p=0.01), compared("0.9", low=-0.6, high=-0.4, p=0.01), *unclear
    ]  # fmt: skip
    assert sweep_charts(scores)[0].tests == "Against the dashed line, paired tests (Holm): better: 0.9; worse: 0."


def test_growth_is_minutes_and_megabytes_of_each_method() -> None:
    time, size = growth_charts(GROWTH)
    assert [line.name for line in time.lines] == ["mta all-linear", "mta q,v", "oppu all-linear", "oppu q,v"]
    assert [(p.x, p.y) for p in time.lines[0].points] == [(4.0, 4.0), (8.0, 8.0)]
    assert [(p.x, p.y) for p in size.lines[3].points] == [(4.0, 8.0), (8.0, 16.0)]
    assert len({(line.colour, line.dashed) for line in time.lines}) == 4, "four lines can be told apart"


@pytest.mark.parametrize("rows", [None, 3, 2.5, "x", {}, [3, {}]])
def test_growth_without_readable_sentences_has_charts_all_the_same(rows: Any) -> None:
    assert growth_charts({**GROWTH, "break_even": rows}) == growth_charts(GROWTH)


@pytest.mark.parametrize("scores", [sweep_scores({"0": 0.2}), sweep_scores({"0": 0.2, "1": 0.2}, asked=0.9)])
def test_layout_keeps_everything_inside(scores: dict[str, Any]) -> None:
    (chart,) = sweep_charts(scores)
    layout = chart_layout(chart)
    marks = [mark for line in layout.lines for mark in line.marks]
    marks += layout.reference.marks if layout.reference else ()
    for mark in marks:
        assert layout.top <= mark.high <= mark.y <= mark.low <= layout.bottom
    for mark in layout.lines[0].marks:
        assert layout.left <= mark.x <= layout.right
    assert all(layout.left <= x <= layout.right for x, _ in layout.x_ticks)
    assert all(layout.top <= y <= layout.bottom for y, _ in layout.y_ticks)
    assert len({text for _, text in layout.y_ticks}) == len(layout.y_ticks) > 1


def test_layout_is_in_proportion_and_says_its_numbers() -> None:
    (chart,) = sweep_charts(sweep_scores({"0": 0.2, "0.5": 0.3, "1": 0.4}))
    low, middle, high = chart_layout(chart).lines[0].marks
    assert middle.x == pytest.approx((low.x + high.x) / 2, abs=0.01)
    assert middle.y == pytest.approx((low.y + high.y) / 2, abs=0.01)
    assert high.y < low.y, "more is further up"
    assert middle.text == "mta, 0.5: 0.300 [0.200, 0.500]"


def test_costs_start_at_zero_and_many_values_get_round_ticks() -> None:
    layout = chart_layout(growth_charts(GROWTH)[0])
    assert layout.y_ticks[0] == (layout.bottom, "0")
    many = {str(value): 0.1 for value in range(12)}
    texts = [text for _, text in chart_layout(sweep_charts(sweep_scores(many))[0]).x_ticks]
    assert len(texts) <= 7


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_a_chart_is_drawn_as_its_name_says(tmp_path: Path, name: str, start: bytes) -> None:
    for chart in (*sweep_charts(sweep_scores({"0": 0.2, "1": 0.4}, asked=0.3)), *growth_charts(GROWTH)):
        draw_chart(tmp_path / name, chart)
        drawn = (tmp_path / name).read_bytes()
        assert drawn.startswith(start)
        draw_chart(tmp_path / name, chart)
        assert (tmp_path / name).read_bytes() == drawn  # no date and no chance in it


def test_what_is_no_figure_is_refused(tmp_path: Path) -> None:
    plain = sweep_scores({"0": 0.2})
    del plain["sweep"]
    with pytest.raises(DataError, match="not of a sweep"):
        sweep_charts(plain)
    for values in ({"0": "none"}, {"7": 7.0}, [0.0]):
        odd = sweep_scores({"0": 0.2})
        odd["sweep"]["values"] = values
        with pytest.raises(DataError, match="not of a sweep"):
            sweep_charts(odd)
    text = {**GROWTH["points"][0], "seconds": "long"}
    for bad in ({}, [1], {"points": 3}, {"points": []}, {"points": [{"method": "mta"}]}, {"points": [text]}):
        with pytest.raises(DataError, match=r"not the content of a growth\.json"):
            growth_charts(bad)
    empty = Chart(
        name="a",
        heading="a",
        title="empty",
        caption="a",
        x_title="x",
        y_title="y",
        lines=(Line(name="none", points=()),),
    )
    with pytest.raises(DataError, match="'empty': it has no points"):
        chart_layout(empty)
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        draw_chart(tmp_path / "a.gif", Chart(**{**_fields(empty), "lines": (Line(name="a", points=(Point(0, 1),)),)}))


def _fields(chart: Chart) -> dict[str, Any]:
    return {name: getattr(chart, name) for name in Chart.__slots__}
