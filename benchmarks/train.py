"""Training speed: this engine against other ways to train the same adapters, in one process, taking turns.

    python benchmarks/train.py --data DIR --out docs/results/speed/train [--case NAME] [--anyway]

Every case trains some people's adapters with the same model, rows, initial values, order, learning rates, clipping and
AdamW. Before any time counts, the loss that the trained adapters have on their rows is asserted to be the same for all
ways, and to have moved by far more than they may differ (`require_equal`). The ways, and the floor beneath all of them,
are described in `training_peers.py`; "peft best" is the fastest of the strong PEFT loops over transformers' own forward
pass, turn by turn. Of these, those that take much longer than the fastest both in the warm-up and in the first turn are
left out of the others; their two times stay in the JSON.
Without --data, invented people are used. Cases already in the folder are left as they are, so that a stopped run goes
on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from drawn_rows import drawn_row
from measuring import Times, case_options, ratio, rows_of, run, steadiness, table, take_turns, watched, write
from mta.base_model import BaseModel, load_base_model
from mta.config import ALL_LINEAR, QUERY_VALUE, EngineConfig, PromptConfig, TrainConfig
from mta.data.personas import make_personas
from mta.data.read import read_users
from mta.files import read_json
from mta.generation import Request, score_answers
from mta.lora.adapter import Adapter, AdapterSum, Factors, Recipe, distance, scale
from mta.memory_at_hand import keep_freed_memory
from mta.packing import TokenRow
from mta.tasks import get_task
from mta.training import train
from mta.training_plan import TrainJob
from mta.user_rows import user_rows
from training_peers import Adapters, HfTrainer, PeftLoop, bare, trained_tokens

PROMPTS = PromptConfig(history_words=60, input_words=120, max_tokens=768)
HEADLINE = "lamp-2"
PLAIN, PACKED, TRAINER, ENGINE = "peft plain", "peft packed", "hf trainer", "engine"
WHOLE = "peft whole update"
EAGER = ("peft sorted, eager", "peft whole update, eager")
STRONG = ("peft rows", "peft rows, eager", "peft sorted", WHOLE, *EAGER)
"""PEFT loops over transformers' own forward pass, without what makes the plain one slow; wherever all six were
measured, one of the last two, `EAGER`, was the strongest."""
BEST = "peft best"
FLOOR, WHOLE_FLOOR = "floor", "floor, whole rows"
JUDGED = 8
"""People whose adapters are kept and compared."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained."""

    users: int = 8
    items: int = 10
    """Examples of each user, one pass over them."""
    shape: str = "lamp-2"
    """A task, or "synthetic": 50 to 150 tokens of prompt and 4 of answer, drawn evenly."""
    targets: tuple[str, ...] = ALL_LINEAR
    rank: int = 8
    beneath: int = 0
    """Anchors of rank 8 un-merged beneath each adapter."""
    dtype: str = "bfloat16"
    ways: tuple[str, ...] = (PLAIN, *STRONG)


CASES: Mapping[str, Case] = {
    HEADLINE: Case(ways=(PLAIN, *STRONG, PACKED, TRAINER)),
    "lamp-2-fp32": Case(dtype="float32", ways=(PLAIN, *STRONG, PACKED, TRAINER)),
    "lamp-2-1-user": Case(users=1),
    "lamp-2-2-users": Case(users=2, ways=(PLAIN, *STRONG, PACKED, TRAINER)),
    "lamp-2-50-items": Case(users=1, items=50),
    "lamp-2-100-items": Case(users=1, items=100, ways=(PLAIN, *EAGER)),
    "lamp-2-qv": Case(users=2, targets=QUERY_VALUE),
    "lamp-2-anchors": Case(users=2, rank=4, beneath=2),
    "lamp-2-anchors-qv": Case(users=2, rank=4, beneath=2, targets=QUERY_VALUE),
    "lamp-5": Case(shape="lamp-5", users=2),
    "synthetic": Case(shape="synthetic", users=2),
    "64-users": Case(shape="synthetic", users=64, items=4, ways=(PLAIN, WHOLE)),
}


