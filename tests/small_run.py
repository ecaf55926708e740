"""A whole run small enough for a test: invented people who rate products, a random model, one or two updates."""

from __future__ import annotations

from dataclasses import replace

from mta.config import QUERY_VALUE, AnchorConfig, BankConfig, EngineConfig, MatchConfig, PromptConfig, TrainConfig
from mta.data.personas import make_pool_and_targets
from mta.evaluation.run_config import RunConfig
from mta.records import User

RUN_TRAIN = TrainConfig(rank=2, alpha=4.0, lr=1e-2, epochs=2, batch_size=3, target_modules=QUERY_VALUE)
RUN = RunConfig(
    task_id="lamp-3",
    base="tiny-random",
    device="cpu",
    bank=BankConfig(
        prompts=PromptConfig(history_k=1, history_words=10, template="plain", max_tokens=700),
        anchors=AnchorConfig(bank_size=3, min_history=3, encoder="tiny-random"),
        train=RUN_TRAIN,
        match=MatchConfig(encoder="tiny-random"),
        population_train=RUN_TRAIN,
    ),
    adapt=replace(RUN_TRAIN, rank=1, alpha=2.0),
    engine=EngineConfig(slots=2, tokens_per_batch=1500, predict_tokens_per_batch=3000, checkpoint_every_s=0.0),
)


def small_world(task_id: str = "lamp-3", *, pool: int = 6) -> tuple[list[User], list[User]]:
    """Pool and three targets with three queries each."""
    source, targets = make_pool_and_targets(
        task_id, pool=pool, targets=3, pool_history=(5, 7), target_history=(4, 5), target_queries=3, seed=0
    )
    return list(source.users), list(targets.users)
