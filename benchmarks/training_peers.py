"""Other ways to train the adapters that a list of jobs asks for, each giving the same adapters as the engine.

- `PeftLoop("plain")`: one user after the other, micro-batches of 2 accumulated to the update, padded on the right,
  logits of all positions, the model's own loss; how most people train.
- Stronger forms of that loop, with logits of answer positions only, no mask, and autocast in place of PEFT's own
  casting: `"rows"` takes one row at a time, so that nothing is padded, `"rows, eager"` with the plain form of
  attention; `"sorted"` takes 4 rows of like length; `"whole update"` all rows of an update.
- `PeftLoop("packed")`: PEFT's layers over this package's forward pass (rows packed without padding), user by user.
- `HfTrainer`: the Trainer of transformers, one per user, in the plain form.
- `bare`: the floor: forward and backward of the base model without any adapter, on the very packs the engine makes, or
  on packs of whole rows, in which users' common beginnings are not shared.

All start from the engine's initial A and take its order of examples, learning rates and clipping. What lies beneath an
adapter is added to the base weights, as PEFT's users do, and taken off again.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import peft
import peft.helpers
import torch
import transformers
from torch import Tensor

from mta.base_model import BaseModel
from mta.config import EngineConfig, TrainConfig
from mta.forward import answer_nll
from mta.lora.adapter import Adapter, Factors
from mta.lora.stacked import initial_A
from mta.packing import TokenRow, fill_packs, pack_rows
from mta.training_plan import TrainJob, learning_rate, update_examples

Adapters = dict[str, Adapter]
"""Job id -> what was trained for it."""


def update_rows(job: TrainJob, step: int) -> list[TokenRow]:
    """Return the rows of one update."""
    chosen = update_examples(len(job.rows), job.config, job_id=job.job_id, step=step)
    return [job.rows[index] for index in chosen]


def trained_tokens(jobs: Sequence[TrainJob]) -> int:
    """Return the tokens, without padding, that all updates of all jobs go through."""
    return sum(len(row) for job in jobs for step in range(job.total) for row in update_rows(job, step))


def bare(base: BaseModel, jobs: Sequence[TrainJob], engine: EngineConfig, *, whole: bool = False) -> None:
    """Run the base model forward and backward, with gradients to the embeddings, as the engine packs the work.

    With `whole`, every row goes through by itself, the beginning that a user's rows share included.
    """
    embeddings = base.model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    try:
        for work in rounds(jobs, engine.slots):
            for part in fill_packs(work, lambda item: len(item[1]), tokens_per_batch=engine.tokens_per_batch):
                names, rows = zip(*part, strict=True)
                pack = pack_rows(rows, device=base.device, adapters=None if whole else names)
                answer_nll(base, pack).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        handle.remove()


def rounds(jobs: Sequence[TrainJob], slots: int) -> Iterator[list[tuple[str, TokenRow]]]:
    """Yield the rows that go together, as jobs take the slots one after the other."""
    waiting, live = list(jobs), dict[int, tuple[TrainJob, int]]()
    while waiting or live:
        for slot in range(slots):
            if slot not in live and waiting:
                live[slot] = (waiting.pop(0), 0)
        yield [(job.job_id, row) for _, (job, step) in sorted(live.items()) for row in update_rows(job, step)]
        live = {slot: (job, step + 1) for slot, (job, step) in live.items() if step + 1 < job.total}


@contextmanager
def merged_beneath(base: BaseModel, job: TrainJob) -> Iterator[None]:
    """Add what lies beneath a job's adapter to the base weights, and restore them afterwards."""
    frozen = job.frozen.make() if job.frozen else None
    layers = {name: base.model.get_submodule(name) for name in frozen.modules} if frozen else {}
    weights = {name: getattr(layer, "base_layer", layer).weight for name, layer in layers.items()}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.data += frozen.delta(name).to(weight) if frozen else 0
        yield
    finally:
        for name, weight in weights.items():
            weight.data.copy_(before[name])


@dataclass(frozen=True, slots=True)
class Form:
    """How a PEFT loop goes through an update."""

    rows: int = 0
    """Rows in a pass; 0: all of the update."""
    whole: bool = False
    """Logits of every position and the model's own loss over rows padded with a mask, as most code has it."""
    packed: bool = False
    """Over this package's forward pass."""
    attention: str = "sdpa"
    autocast: bool = True
    """Let autocast choose the numbers where the base model is in bfloat16, instead of PEFT's casting up and down."""


FORMS: Mapping[str, Form] = {
    "plain": Form(rows=2, whole=True, autocast=False),
    "rows": Form(rows=1),
    "rows, eager": Form(rows=1, attention="eager"),
    "sorted": Form(rows=4),
    "sorted, eager": Form(rows=4, attention="eager"),
    "whole update": Form(),
    "whole update, eager": Form(attention="eager"),
    "packed": Form(packed=True),
}
"""Name of a PEFT loop, without "peft " -> its form."""


