"""The paper's tables with a run's numbers: every number in its place, ours and theirs never mixed."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from mta.evaluation.paper_tables import ABLATIONS, RIVALS, TABLE_1, TABLE_2, TABLE_3, TABLE_4
from mta.evaluation.paper_view import Cell, basis_of, csv_paper_table, markdown_paper_table, paper_tables
from mta.presets import paper


def scores(task: str = "lamp-2", **more: Any) -> dict[str, Any]:
    values = {"rag-1": 0.1, "oppu": 0.5, "mta": 0.4, "merged-only": 0.2}
    methods = {
        name: {"metrics": {"accuracy": value, "macro_f1": value / 2}, "ci95": {"accuracy": None, "macro_f1": None}}
        for name, value in values.items()
    }
    card = {
        "history items": {
            "targets": {"most": 10, "fewest": 8, "mean": 8.9},
            "pool": {"most": 100, "fewest": 4, "mean": 12.25},
        },
        "settings": {"adapt": {"rank": 4, "epochs": 3, "lr": 0.001, "batch_size": 2}},
    }
    head = {"task": task, "base": "tiny-random", "seeds": [42], "people": 3, "queries": 9, "comparisons": []}
    return {**head, "methods": methods, "run": card, **more}


def test_spots_of_the_papers_tables() -> None:
    """Copied by hand from the paper, one of each row's ends and middles."""
    assert TABLE_1["lamp-1"]["accuracy"]["per-pcs"] == 0.5339
    assert TABLE_1["lamp-2"]["macro_f1"]["proper"] == 0.3161
    assert TABLE_1["lamp-3"]["rmse"]["mta"] == 0.4350
    assert TABLE_1["lamp-4"]["rouge_l"]["oppu"] == 0.1885
    assert TABLE_1["lamp-5"]["rouge_1"]["rag-3"] == 0.4926
    assert TABLE_2["lamp-3"]["mae"]["adapt-only"] == 0.3514
    assert TABLE_2["lamp-5"]["rouge_l"]["merged-only"] == 0.4525
    assert TABLE_3["lamp-2"]["mean"] == 204.46


def test_tables_of_the_paper_agree_with_each_other_and_with_the_preset() -> None:
    for task, metrics in TABLE_2.items():
        for metric, values in metrics.items():
            assert values["mta"] == TABLE_1[task][metric]["mta"]
    for task, row in TABLE_4.items():
        adapt = paper(task).adapt
        assert row == {"rank": adapt.rank, "epochs": adapt.epochs, "lr": adapt.lr, "batch": adapt.batch_size}


def test_ours_and_the_papers_stand_side_by_side() -> None:
    first, second, *_ = paper_tables([scores()])
    assert (first.columns, second.columns) == (RIVALS, ABLATIONS), "no control was run"
    cells = dict(first.rows)["lamp-2 Acc ↑"]
    by_name = dict(zip(first.columns, cells, strict=True))
    assert {name: cell.ours for name, cell in by_name.items()} == {
        **dict.fromkeys(RIVALS, "–"),
        "rag-1": "0.100",
        "oppu": "0.500",
        "mta": "0.400",
    }
    assert by_name["mta"].paper == "0.444"
    assert [name for name, cell in by_name.items() if cell.best] == ["oppu"]
    assert [name for name, cell in by_name.items() if cell.second] == ["mta"]


def test_the_best_control_stands_in_table_1_with_its_name_unranked() -> None:
    controls = {
        name: {"metrics": {"accuracy": value}, "ci95": {"accuracy": None}}
        for name, value in (("majority", 0.3), ("classical", 0.9))
    }
    first, second, *_ = paper_tables([scores(methods={**scores()["methods"], **controls})])
    assert first.columns == (*RIVALS, "best control")
    rows = dict(first.rows)
    assert rows["lamp-2 Acc ↑"][-1] == Cell("0.900", "", source="classical")
    assert "0.900, classical |" in markdown_paper_table(first)
    assert list(csv.reader(io.StringIO(csv_paper_table(first))))[1][-2:] == ["0.900, classical", ""]
    assert rows["lamp-2 F1 ↑"][-1] == Cell("–", ""), "no control has it"
    assert [cell.ours for cell in rows["lamp-2 Acc ↑"] if cell.best] == ["0.500"]
    assert second.columns == ABLATIONS


def test_what_runs_share_is_said_once() -> None:
    assert basis_of([scores(), scores("lamp-1", people=1, queries=1)]) == (
        "Base tiny-random, seed 42: lamp-2 3 people, 9 queries; lamp-1 1 person, 1 query."
    )
    assert basis_of([scores(), scores("lamp-1", base="other")]) == (
        "lamp-2: base tiny-random, seed 42: 3 people, 9 queries. lamp-1: base other, seed 42: 3 people, 9 queries."
    )


def test_the_lower_error_is_the_better_one() -> None:
    methods = {
        name: {"metrics": {"mae": value}, "ci95": {"mae": None}} for name, value in (("oppu", 0.7), ("mta", 0.6))
    }
    (_, cells), *_ = paper_tables([scores("lamp-3", methods=methods)])[0].rows
    assert [cell.ours for cell in cells if cell.best] == ["0.600"]


def test_histories_and_settings_come_from_the_run_card() -> None:
    *_, histories, settings = paper_tables([scores()])
    assert [cell.ours for cell in histories.rows[0][1]] == ["10", "8", "8.9", "100", "4", "12.25"]
    assert [cell.paper for cell in histories.rows[0][1]] == ["", "", "", "1289", "4", "204.5"]
    assert [(cell.ours, cell.paper) for cell in settings.rows[0][1]] == [
        *(("4", "4"), ("3", "3"), ("0.001", "0.0001"), ("2", "8"))
    ]


def test_runs_without_a_card_and_tasks_the_paper_lacks() -> None:
    old = scores()
    del old["run"]
    assert [table.number for table in paper_tables([old, scores("own")])] == [1, 2], "nothing of 3 and 4 is known"
    *_, histories, settings = paper_tables([old, scores("lamp-1")])
    assert [name for table in (histories, settings) for name, _ in table.rows] == ["lamp-1", "lamp-1"]
    assert paper_tables([scores("own")]) == []
    alone = scores(methods={"mta": scores()["methods"]["mta"]})
    assert [table.number for table in paper_tables([alone])] == [3, 4], "one method is no comparison"


@pytest.mark.parametrize("place", range(4))
def test_files_hold_the_same_texts(place: int) -> None:
    table = paper_tables([scores(), scores("lamp-1")])[place]
    rows = list(csv.reader(io.StringIO(csv_paper_table(table))))
    assert len(rows) == 1 + len(table.rows)
    text = markdown_paper_table(table)
    for row, (name, cells) in zip(rows[1:], table.rows, strict=True):
        assert row[0] == name
        assert row[1::2] == ["" if cell.ours == "–" else cell.ours for cell in cells]
        assert row[2::2] == [cell.paper for cell in cells]
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert all(cell.ours in line and cell.paper in line for cell in cells)
