"""What a bank will be made of, before anything is trained: its anchors and their training examples.

Example:
    >>> plan = plan_bank(pool, task, base.tokens, config=BankConfig(), encoder=encoder)
    >>> len(plan.anchors), plan.asked, sum(job.total for job in plan.jobs())
    (48, 50, 8160)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mta.anchors import AnchorSelection, DroppedCluster, select_anchors
from mta.config import AnchorConfig, BankConfig, PromptConfig, TrainConfig
from mta.encoders import Encoder, embed_users
from mta.errors import ConfigError, DataError
from mta.judges import without_judges
from mta.lora.adapter import Recipe
from mta.packing import TokenRow
from mta.progress import Progress, silent
from mta.prompt_tokens import PromptTokenizer
from mta.records import User
from mta.tasks.labels import label_entropies
from mta.tasks.task import Task
from mta.training_plan import TrainJob
from mta.user_rows import UserRows, user_rows
from mta.vector_cache import VectorCache

POPULATION_JOB = "population"
"""Id of the training of an adapter for everybody."""
SHARED_INIT = "bank"
"""Key of the initial A that all anchors of a bank share."""


@dataclass(frozen=True, slots=True)
class PlannedAnchor:
    """An anchor to train."""

    cluster: int
    user: User
    rows: UserRows


@dataclass(frozen=True, slots=True)
class BankPlan:
    """The anchors of a bank."""

    asked: int
    """Anchors asked for."""
    anchors: tuple[PlannedAnchor, ...]
    dropped: tuple[DroppedCluster, ...]
    """Clusters that give no anchor."""
    config: BankConfig
    pool: tuple[User, ...]
    """Users that the bank may learn from; who is set aside as a judge is not among them."""
    task: Task

    @property
    def cut_rows(self) -> int:
        """Training prompts that were cut to fit the model."""
        return sum(anchor.rows.cut_rows for anchor in self.anchors)

    def jobs(self, *, beneath: Recipe | None = None) -> list[TrainJob]:
        """Return the training of every anchor that has examples, over what lies beneath all of them.

        Raises:
            DataError: none has.
        """
        jobs = [anchor_job(anchor.rows, self.config, beneath=beneath) for anchor in self.anchors if anchor.rows.rows]
        if not jobs:
            raise DataError(
                f"none of the {len(self.anchors)} anchors has a training example; check that the histories belong to "
                "the task (LaMP-1 needs items with a citation, or --allow-proxy)"
            )
        return jobs

    def population_job(self, tokens: PromptTokenizer) -> TrainJob:
        """Return the training of the adapter beneath all anchors: everybody's examples together.

        Raises:
            DataError: nobody has an example.
        """
        train = self.config.population_train
        made = pool_rows(self.pool, self.task, tokens, train=train, prompts=self.config.prompts)
        rows = [row for one in made for row in one.rows]
        if not rows:
            raise DataError(
                f"none of the {len(self.pool)} pool users has an example for the population adapter; check that the "
                "histories belong to the task, or leave --population-beneath out"
            )
        return population_job(rows, train, held_out=[row for one in made for row in one.held_out])


def pool_rows(
    pool: Sequence[User], task: Task, tokens: PromptTokenizer, *, train: TrainConfig, prompts: PromptConfig
) -> list[UserRows]:
    """Return the training rows of everybody in a pool, in its order."""
    return [user_rows(tokens, task, user, train=train, prompts=prompts) for user in pool]


def population_job(rows: Sequence[TokenRow], train: TrainConfig, *, held_out: Sequence[TokenRow] = ()) -> TrainJob:
    """Return the training of one adapter on the rows of many users together."""
    return TrainJob(POPULATION_JOB, tuple(rows), train, held_out=tuple(held_out))


def anchor_job(rows: UserRows, config: BankConfig, *, beneath: Recipe | None) -> TrainJob:
    """Return the training of one anchor's adapter over what lies beneath all of them."""
    key = SHARED_INIT if config.shared_init else None
    return TrainJob(rows.user_id, rows.rows, config.train, held_out=rows.held_out, frozen=beneath, init_key=key)


def plan_bank(
    pool: Sequence[User],
    task: Task,
    tokens: PromptTokenizer,
    *,
    config: BankConfig,
    encoder: Encoder,
    cache: VectorCache | None = None,
    min_anchors: int = 1,
    progress: Progress = silent,
) -> BankPlan:
    """Choose anchors from a pool (Eq. 2, 3) and make their training examples.

    Args:
        pool: users to choose from, but for those whom `config` sets aside as judges.
        task: what is asked.
        tokens: tokenizer of the base model.
        config: settings of the bank.
        encoder: makes the user vectors that are clustered; it must be the one `config` names.
        cache: where vectors are kept.
        min_anchors: refuse a bank of fewer.
        progress: told about each stage.

    Raises:
        ConfigError: the bank size does not fit the pool, or fewer than `min_anchors` are kept.
        DataError: nobody in the pool has a history.
    """
    pool = without_judges(pool, task, config)
    selection = _select(pool, task, config, encoder, cache, min_anchors, progress)
    anchors = tuple(
        PlannedAnchor(
            anchor.cluster,
            pool[anchor.index],
            user_rows(tokens, task, pool[anchor.index], train=config.train, prompts=config.prompts),
        )
        for anchor in selection.anchors
    )
    return BankPlan(selection.asked, anchors, selection.dropped, config, tuple(pool), task)


def _select(
    pool: Sequence[User],
    task: Task,
    config: BankConfig,
    encoder: Encoder,
    cache: VectorCache | None,
    min_anchors: int,
    progress: Progress,
) -> AnchorSelection:
    """Choose anchors among the users who have a history; their indices count the whole pool."""
    places = [index for index, user in enumerate(pool) if user.history]
    if not pool:
        raise DataError("no pool user is left; give a pool of other people than the targets")
    if not places:
        raise DataError(f"none of the {len(pool)} pool users has a history; give a pool with histories")
    users, wanted = [pool[place] for place in places], config.anchors
    with progress("user vectors") as step:
        vectors = embed_users(encoder, users, task.item_text, cache=cache, on_progress=step)
    found = select_anchors(
        vectors,
        [len(user.history) for user in users],
        user_ids=[user.user_id for user in users],
        config=wanted,
        label_entropies=label_entropies(task, users) if wanted.min_label_entropy else None,
    )
    if len(found.anchors) < min_anchors:
        raise ConfigError(
            f"{len(found.anchors)} of {wanted.bank_size} anchors are kept (an anchor needs more than "
            f"{wanted.min_history} history items{_of_entropy(wanted)}), but {min_anchors} are merged per user; lower "
            "--top-k or what is asked of anchors, or give a larger pool"
        )
    return replace(found, anchors=tuple(replace(anchor, index=places[anchor.index]) for anchor in found.anchors))


def _of_entropy(config: AnchorConfig) -> str:
    least = config.min_label_entropy
    return f" with answers of an entropy of {least:g} nats" if least else ""
