"""Background adaptation: a thread works through the store's jobs on the many-user engine, and lets requests go first.

Nothing but the store knows how far a job is: after a restart, people whose adapter was not finished are adapted again.

Example:
    >>> worker = AdaptationWorker(people, jobs, adapt=TrainConfig(), wait_for_turn=decoder.wait_until_idle)
    >>> worker.start()
    >>> worker.wake()       # after a job was added
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mta.base_model import BaseModel
from mta.compact import kind_of
from mta.config import EngineConfig, TrainConfig, to_dict
from mta.errors import MtaError, NotFound, StorageError
from mta.flat_records import known_numbers, schema_of
from mta.lora.adapter import Recipe
from mta.merging import Match
from mta.personalize import merged_recipe
from mta.serving.job_store import DONE, FAILED, JobStore
from mta.serving.people import People
from mta.serving.user_store import Revision, RevisionHead, StoredUser
from mta.training import Trained, TrainProgress, train
from mta.training_plan import TrainJob
from mta.user_rows import user_rows

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""How often the store is asked for jobs of other processes."""
NO_ANCHORS = Match("", (), (), ())
NO_EXAMPLES = "no training example in the history; append items that have an answer"
DIVERGED = "the training diverged; the adapter of before stays"


class Stopped(Exception):
    """The server stops; what is being adapted is left for the next one."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One person of one job."""

    job_id: str
    user: StoredUser
    match: Match
    items: int
    job: TrainJob


class AdaptationWorker:
    """Adapts people in one thread of its own.

    Args:
        people: the people, their anchors and the base model, whose weights are shared and whose layers are not.
        jobs: what is to be done.
        adapt: settings of the adapters.
        wait_for_turn: called between passes; returns when adaptation may go on.
    """

    def __init__(
        self, people: People, jobs: JobStore, *, adapt: TrainConfig, wait_for_turn: Callable[[], None]
    ) -> None:
        self._people, self._jobs, self._adapt = people, jobs, adapt
        self._wait_for_turn = wait_for_turn
        self._base = twin(people.base)
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adaptation", daemon=True)
        self.losses: dict[int, list[float]] = {}
        """Number of a person who is being adapted -> mean loss of each update so far."""
        self.adapted = 0
        """People since the start."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there is a new job."""
        self._woken.set()

    def stop(self) -> None:
        """End the thread after the pass it is at; what is unfinished is begun again by the next server."""
        self._stopping.set()
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                if not self.work_once():
                    self._woken.wait(LOOK_S)
            except Stopped:
                return
            except MtaError as error:  # the store is out of reach: it may come back
                log.warning("adaptation waits: %s", error)
                self._woken.wait(LOOK_S)
            except Exception:
                log.exception("adaptation failed")
                self._woken.wait(LOOK_S)

    def work_once(self) -> bool:
        """Adapt the next people in the queue together; return whether there were any."""
        waiting = self._jobs.next_users(self._people.config.adapt_slots)
        if not waiting:
            self._jobs.end_complete_jobs()
            return False
        tasks: dict[str, _Task] = {}
        for job_id, user_id in waiting:
            self._jobs.start(job_id)
            if task := self._prepared(job_id, user_id):
                tasks[task.job.job_id] = task
        try:
            self._train(tasks)
        finally:
            self.losses.clear()
        return True

    def _prepared(self, job_id: str, user_id: int) -> _Task | None:
        """Return a person ready for training; who cannot be adapted is ticked off."""
        user = self._people.store.user_by_id(user_id)
        if user is None:
            return None
        try:
            composition = self._people.composition
            person = composition.person(user)
            match = composition.match(user) if composition.bank and person.history else NO_ANCHORS
            rows = user_rows(
                self._base.tokens, self._people.task, person, train=self._adapt, prompts=self._people.prompts
            )
        except StorageError:
            raise
        except NotFound:  # deleted meanwhile
            return None
        except MtaError as error:
            self._jobs.finish_user(job_id, user_id, state=FAILED, message=str(error))
            return None
        if not rows.rows:
            self._jobs.finish_user(job_id, user_id, state=FAILED, message=NO_EXAMPLES)
            return None
        beneath = self._beneath(match)
        train_config = self._adapt if beneath else replace(self._adapt, form="lora")
        job = TrainJob(
            f"{job_id}/{user_id}", rows.rows, train_config, held_out=rows.held_out, frozen=beneath,
            kind=kind_of(train_config), init_key=str(user.name),
        )  # fmt: skip
        return _Task(job_id, user, match, len(person.history), job)

    def _beneath(self, match: Match) -> Recipe | None:
        composition = self._people.composition
        if composition.bank is None or not match.anchor_ids:
            return None
        return merged_recipe(match, composition.bank, composition.merge)

    def _train(self, tasks: Mapping[str, _Task]) -> None:
        for group in _by_form(list(tasks.values())):
            left = {task.job.job_id: task for task in group}
            try:
                for done in self._trained([task.job for task in group]):
                    self._finish(tasks[done.job_id], done)
                    del left[done.job_id]
            except StorageError:
                raise
            except MtaError as error:
                log.warning("adaptation of %d people failed: %s", len(left), error)
                for task in left.values():
                    self._jobs.finish_user(task.job_id, task.user.id, state=FAILED, message=str(error))

    def _trained(self, jobs: Sequence[TrainJob]) -> Any:
        config = self._people.config
        engine = EngineConfig(slots=config.adapt_slots, tokens_per_batch=config.adapt_tokens)
        return train(self._base, jobs, engine=engine, before_pass=self._turn, on_progress=self._note)

    def _turn(self) -> None:
        if self._stopping.is_set():
            raise Stopped
        self._wait_for_turn()

    def _note(self, progress: TrainProgress) -> None:
        for job_id, loss in progress.losses.items():
            self.losses.setdefault(int(job_id.rpartition("/")[2]), []).append(loss)

    def _finish(self, task: _Task, done: Trained) -> None:
        """Keep what was trained as the person's new revision, whole or not at all."""
        if done.diverged:
            self._jobs.finish_user(task.job_id, task.user.id, state=FAILED, message=DIVERGED)
            return
        schema = schema_of(
            done.tensors,
            base_fingerprint=self._base.fingerprint,
            numbers=known_numbers(self._people.config.adapter_numbers),
        )
        head = RevisionHead(
            match=task.match,
            bank=self._people.composition.bank_checksum,
            items=task.items,
            note={
                "updates": done.updates,
                "tokens": done.tokens,
                "losses": [round(loss, 4) for loss in done.losses],
                "merge": to_dict(self._people.composition.merge),
            },
        )
        try:
            self._people.store.save_revision(task.user, Revision(head, done.tensors), schema)
        except NotFound:  # deleted meanwhile, and her place in the job with her
            return
        self._jobs.finish_user(task.job_id, task.user.id, state=DONE)
        self.adapted += 1


def _by_form(tasks: Sequence[_Task]) -> list[list[_Task]]:
    """Put people together who can train together: those with anchors beneath, and those without."""
    groups: dict[str, list[_Task]] = {}
    for task in tasks:
        groups.setdefault(task.job.config.form, []).append(task)
    return list(groups.values())


def twin(base: BaseModel) -> BaseModel:
    """Return a base model with layers of its own over the same weights, so that two threads can attach to them."""
    shared = {id(tensor): tensor for tensor in (*base.model.parameters(), *base.model.buffers())}
    return replace(base, model=copy.deepcopy(base.model, shared))
