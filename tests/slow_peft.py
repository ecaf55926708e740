"""A plain training loop: PEFT's layers, torch's AdamW, one row at a time. Nothing of the engine but its schedule."""

from __future__ import annotations

import copy

import pytest
import torch

from mta.base_model import BaseModel
from mta.lora.stacked import initial_A
from mta.seeds import stable_seed
from mta.training_plan import TrainJob, learning_rate, update_examples


def peft_deltas(base: BaseModel, job: TrainJob) -> dict[str, torch.Tensor]:
    """Train one job on the bare base model; return each layer's whole delta."""
    peft = pytest.importorskip("peft")
    config = job.config
    lora = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.target_modules), lora_dropout=0.0
    )
    model = peft.get_peft_model(copy.deepcopy(base.model), lora).double()
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A") and "default" in m.lora_A}
    for name, layer in layers.items():
        shape = tuple(layer.lora_A["default"].weight.shape)
        layer.lora_A["default"].weight.data.copy_(initial_A(shape, seed=config.seed, key=job.job_id, module=name))
        assert float(layer.lora_B["default"].weight.detach().abs().max()) == 0
        layer.lora_A["default"].weight.requires_grad_(config.train_a)
    parameters = [p for p in model.parameters() if p.requires_grad]
    betas = (config.beta1, config.beta2)
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=betas, eps=config.eps, weight_decay=config.weight_decay)
    for step in range(job.total):
        chosen = update_examples(len(job.rows), config, job_id=job.job_id, step=step)
        optimizer.param_groups[0]["lr"] = learning_rate(config, step=step, total=job.total)
        optimizer.zero_grad()
        for name, layer in layers.items():
            layer.lora_dropout["default"] = Seen(seen(job, name, layer.in_features, step))
        peft_loss(model, [job.rows[i] for i in chosen]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
    return {
        name: config.alpha / config.rank * layer.lora_B["default"].weight.data @ layer.lora_A["default"].weight.data
        for name, layer in layers.items()
    }


class Seen(torch.nn.Module):
    """Input features times 0 or 1 / (1 - p), in place of a random dropout."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask


def seen(job: TrainJob, module: str, width: int, step: int) -> torch.Tensor:
    """The features that one update of a job sees on a layer, as the engine draws them."""
    share = job.config.dropout
    generator = torch.Generator().manual_seed(stable_seed(job.config.seed, "dropout", job.job_id, str(step), module))
    return (torch.rand(width, generator=generator) >= share).double() / (1 - share)


def peft_loss(model: torch.nn.Module, rows) -> torch.Tensor:
    """No padding, all logits, mean over the update's answer tokens."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        ids = torch.tensor([row.prompt + row.answer])
        logits = model(input_ids=ids).logits[0, :-1]
        picked = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        total = total - picked[-len(row.answer) :].sum()
        tokens += len(row.answer)
    return total / tokens