class PeftLoop:
    """One PEFT model, its adapter started afresh for each user."""

    def __init__(self, base: BaseModel, config: TrainConfig, *, kind: str) -> None:
        self.base, self.form = base, FORMS[kind]
        self.model = peft.get_peft_model(base.model, _lora(config), autocast_adapter_dtype=True)
        self.layers = {n: m for n, m in self.model.base_model.model.named_modules() if hasattr(m, "lora_A")}
        self.attention = base.model.config._attn_implementation
        base.model.set_attn_implementation(self.form.attention)

    def close(self) -> None:
        """Take the adapter out of the base model again."""
        self.model.unload()
        self.base.model.set_attn_implementation(self.attention)

    def __call__(self, jobs: Sequence[TrainJob]) -> Adapters:
        """Train every job."""
        found = {}
        for job in jobs:
            self._train(job)
            found[job.job_id] = self.adapter()
        return found

    def start(self, job: TrainJob) -> list[Tensor]:
        """Put a job's initial values in place; return what is trained."""
        for name, layer in self.layers.items():
            weight = layer.lora_A["default"].weight
            key = job.job_id if job.init_key is None else job.init_key
            weight.data.copy_(initial_A(tuple(weight.shape), seed=job.config.seed, key=key, module=name))
            layer.lora_B["default"].weight.data.zero_()
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def adapter(self) -> Adapter:
        """Return what was trained, as the engine returns it."""
        return Adapter(
            {
                name: Factors(
                    layer.lora_A["default"].weight.detach().clone(),
                    layer.lora_B["default"].weight.detach() * layer.scaling["default"],
                )
                for name, layer in self.layers.items()
            }
        )

    def _train(self, job: TrainJob) -> None:
        parameters = self.start(job)
        optimizer = torch.optim.AdamW(parameters, lr=job.config.lr, weight_decay=job.config.weight_decay)
        with merged_beneath(self.base, job):
            for step in range(job.total):
                optimizer.param_groups[0]["lr"] = learning_rate(job.config, step=step, total=job.total)
                optimizer.zero_grad()
                self._accumulate(update_rows(job, step))
                torch.nn.utils.clip_grad_norm_(parameters, job.config.clip_norm)
                optimizer.step()

    def _accumulate(self, rows: Sequence[TokenRow]) -> None:
        """Add up the gradient of the mean loss over the answer tokens of an update."""
        tokens = sum(len(row.answer) for row in rows)
        size = self.form.rows or len(rows)
        order = rows if self.form.whole else sorted(rows, key=len)
        for start in range(0, len(rows), size):
            part = order[start : start + size]
            with self._numbers():
                loss = self._packed_nll(part) if self.form.packed else self._padded_nll(part)
            (loss / tokens).backward()  # type: ignore[no-untyped-call]

    @contextmanager
    def _numbers(self) -> Iterator[None]:
        narrow = self.form.autocast and self.base.dtype == torch.bfloat16
        with (
            torch.autocast(self.base.device.type, torch.bfloat16, enabled=narrow),
            peft.helpers.disable_input_dtype_casting(self.model, active=narrow),
        ):
            yield

    def _packed_nll(self, rows: Sequence[TokenRow]) -> Tensor:
        return answer_nll(self.base, pack_rows(rows, device=self.base.device)).sum()

    def _padded_nll(self, rows: Sequence[TokenRow]) -> Tensor:
        batch = right_padded(rows, self.base.pad_id, self.base.device)
        if self.form.whole:
            loss: Tensor = self.model(**batch).loss
            return loss * (batch["labels"][:, 1:] != -100).sum()
        # padding stands behind everything that is learned from, so that causal attention needs no mask
        states = self.base.model.get_decoder()(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        places, targets = (batch["labels"][:, 1:] != -100).nonzero(as_tuple=True), batch["labels"][:, 1:]
        logits = self.base.model.get_output_embeddings()(states[places])
        return torch.nn.functional.cross_entropy(logits.float(), targets[places], reduction="sum")


def _lora(config: TrainConfig) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.target_modules), lora_dropout=0.0
    )


def right_padded(rows: Sequence[TokenRow], pad_id: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Return a batch as most code makes it: padded on the right, labels -100 where nothing is to be learned."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row.prompt + row.answer)
        mask[index, : len(row)] = 1
        labels[index, len(row.prompt) : len(row)] = torch.tensor(row.answer)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


class HfTrainer:
    """The Trainer of transformers with PEFT, a new one for each user, in micro-batches of 2."""

    def __init__(self, base: BaseModel, config: TrainConfig) -> None:
        self.loop = PeftLoop(base, config, kind="plain")
        self.base = base

    def close(self) -> None:
        """Take the adapter out of the base model again."""
        self.loop.close()

    def __call__(self, jobs: Sequence[TrainJob]) -> Adapters:
        """Train every job."""
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("transformers").setLevel(logging.ERROR)
            found = {}
            for job in jobs:
                self._train(job, folder)
                found[job.job_id] = self.loop.adapter()
            return found

    def _train(self, job: TrainJob, folder: str) -> None:
        parameters = self.loop.start(job)
        optimizer = torch.optim.AdamW(parameters, lr=job.config.lr, weight_decay=job.config.weight_decay)
        scale = partial(_share_of_peak, job)
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=max(1, job.config.batch_size // 2),
            num_train_epochs=1,
            max_grad_norm=job.config.clip_norm,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=self.base.device.type == "cpu",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        trainer = _InOrder(
            model=self.loop.model,
            args=arguments,
            train_dataset=[row for step in range(job.total) for row in update_rows(job, step)],
            data_collator=partial(right_padded, pad_id=self.base.pad_id),
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, scale)),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        with merged_beneath(self.base, job):
            trainer.train()


def _share_of_peak(job: TrainJob, step: int) -> float:
    return learning_rate(job.config, step=step, total=job.total) / job.config.lr if step < job.total else 0.0


class _InOrder(transformers.Trainer):  # type: ignore[misc]
    """A Trainer that takes its examples in the order of the dataset, as the engine drew it."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)
