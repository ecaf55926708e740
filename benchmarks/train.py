"""Training speed: this engine against other ways to train the same adapters, in one process, taking turns.

    python benchmarks/train.py --data DIR --out docs/results/speed/train [--case NAME] [--anyway]

Every case trains some people's adapters with the same model, rows, initial values, order, learning rates, clipping and
AdamW; the last losses of all ways are asserted to agree before any time is reported. The ways, and the floor beneath
all of them, are described in `training_peers.py`. Without --data, invented people are used. Cases already in the folder
are left as they are, so that a stopped run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from measuring import case_options, machine, ratio, refuse_busy, rows_of, table, take_turns, write
from mta.base_model import BaseModel, load_base_model
from mta.config import ALL_LINEAR, QUERY_VALUE, EngineConfig, PromptConfig, TrainConfig
from mta.data.personas import make_personas
from mta.data.read import read_users
from mta.files import read_json
from mta.lora.adapter import Adapter, AdapterSum, Factors, Recipe
from mta.packing import TokenRow
from mta.runtime import keep_freed_memory
from mta.tasks import get_task
from mta.training import train
from mta.training_plan import TrainJob
from mta.user_rows import user_rows
from training_peers import HfTrainer, Losses, PeftLoop, bare, trained_tokens

PROMPTS = PromptConfig(history_words=60, input_words=120, max_tokens=768)
HEADLINE = "lamp-2"
PLAIN, BEST, PACKED, TRAINER, ENGINE = "peft plain", "peft best", "peft packed", "hf trainer", "engine"
FLOOR, WHOLE_FLOOR = "floor", "floor, whole rows"


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained."""

    users: int = 8
    items: int = 8
    """Examples of each user, one pass over them."""
    shape: str = "lamp-2"
    """A task, or "synthetic": 50 to 150 tokens of prompt and 4 of answer, drawn evenly."""
    targets: tuple[str, ...] = ALL_LINEAR
    rank: int = 8
    beneath: int = 0
    """Anchors of rank 8 un-merged beneath each adapter."""
    dtype: str = "float32"
    ways: tuple[str, ...] = (PLAIN, BEST, PACKED, TRAINER)


CASES: Mapping[str, Case] = {
    HEADLINE: Case(),
    "lamp-2-bf16": Case(dtype="bfloat16"),
    "lamp-2-1-user": Case(users=1, items=16),
    "lamp-2-64-users": Case(users=64, items=4, ways=(PLAIN, BEST)),
    "lamp-2-50-items": Case(users=2, items=50, ways=(PLAIN, BEST)),
    "lamp-2-100-items": Case(users=1, items=100, ways=(PLAIN, BEST)),
    "lamp-2-qv": Case(targets=QUERY_VALUE),
    "lamp-2-anchors": Case(rank=4, beneath=2),
    "lamp-2-anchors-qv": Case(rank=4, beneath=2, targets=QUERY_VALUE),
    "lamp-5": Case(shape="lamp-5", users=4),
    "lamp-5-bf16": Case(shape="lamp-5", users=4, dtype="bfloat16"),
    "synthetic": Case(shape="synthetic"),
}


def make_jobs(base: BaseModel, case: Case, data: Path | None) -> list[TrainJob]:
    """Return the jobs of a case: the most active pool users, capped to the asked number of items."""
    config = TrainConfig(
        lr=5e-4,
        epochs=1,
        batch_size=8 if case.shape == "lamp-2" else 4,
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

    def row() -> TokenRow:
        length = int(torch.randint(50, 151, (), generator=generator))
        return TokenRow(tuple(torch.randint(words // 2, words, (length,), generator=generator).tolist()), (5, 6, 7, 2))

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


def run_engine(base: BaseModel, jobs: Sequence[TrainJob], engine: EngineConfig) -> Losses:
    """Train with this package."""
    return {done.job_id: done.losses[-1] for done in train(base, jobs, engine=engine)}


def peer(base: BaseModel, jobs: Sequence[TrainJob], way: str) -> Losses:
    """Train with another way, set up and taken down again."""
    config = jobs[0].config
    made = HfTrainer(base, config) if way == TRAINER else PeftLoop(base, config, kind=way.removeprefix("peft "))
    with closing(made):
        return made(jobs)


def require_equal(losses: Mapping[str, Losses], *, tolerance: float) -> None:
    """Refuse to report times of different work."""
    for way, found in losses.items():
        for name, value in found.items():
            ours = losses[ENGINE][name]
            if abs(value - ours) > tolerance * max(1.0, abs(ours)):
                raise SystemExit(f"{way}: last loss of {name} is {value}, the engine's is {ours}; not comparable")


def measure(base: BaseModel, case: Case, jobs: Sequence[TrainJob], repeats: int) -> dict[str, Any]:
    """Time all ways of a case."""
    engine = EngineConfig(slots=8)
    losses: dict[str, Losses] = {}

    def keep(name: str, work: Callable[[], Losses]) -> None:
        losses[name] = work()

    ways: dict[str, Callable[[], object]] = {ENGINE: partial(keep, ENGINE, partial(run_engine, base, jobs, engine))}
    for way in case.ways:
        ways[way] = partial(keep, way, partial(peer, base, jobs, way))
    ways[FLOOR] = partial(bare, base, jobs, engine)
    ways[WHOLE_FLOOR] = partial(bare, base, jobs, engine, whole=True)
    times = take_turns(ways, repeats=repeats)
    # bfloat16 rounds every way's sums differently; what is compared is a loss over a few tokens
    require_equal(losses, tolerance=1e-3 if case.dtype == "float32" else 5e-2)
    rows = rows_of(times, units=trained_tokens(jobs), unit="tokens")
    return {
        "case": asdict(case),
        "tokens": trained_tokens(jobs),
        "rows": {
            name: {**row, "users_per_hour": round(3600 * case.users / row["median_s"])} for name, row in rows.items()
        },
        "ratios": {
            **{f"engine vs {way}": ratio(times, way, ENGINE) for way in case.ways},
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
    return "\n\n".join([title, shown, "; ".join(f"{key}: **{value}**" for key, value in result["ratios"].items())])


def main() -> None:
    """Measure the cases that are asked for and write a file each."""
    parser = case_options(__doc__, CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    options = parser.parse_args()
    for name in options.case or CASES:
        out = options.out / f"{name}.json" if options.out else None
        if out and out.exists():
            print(page_of(name, read_json(out)), end="\n\n")
            continue
        refuse_busy(anyway=options.anyway)
        keep_freed_memory()
        case = CASES[name]
        base = load_base_model(options.base, dtype=case.dtype)
        before = machine()
        result = measure(base, case, make_jobs(base, case, options.data), options.repeats)
        write(
            out,
            {**result, "base": options.base, "machine": before, "load after": machine()["load"]},
            page_of(name, result),
        )


if __name__ == "__main__":
    main()
