"""The one training loop: many users' adapters in shared batches, each as if it were alone.

Bank anchors, the population adapter, adaptation and every trained rival are `TrainJob`s. Users wait in a queue for one
of S slots; in every round each live user's next update is collected, all their rows are packed into common batches
without padding (what all rows of one user begin with goes in once), and each user's slot makes its own AdamW step. A
finished user's slot goes to the next in the queue.

Why a user gets the same adapter in any company:
- the loss is a sum over users of each user's own mean over the answer tokens of its own update;
- gradients of different slots are disjoint, and moments, clock, learning rate and clipping are per slot;
- the initial A and the order of examples depend on the job, not on the slot.

Example:
    >>> for done in train(base, [TrainJob("ada", rows, TrainConfig())], engine=EngineConfig()):
    ...     print(done.job_id, done.updates, done.losses[-1])
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mta.base_model import BaseModel
from mta.config import EngineConfig
from mta.errors import ConfigError, DataError
from mta.files import sha256_json
from mta.forward import answer_nll
from mta.lora.adapter import Adapter, adapter_from_tensors
from mta.lora.attach import attached
from mta.lora.slot_adamw import SlotAdamW, SlotUpdate
from mta.lora.stacked import TrainableStack
from mta.memory import fit_passes
from mta.memory_at_hand import PassMemory, out_of_memory, release_memory, room_for
from mta.packing import TokenRow, fill_packs, pack_rows
from mta.training_checkpoint import SlotState, TrainingState, jobs_fingerprint, load_state, save_state
from mta.training_plan import TrainJob, learning_rate, update_examples, updates_per_epoch
from mta.transfer import send

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished job."""

    job_id: str
    tensors: Mapping[str, Tensor]
    """What was trained, on the CPU; of a LoRA job `<module>.A` and `<module>.B`."""
    updates: int
    """Updates made."""
    tokens: int
    """Tokens of all rows trained on, prompt and answer; beginnings that rows share are counted for each."""
    losses: tuple[float, ...]
    """Mean loss per answer token of every update, in nats, before the update."""
    held_out_losses: tuple[float, ...]
    """Mean held-out loss before training and after each epoch; () without held-out rows."""
    diverged: bool
    """True if a gradient was not finite; the values are then the last good ones."""

    @property
    def adapter(self) -> Adapter:
        """The trained adapter of a LoRA job."""
        return adapter_from_tensors(self.tensors, where=self.job_id)


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """How far a training call is."""

    updates: int
    total_updates: int
    """Upper bound; early stopping makes fewer."""
    finished: int
    jobs: int
    tokens: int
    seconds: float
    """Wall time, that of interrupted calls included."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Job id -> mean loss per answer token of the update it has just made; those that finished with it are left out."""


@dataclass(slots=True)
class _Live:
    """A job in a slot."""

    job: TrainJob
    slot: int
    state: SlotState = field(default_factory=SlotState)

    @property
    def epoch_ended(self) -> bool:
        return self.state.step % updates_per_epoch(len(self.job.rows), self.job.config) == 0


