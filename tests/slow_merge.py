"""What a user's own examples cost under merged anchors: in a copy of the model whose weights hold the sum."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from mta.bank import Bank
from mta.base_model import BaseModel
from mta.lora.adapter import Adapter
from mta.packing import TokenRow


def nats_under(
    base: BaseModel, bank: Bank, anchor_ids: Sequence[str], weights: Sequence[float], own: Sequence[TokenRow]
) -> float:
    """Summed negative log-likelihood of the examples' answers; what lies beneath the bank's anchors counts too."""
    model = copy.deepcopy(base.model)

    def add(adapter: Adapter, weight: float) -> None:
        for module, factors in adapter.modules.items():
            model.get_submodule(module).weight.data += weight * factors.B @ factors.A

    for name, weight in zip(anchor_ids, weights, strict=True):
        add(bank.adapter(name), weight)
    if bank.population:
        add(bank.population, 1.0)
    nats = 0.0
    for row in own:
        logits = model(input_ids=torch.tensor([row.prompt + row.answer])).logits[0].log_softmax(-1)
        places = range(len(row.prompt) - 1, len(row) - 1)
        nats -= sum(float(logits[place, token]) for place, token in zip(places, row.answer, strict=True))
    return nats
