"""One self-contained HTML page for one or more runs: the paper's tables and figures, tables, plots, cases, run card.

The page loads nothing: styles and pictures are inside, and its own content policy forbids the rest. All texts
are escaped by the template engine; the template holds the layout only, everything it prints is prepared here.

Example:
    >>> write_report(Path("report.html"), scores=[read_json(run / "scores.json")], run_card={"seed": 42}, cases=[])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from mta.baselines.roles import is_control
from mta.characters import whole_characters
from mta.errors import DataError
from mta.evaluation.chart_drawing import chart_layout
from mta.evaluation.figures import Chart
from mta.evaluation.formats import COST_TITLES, format_cost, format_interval, format_score, metric_name, metric_title
from mta.evaluation.marks import best_methods, is_proven, judged_method, opponents_of, second_methods
from mta.evaluation.notes import basis_line, comparison_line, marks_line, method_notes, reading_line
from mta.evaluation.paper_view import paper_tables
from mta.evaluation.plots import plot_layout
from mta.evaluation.released_table import READING, released_grid
from mta.evaluation.scores_file import check_scores, finite, interval_of, shown_metrics
from mta.evaluation.table import (
    SLICES_LINE,
    SliceTable,
    comparison_rows,
    seed_sd,
    shown_costs,
    slice_tables,
    unparted_line,
)
from mta.files import write_text

FEW_PEOPLE = 30
SHARED = "The same in all"
MISSING_CONTROLS: Mapping[tuple[str, ...], str] = {
    ("classical",): "sentence vectors and a regression with the user's own label shares: what needs no language model",
    ("population",): "one adapter for everybody: without it, a gain over the base may be the task, not the person",
    (
        "swapped-user",
        "swapped-blended",
    ): "somebody else's adapter: without it, nothing shows that the adapter fits this person",
    ("random-anchors", "merged-only-random"): "anchors drawn by chance: without it, nothing shows that likeness counts",
}
"""Rows of which one must be there -> what they are, and what their absence leaves open."""


def write_report(
    path: Path,
    *,
    scores: Sequence[Mapping[str, Any]],
    run_card: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]] = (),
    charts: Sequence[Chart] = (),
    title: str = "Personalization report",
) -> None:
    """Write the report to `path`, atomically.

    Args:
        path: the HTML file.
        scores: one content of a scores.json per task or run, at least one.
        run_card: what decided the result: settings, people, leak check, versions, seeds, wall time, caps. Nested
            mappings become sections; values are shown as they are.
        cases: query and answers side by side: {"query", "answers": {method: text}} and optionally "gold", "title",
            "note" and "history" (list of texts). They are shown to whoever opens the file.
        charts: figures of sweeps and of growth.
        title: head of the page.

    Raises:
        DataError: no scores, or scores or cases of another form.
        StorageError: `path` cannot be written.
    """
    write_text(path, render_report(scores=scores, run_card=run_card, cases=cases, charts=charts, title=title))


def render_report(
    *,
    scores: Sequence[Mapping[str, Any]],
    run_card: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]] = (),
    charts: Sequence[Chart] = (),
    title: str = "Personalization report",
) -> str:
    """Return the report as HTML text; see `write_report`.

    Raises:
        DataError: no scores, or scores or cases of another form.
    """
    from jinja2 import Environment, StrictUndefined

    if not scores:
        raise DataError("cannot write a report: no scores; run or score at least one task first")
    source = resources.files("mta.evaluation").joinpath("templates", "report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(source).render(
        title=title,
        runs=[_run_view(check_scores(run)) for run in scores],
        tables=paper_tables(scores),
        figures=_figure_views(charts),
        cases=[_case_view(case, number) for number, case in enumerate(cases, start=1)],
        card=card_sections(run_card),
    )
    return whole_characters(text)


def _figure_views(charts: Sequence[Chart]) -> list[dict[str, Any]]:
    """Put the charts of one figure together, in the order of the paper."""
    headings = sorted(dict.fromkeys(chart.heading for chart in charts), key=lambda heading: heading.split(".")[0])
    return [
        {
            "heading": heading,
            "layouts": [chart_layout(chart) for chart in charts if chart.heading == heading],
            "notes": list(dict.fromkeys(chart.note for chart in charts if chart.heading == heading and chart.note)),
        }
        for heading in headings
    ]


def comparability(scores: Mapping[str, Any]) -> list[str]:
    """Say in sentences what the scores of a run can and cannot be compared for.

    Raises:
        DataError: `scores` is not the content of a scores.json.
    """
    scores = check_scores(scores)
    return list(_statements(scores))


def _statements(scores: Mapping[str, Any]) -> Iterator[str]:
    methods = scores["methods"]
    yield (
        f"All {len(methods)} methods answered the same {scores['queries']} queries of {scores['people']} people. "
        "Scores are pooled over queries; the person is the unit of the intervals."
    )
    present = [name for name in methods if is_control(name)]
    yield f"Controls in the table: {', '.join(present)}." if present else "The table has no controls."
    free_text = "rouge_1" in shown_metrics(scores)
    for names, meaning in MISSING_CONTROLS.items():
        means_something = not (free_text and names == ("classical",))
        if means_something and methods.keys().isdisjoint(names) and not all(map(is_control, methods)):
            yield f"Not run: {names[0]} ({meaning})."
    yield from _opponents(scores)
    yield from _beyond_population(scores)
    yield from _budget(methods)
    if isinstance(scores["people"], int) and scores["people"] < FEW_PEOPLE:
        yield (
            f"{scores['people']} people are few: percentile intervals from fewer than {FEW_PEOPLE} "
            "tend to be too narrow."
        )
    seeds = scores["seeds"] if isinstance(scores["seeds"], list | tuple) else [scores["seeds"]]
    if len(seeds) == 1:
        yield "One seed: how much another training run would differ is not in the intervals."
    elif seeds:
        yield f"Answers of {len(seeds)} seeds are pooled; a person is drawn with all of them."
        alone = [name for name, method in methods.items() if "seeds" in method and len(method["seeds"]) < len(seeds)]
        if alone and len(alone) < len(methods):
            yield f"Answered once, beside every seed of the others: {', '.join(alone)}."


def _opponents(scores: Mapping[str, Any]) -> Iterator[str]:
    """Name whom the method in question must beat."""
    name = judged_method(scores)
    if name is None:
        return
    rivals = scores["judged"]["best_rival"]
    found = [f"{metric_name(metric)}: {rivals[metric]}" for metric in shown_metrics(scores) if rivals.get(metric)]
    if found:
        yield f"Best rival of {name} by each metric: {', '.join(found)}."
    if not any(opponents_of(scores, metric) for metric in rivals):
        yield f"An asterisk for {name} needs a rival and population in the table; there is none."


def _beyond_population(scores: Mapping[str, Any]) -> Iterator[str]:
    """Set the gain of the personalized method beside that of one adapter for everybody."""
    methods = scores["methods"]
    if not {"base", "population", "mta"} <= methods.keys():
        return
    for metric in shown_metrics(scores):
        base, population, ours = (
            finite(methods[name]["metrics"].get(metric)) for name in ("base", "population", "mta")
        )
        if base is not None and population is not None and ours is not None:
            yield (
                f"{metric_name(metric)}: population differs from base by {population - base:+.3f}, "
                f"mta by {ours - base:+.3f}. What population gives as well is the task learned, not the person."
            )
            return


def _budget(methods: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    counts = {value for method in methods.values() if (value := finite(method.get("updates_per_user")))}
    if len(counts) > 1:
        yield (
            f"Trained methods took {format_cost('updates_per_user', min(counts))} to "
            f"{format_cost('updates_per_user', max(counts))} updates per user; differences mix method and effort."
        )
    if any(finite(method.get("updates_per_user")) is None for method in methods.values()):
        yield "Updates per user were not recorded for every method."


def _run_view(scores: Mapping[str, Any]) -> dict[str, Any]:
    metrics, costs = shown_metrics(scores), shown_costs(scores)
    return {
        "name": str(scores["task"]),
        "line": basis_line(scores),
        "metrics": [metric_title(metric) for metric in metrics],
        "costs": [COST_TITLES[cost] for cost in costs],
        "rows": [_method_view(scores, name, metrics, costs) for name in scores["methods"]],
        "reading": list(_reading(scores)),
        "plots": [plot_layout(scores, metric) for metric in metrics],
        "comparisons": _comparison_grids(scores),
        "comparison_line": comparison_line(scores),
        "released": released_grid(scores),
        "released_line": READING,
        "slices": [_slice_view(table) for table in slice_tables(scores)],
        "slices_line": SLICES_LINE,
        "unparted": unparted_line(scores),
        "statements": comparability(scores),
    }


def _reading(scores: Mapping[str, Any]) -> Iterator[str]:
    yield reading_line(scores)
    yield marks_line(scores, second="Underlined")
    yield from method_notes(scores)


def _method_view(scores: Mapping[str, Any], name: str, metrics: Sequence[str], costs: Sequence[str]) -> dict[str, Any]:
    method = scores["methods"][name]
    return {
        "name": name,
        "is_control": is_control(name),
        "cells": [
            {
                "value": format_score(finite(method["metrics"].get(metric))),
                "interval": format_interval(interval_of(method, metric)),
                "seed_sd": seed_sd(method, metric),
                "best": name in best_methods(scores, metric),
                "second": name in second_methods(scores, metric),
                "proven": is_proven(scores, name, metric),
            }
            for metric in metrics
        ],
        "costs": [format_cost(cost, method.get(cost)) for cost in costs],
    }


def _comparison_grids(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table for each first method: a row for each second one, a column for each metric."""
    cells: dict[str, dict[str, dict[str, dict[str, str]]]] = {}
    for row in comparison_rows(scores):
        cells.setdefault(row["a"], {}).setdefault(row["b"], {})[row["metric"]] = row
    metrics = {
        first: list(dict.fromkeys(name for row in rows.values() for name in row)) for first, rows in cells.items()
    }
    return [
        {
            "first": first,
            "metrics": metrics[first],
            "rows": [
                {"second": second, "cells": [row.get(metric) for metric in metrics[first]]}
                for second, row in rows.items()
            ],
        }
        for first, rows in cells.items()
    ]