def train(
    base: BaseModel,
    jobs: Sequence[TrainJob],
    *,
    engine: EngineConfig,
    checkpoint: Path | None = None,
    dtype: torch.dtype | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
    before_pass: Callable[[], None] | None = None,
) -> Iterator[Trained]:
    """Train all jobs and yield each as it finishes.

    Args:
        base: the frozen model; nothing of it is changed.
        jobs: kind, rank, alpha, targets and train_a must be equal; everything else may differ per job.
        engine: packing; it decides speed, not results.
        checkpoint: file for unfinished work; the same call after a kill continues from it and gives the same result.
            Another base model, dtype, job or number of slots ignores it. Jobs whose `Trained` was yielded before the
            checkpoint are not yielded again; the caller keeps them.
            Remove the file when everything is stored (`finish_checkpoint`).
        dtype: dtype of the trained values and Adam's moments; float32 unless the model is wider.
        on_progress: called after every round.
        before_pass: called before every forward pass, for example to let others go first.

    Raises:
        ConfigError: jobs that cannot share a stack, or equal job ids.
        DataError: a job without rows.
        ModelError: the device's memory does not suffice for a single row.
    """
    if not jobs:
        return
    _check(jobs)
    dtype = dtype or torch.promote_types(base.dtype, torch.float32)
    engine = fit_passes(base, jobs, engine)
    with room_for(f"{min(engine.slots, len(jobs))} adapters in training (fewer slots need less)"):
        run = _Engine(base, jobs, engine, dtype, before_pass)
    fingerprint = sha256_json([jobs_fingerprint(jobs, engine.slots), base.fingerprint, str(base.dtype), str(dtype)])
    if checkpoint is not None and (state := load_state(checkpoint, fingerprint)) is not None:
        run.restore(state)
    saved_at = time.monotonic()
    while run.admit():
        yield from run.round()
        if on_progress:
            on_progress(run.progress())
        if checkpoint is not None and time.monotonic() - saved_at >= engine.checkpoint_every_s:
            save_state(checkpoint, run.state(fingerprint))
            saved_at = time.monotonic()
    run.memory.hand_back()