def turns_options(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of scripts that take turns over these cases."""
    parser = case_options(doc, CASES)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="instead of the case's own")
    parser.add_argument("--users", type=int, help="instead of the case's own, on a slow machine")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    return parser


def case_of(name: str, options: argparse.Namespace) -> Case:
    """Return a case with what the options change of it."""
    case = CASES[name]
    return replace(case, dtype=options.dtype or case.dtype, users=options.users or case.users)


def make_jobs(base: BaseModel, case: Case, data: Path | None) -> list[TrainJob]:
    """Return the jobs of a case: the most active pool users, capped to the asked number of items."""
    config = TrainConfig(
        lr=1e-3,
        epochs=1,
        batch_size=8,
        max_items=case.items,
        rank=case.rank,
        alpha=2.0 * case.rank,
        target_modules=case.targets,
    )
    rows = _synthetic(base, case) if case.shape == "synthetic" else _lamp(base, case, config, data)
    return [
        TrainJob(name, found, config, frozen=_anchors(base, case, number) if case.beneath else None)
        for number, (name, found) in enumerate(rows.items())
    ]


def _lamp(base: BaseModel, case: Case, config: TrainConfig, data: Path | None) -> dict[str, tuple[TokenRow, ...]]:
    task = get_task(case.shape)
    if data:
        users = read_users(data / f"LaMP_{case.shape[-1]}" / "pool_questions.json", task=task).users[: case.users]
    else:
        made = make_personas(case.shape, people=case.users, history=case.items + 8, queries=1, seed=0)
        users = list(made.users)
    return {user.user_id: user_rows(base.tokens, task, user, train=config, prompts=PROMPTS).rows for user in users}


def _synthetic(base: BaseModel, case: Case) -> dict[str, tuple[TokenRow, ...]]:
    generator = torch.Generator().manual_seed(0)
    words = min(4000, base.model.config.vocab_size)
    row = partial(drawn_row, generator, words=words, lengths=(50, 150))
    return {f"user {number}": tuple(row() for _ in range(case.items)) for number in range(case.users)}


def _anchors(base: BaseModel, case: Case, number: int) -> Recipe:
    """Return the sum of as many drawn adapters as asked, with a delta that is small as that of a trained one."""
    generator = torch.Generator().manual_seed(number)
    shapes = base.shapes(case.targets)

    def drawn() -> Adapter:
        def values(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, generator=generator) * 0.02

        return Adapter({name: Factors(values(8, d_in), values(d_out, 8)) for name, (d_out, d_in) in shapes.items()})

    terms = tuple((1 / case.beneath, drawn()) for _ in range(case.beneath))
    return Recipe(f"drawn {number}", 8 * case.beneath, lambda: AdapterSum(terms))


def run_engine(base: BaseModel, jobs: Sequence[TrainJob], engine: EngineConfig) -> Adapters:
    """Train with this package."""
    return {done.job_id: done.adapter for done in train(base, jobs, engine=engine)}


def peer(base: BaseModel, jobs: Sequence[TrainJob], way: str) -> Adapters:
    """Train with another way, set up and taken down again."""
    config = jobs[0].config
    made = HfTrainer(base, config) if way == TRAINER else PeftLoop(base, config, kind=way.removeprefix("peft "))
    with closing(made):
        return made(jobs)


def losses_of(base: BaseModel, jobs: Sequence[TrainJob], adapters: Mapping[str, Adapter]) -> dict[str, float]:
    """Return what trained adapters cost on their own rows: job -> mean loss per answer token."""
    found = {}
    for job in jobs:
        if job.job_id in adapters:
            beneath = job.frozen.parts().terms if job.frozen else ()
            whole = AdapterSum((*beneath, (1.0, adapters[job.job_id])))
            nll = score_answers(base, [Request(row, whole) for row in job.rows], engine=EngineConfig())
            found[job.job_id] = sum(nll) / sum(len(row.answer) for row in job.rows)
    return found


def require_equal(base: BaseModel, jobs: Sequence[TrainJob], found: Mapping[str, Adapters]) -> dict[str, float]:
    """Refuse to report times of different work; see `equality_of` for what is returned.

    In bfloat16 rounding may turn the sign of what an optimiser's first update does to a small value, so that one person
    of few updates may differ by much; all of them together may not, as they would with another learning rate.
    """
    one, together = (0.01, 0.01) if base.dtype == torch.float32 else (0.5, 0.05)
    equality = equality_of(base, jobs, found)
    apart, moved = equality["losses apart"], equality["losses moved"]
    mean_apart, mean_moved = equality["mean losses apart"], equality["mean loss moved"]
    if apart > one * moved or mean_apart > together * mean_moved:
        raise SystemExit(
            f"losses after training are up to {apart:.4f} apart and moved by {moved:.4f} at least, on average "
            f"{mean_apart:.4f} and {mean_moved:.4f}; not comparable"
        )
    return equality


def equality_of(base: BaseModel, jobs: Sequence[TrainJob], found: Mapping[str, Adapters]) -> dict[str, float]:
    """Return how far the losses of all ways are apart at most, and how far training has moved the engine's at least.

    The same of each way's mean over people; and the largest distance of a way's delta from the engine's, relatively.
    """
    untrained = {name: scale(adapter, 0.0) for name, adapter in found[ENGINE].items()}
    before, ours = losses_of(base, jobs, untrained), losses_of(base, jobs, found[ENGINE])
    theirs = [losses_of(base, jobs, adapters) for adapters in found.values()]
    far = [distance(found[ENGINE][name], each[name])[0] for each in found.values() for name in ours]
    return {
        "losses apart": round(max(abs(each[name] - ours[name]) for each in theirs for name in ours), 6),
        "losses moved": round(min(abs(before[name] - ours[name]) for name in ours), 4),
        "mean losses apart": round(max(abs(fmean(each.values()) - fmean(ours.values())) for each in theirs), 6),
        "mean loss moved": round(abs(fmean(before.values()) - fmean(ours.values())), 4),
        "deltas apart": round(max(far), 4),
    }


def take_trainings(
    base: BaseModel,
    jobs: Sequence[TrainJob],
    ways: Mapping[str, Callable[[], Adapters]],
    *,
    floors: Mapping[str, Callable[[], object]],
    repeats: int,
    anyway: bool,
) -> tuple[Times, dict[str, float]]:
    """Time ways to train and floors in turn; see `require_equal` for what else is returned."""
    found: dict[str, Adapters] = {}
    equality: dict[str, float] = {}

    def keep(name: str, work: Callable[[], Adapters]) -> None:
        found[name] = dict(list(work().items())[:JUDGED])

    kept = {name: partial(keep, name, work) for name, work in ways.items()}
    contenders = [way for way in STRONG if way in ways]
    times = take_turns(
        kept | dict(floors),
        repeats=repeats,
        anyway=anyway,
        contenders=contenders,
        after_warm_up=lambda: equality.update(require_equal(base, jobs, found)),
    )
    return times, equality


def best_of(times: Mapping[str, Sequence[float]], ways: Sequence[str]) -> list[float]:
    """Return the least time of each turn."""
    return [min(turn) for turn in zip(*(times[way] for way in ways if way in times), strict=True)]


def measure(base: BaseModel, case: Case, jobs: Sequence[TrainJob], options: argparse.Namespace) -> dict[str, Any]:
    """Time all ways of a case."""
    engine = EngineConfig(slots=8)
    ways = {ENGINE: partial(run_engine, base, jobs, engine)}
    ways |= {way: partial(peer, base, jobs, way) for way in case.ways}
    floors = {FLOOR: partial(bare, base, jobs, engine), WHOLE_FLOOR: partial(bare, base, jobs, engine, whole=True)}
    times, equality = take_trainings(base, jobs, ways, floors=floors, repeats=options.repeats, anyway=options.anyway)
    rows = rows_of(times, units=trained_tokens(jobs), unit="tokens")
    times[BEST] = best_of(times, STRONG)
    return {
        "case": asdict(case),
        "tokens": trained_tokens(jobs),
        "equality": equality,
        "moved within a turn, %": times.moved,
        "turns": times.record(),
        "rows": {
            name: {**row, "users_per_hour": round(3600 * case.users / row["median_s"])} for name, row in rows.items()
        },
        "ratios": {
            **{f"engine vs {way}": ratio(times, way, ENGINE) for way in (BEST, *case.ways) if way in times},
            "floor / engine": ratio(times, FLOOR, ENGINE),
            "floor, whole rows / engine": ratio(times, WHOLE_FLOOR, ENGINE),
        },
    }


def page_of(name: str, result: Mapping[str, Any]) -> str:
    """Return a case as Markdown."""
    case = result["case"]
    title = (
        f"### {name}: {case['users']} users x {case['items']} items, {result['tokens']} tokens, {case['dtype']}, "
        f"{'all linear layers' if len(case['targets']) > 2 else 'q and v'}, {case['beneath']} anchors beneath"
    )
    rows = [
        [way, row["median_s"], f"{row['min_s']} - {row['max_s']}", row["tokens_per_s"], row["users_per_hour"]]
        for way, row in result["rows"].items()
    ]
    shown = table(["", "median s", "min - max", "tokens/s", "users/h"], rows)
    ratios = "; ".join(f"{key}: **{value}**" for key, value in result["ratios"].items())
    equal = "; ".join(f"{key} {value}" for key, value in result["equality"].items())
    return "\n\n".join([title, shown, ratios, f"After training: {equal}. {steadiness(result)}"])


def main() -> None:
    """Measure the cases that are asked for and write a file each."""
    options = turns_options(__doc__).parse_args()
    for name in options.case or CASES:
        out = options.out / f"{name}.json" if options.out else None
        if out and out.exists():
            print(page_of(name, read_json(out)), end="\n\n")
            continue
        keep_freed_memory()
        case = case_of(name, options)
        base = load_base_model(options.base, dtype=case.dtype)
        work = partial(measure, base, case, make_jobs(base, case, options.data), options)
        result, where = watched(work, anyway=options.anyway)
        write(out, {**result, "base": options.base, "machine": where}, page_of(name, result))


if __name__ == "__main__":
    run(main)