def _slice_view(table: SliceTable) -> dict[str, Any]:
    return {
        "name": table.partition,
        "labels": [{"name": label, "size": size} for label, size in table.labels.items()],
        "metrics": table.metrics,
        "rows": [{"name": name, "is_control": is_control(name), "cells": cells} for name, cells in table.rows.items()],
    }


def _case_view(case: Mapping[str, Any], number: int) -> dict[str, Any]:
    answers = case.get("answers")
    if "query" not in case or not isinstance(answers, Mapping):
        raise DataError(
            f"case {number} cannot be shown: wanted 'query' and 'answers' (method -> text), "
            f"got {', '.join(case) or 'nothing'}; add what is missing or leave the case out"
        )
    gold = case.get("gold")
    return {
        "title": str(case.get("title") or f"Case {number}"),
        "note": str(case.get("note") or ""),
        "query": str(case["query"] or ""),
        "gold": None if gold is None else str(gold),
        "history": [str(item) for item in case.get("history") or ()],
        "answers": [
            {
                "method": str(method),
                "text": str(text),
                "right": gold is not None and str(text).strip() == str(gold).strip(),
            }
            for method, text in answers.items()
        ],
    }


def join_cards(cards: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put the cards of several runs together; what all of them share is said once, under `SHARED`."""
    if len(cards) < 2:
        return dict(cards)
    shared = _shared(list(cards.values()))
    return {SHARED: shared, **{name: _without(card, shared) for name, card in cards.items()}}


def _shared(cards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in cards[0]:
        values = [card[key] for card in cards if key in card]
        if len(values) < len(cards):
            continue
        if all(value == values[0] for value in values):
            found[key] = values[0]
        elif all(isinstance(value, Mapping) for value in values) and (part := _shared(values)):
            found[key] = part
    return found


def _without(card: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    rest: dict[str, Any] = {}
    for key, value in card.items():
        if key not in shared:
            rest[key] = value
        elif value != shared[key]:
            rest[key] = _without(value, shared[key])
    return rest


def card_sections(card: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Turn a nested run card into sections of (name, text) rows; plain values at the top come first."""
    plain = [(str(key), _shown(value)) for key, value in card.items() if not isinstance(value, Mapping)]
    sections = [("Run", plain)] if plain else []
    return sections + [
        (str(key), list(_flat(value, ""))) for key, value in card.items() if isinstance(value, Mapping) and value
    ]


def _flat(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{above} › {key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            yield from _flat(value, name)
        else:
            yield name, _shown(value)


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(map(_shown, value)) or "none"
    return str(value)