def finish_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint whose results are all stored."""
    checkpoint.unlink(missing_ok=True)


def _check(jobs: Sequence[TrainJob]) -> None:
    seen: set[str] = set()
    for job in jobs:
        if job.job_id in seen:
            raise ConfigError(f"two jobs are called {job.job_id!r}; ids must be unique")
        seen.add(job.job_id)
        if not job.rows:
            raise DataError(f"{job.job_id!r} has no training examples; leave this user out, or give more history")
        if any(not row.answer for row in (*job.rows, *job.held_out)):
            raise DataError(f"{job.job_id!r} has a training example without an answer; every example needs one")
        mine, first = _stack_key(job), _stack_key(jobs[0])
        if mine != first:
            raise ConfigError(
                f"jobs {jobs[0].job_id!r} and {job.job_id!r} differ in (kind, rank, alpha, target_modules, train_a): "
                f"{first} and {mine}; train them in separate calls"
            )


def _stack_key(job: TrainJob) -> tuple[str, int, float, tuple[str, ...], bool]:
    config = job.config
    return job.kind.name, config.rank, config.alpha, config.target_modules, config.train_a


class _Engine:
    """The slots, the queue and one round of work."""

    def __init__(
        self,
        base: BaseModel,
        jobs: Sequence[TrainJob],
        engine: EngineConfig,
        dtype: torch.dtype,
        before_pass: Callable[[], None] | None,
    ) -> None:
        self.base, self.jobs = base, list(jobs)
        self.before_pass = before_pass
        self.tokens_per_batch = engine.tokens_per_batch
        self.stack = jobs[0].kind.make(
            jobs,
            base.shapes(jobs[0].config.target_modules),
            slots=min(engine.slots, len(jobs)),
            like=torch.empty(0, device=base.device, dtype=dtype),
            compute_dtype=base.dtype,
        )
        if engine.grouped and isinstance(self.stack, TrainableStack):
            self.stack.group()
        self.optimizer = SlotAdamW(self.stack.parameters, self.stack.gradients)
        self.memory = PassMemory(base.device)
        self.live: dict[int, _Live] = {}
        self.next_job = 0
        self.finished: list[str] = []
        self.total = sum(job.total for job in self.jobs)
        self.finished_total = 0
        self.tokens = 0
        self.seconds_before, self.started = 0.0, time.monotonic()

    def admit(self) -> bool:
        """Give free slots to waiting jobs; return whether anybody is live."""
        admitted: list[_Live] = []
        for slot in range(self.stack.slots):
            if slot not in self.live and self.next_job < len(self.jobs):
                admitted.append(_Live(self.jobs[self.next_job], slot))
                self._prepare(admitted[-1])
                self.next_job += 1
        self._judge(admitted)
        return bool(self.live)

    def _lives(self) -> list[_Live]:
        """Return the live users in order of slot, so that batches do not depend on who was admitted when."""
        return [self.live[slot] for slot in sorted(self.live)]

    def _prepare(self, live: _Live) -> None:
        self.optimizer.reset(live.slot)
        self.stack.start(live.slot, live.job)
        self.live[live.slot] = live

    def round(self) -> list[Trained]:
        """Make one update for every live user; return the users that finished with it."""
        norms = self._update()
        done: list[Trained] = []
        for live in self._lives():
            if not math.isfinite(norms[live.slot]):
                log.warning("%s diverged at update %d; keeping its last good adapter", live.job.job_id, live.state.step)
                done.append(self._retire(live, diverged=True))
        self._judge([live for live in self._lives() if live.epoch_ended or live.state.step == live.job.total])
        for live in self._lives():
            if live.state.stopped or live.state.step >= live.job.total:
                done.append(self._retire(live, diverged=False))
        return done

    def _update(self) -> dict[int, float]:
        """Collect every live user's next update, run it in shared batches, and step each slot."""
        work: list[tuple[_Live, TokenRow]] = []
        answer_tokens: dict[int, int] = {}
        for live in self._lives():
            job = live.job
            self.stack.prepare(live.slot, job, live.state.step)
            chosen = update_examples(len(job.rows), job.config, job_id=job.job_id, step=live.state.step)
            rows = [job.rows[index] for index in chosen]
            work += [(live, row) for row in rows]
            answer_tokens[live.slot] = sum(len(row.answer) for row in rows)
            live.state.tokens += sum(map(len, rows))
            self.tokens += sum(map(len, rows))
        losses = dict.fromkeys(self.live, 0.0)
        for live, nll in self._run(work, weights=answer_tokens):
            losses[live.slot] += nll / answer_tokens[live.slot]
        for slot in self.live:
            self.stack.regularize(slot)
        return self._step(losses)

    def _step(self, losses: dict[int, float]) -> dict[int, float]:
        updates = []
        for live in self._lives():
            rate = learning_rate(live.job.config, step=live.state.step, total=live.job.total)
            updates.append(SlotUpdate(live.slot, rate, live.job.config))
            live.state.losses.append(losses[live.slot])
            live.state.step += 1
        with room_for(f"an update of {len(updates)} adapters"):
            return self.optimizer.step(updates)

    def _run(
        self, work: Sequence[tuple[_Live, TokenRow]], *, weights: dict[int, int] | None
    ) -> list[tuple[_Live, float]]:
        """Run rows in packs, all over again in smaller ones where a GPU's memory does not suffice.

        With `weights`, each row's gradient divided by its slot's weight is accumulated; what a broken attempt has
        accumulated is dropped.
        """
        while True:
            try:
                return self._run_packs(work, weights=weights)
            except torch.OutOfMemoryError as error:
                longest = max(len(row) for _, row in work)
                if self.tokens_per_batch <= longest:
                    raise out_of_memory(f"a forward and backward pass over one row of {longest} tokens") from error
            self.tokens_per_batch = max(longest, self.tokens_per_batch // 2)
            log.warning("out of memory: going on with at most %d tokens in a pass", self.tokens_per_batch)
            self.stack.gradients.zero_()
            release_memory()

    def _run_packs(
        self, work: Sequence[tuple[_Live, TokenRow]], *, weights: dict[int, int] | None
    ) -> list[tuple[_Live, float]]:
        found: list[Tensor] = []
        packs = fill_packs(work, lambda item: len(item[1]), tokens_per_batch=self.tokens_per_batch)
        with attached(self.base.model, self.stack), torch.set_grad_enabled(weights is not None):
            for part in packs:
                if self.before_pass:
                    self.before_pass()
                slots = [live.slot for live, _ in part]
                pack = pack_rows([row for _, row in part], device=self.base.device, adapters=slots)
                self.stack.route([slots[row] for row in pack.rows], pack.lengths, pack.people)
                nll = answer_nll(self.base, pack)  # (rows,)
                if weights is not None:
                    counts = send(torch.tensor([weights[live.slot] for live, _ in part], dtype=nll.dtype), nll.device)
                    (nll / counts).sum().backward()  # type: ignore[no-untyped-call]
                found.append(nll.detach())
                del nll
                self.memory.after_pass()
        values = torch.cat(found).tolist() if found else []  # the host waits for a GPU here only
        return [(live, value) for (live, _), value in zip(work, values, strict=True)]

    def _judge(self, lives: Sequence[_Live]) -> None:
        """Measure held-out loss of the given users and keep their best parameters."""
        work = [(live, row) for live in lives for row in live.job.held_out]
        if not work:
            return
        sums = {live.slot: 0.0 for live, _ in work}
        for live, nll in self._run(work, weights=None):
            sums[live.slot] += nll
        for live in lives:
            if live.job.held_out:
                loss = sums[live.slot] / sum(len(row.answer) for row in live.job.held_out)
                live.state.judge(loss, self.stack.parameters[live.slot], patience=live.job.config.patience)

    def _retire(self, live: _Live, *, diverged: bool) -> Trained:
        """Export a finished user's adapter and clean its slot."""
        state = live.state
        trained = Trained(
            job_id=live.job.job_id,
            tensors=self.stack.export(live.slot, state.best),
            updates=state.step,
            tokens=state.tokens,
            losses=tuple(state.losses),
            held_out_losses=tuple(state.held_out_losses),
            diverged=diverged,
        )
        self.stack.clear(live.slot)
        self.optimizer.reset(live.slot)
        del self.live[live.slot]
        self.finished.append(live.job.job_id)
        self.finished_total += live.job.total
        return trained

    def progress(self) -> TrainProgress:
        """Return how far this call is."""
        done = self.finished_total + sum(live.state.step for live in self.live.values())
        losses = {live.job.job_id: live.state.losses[-1] for live in self.live.values()}
        return TrainProgress(done, self.total, len(self.finished), len(self.jobs), self.tokens, self.seconds(), losses)

    def seconds(self) -> float:
        """Return the wall time of this call and of those it continues."""
        return self.seconds_before + time.monotonic() - self.started

    def state(self, fingerprint: str) -> TrainingState:
        """Return everything an interrupted call needs to go on."""
        slots = sorted(self.live)
        return TrainingState(
            fingerprint=fingerprint,
            next_job=self.next_job,
            finished=list(self.finished),
            tokens=self.tokens,
            seconds=self.seconds(),
            slots={slot: (self.live[slot].job.job_id, self.live[slot].state) for slot in slots},
            parameters=self.stack.parameters[slots],
            first_moments=self.optimizer.first_moments[slots],
            second_moments=self.optimizer.second_moments[slots],
        )

    def restore(self, state: TrainingState) -> None:
        """Put an interrupted call's slots back as they were."""
        jobs = {job.job_id: job for job in self.jobs}
        self.next_job, self.finished, self.tokens = state.next_job, list(state.finished), state.tokens
        self.finished_total = sum(jobs[name].total for name in self.finished)
        self.seconds_before = state.seconds
        for index, (slot, (job_id, slot_state)) in enumerate(sorted(state.slots.items())):
            self._prepare(_Live(jobs[job_id], slot, slot_state))
            _copy_row(self.stack.parameters, slot, state.parameters[index])
            _copy_row(self.optimizer.first_moments, slot, state.first_moments[index])
            _copy_row(self.optimizer.second_moments, slot, state.second_moments[index])
            self.optimizer.steps[slot] = slot_state.step


def _copy_row(into: Tensor, slot: int, row: Tensor) -> None:
    with torch.no_grad():
        into[slot].copy_(row)
