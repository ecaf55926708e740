"""Mixed-user batches answer what each user alone answers; label scores equal separate rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

from helpers import random_adapter, random_rows, tiny_base
from mta import generation
from mta.base_model import BaseModel, wrap_model
from mta.config import ALL_LINEAR, QUERY_VALUE, EngineConfig
from mta.errors import AdapterError
from mta.generation import Mixture, Request, answer_and_score, generate, prefill, routed, score_answers
from mta.kv_cache import RoomyCache
from mta.lora.adapter import Adapter, Factors
from mta.packing import TokenRow, left_pad
from mta.tiny_model import byte_tokenizer, tiny_llama

TOGETHER = EngineConfig(predict_tokens_per_batch=400)
ALONE = EngineConfig(predict_tokens_per_batch=1)


def mixed_requests(base) -> list[Request]:
    adapters = [
        None,
        random_adapter(base, ALL_LINEAR, seed=1, rank=4, size=0.3),
        random_adapter(base, ALL_LINEAR, seed=2, rank=20, size=0.3),
        random_adapter(base, QUERY_VALUE, seed=3, rank=2, size=0.5),
    ]
    return [Request(row, adapters[index % 4]) for index, row in enumerate(random_rows(11, 12))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixed_batch_generates_what_each_user_alone_generates(dtype):
    base = tiny_base(dtype)
    requests = mixed_requests(base)
    together = generate(base, requests, max_new_tokens=8, engine=TOGETHER)
    alone = [generate(base, [request], max_new_tokens=8, engine=ALONE)[0] for request in requests]
    assert together == alone
    assert len(set(together)) > 6, "different people should answer differently here"


def test_prompts_are_read_in_parts_of_like_length_and_leave_what_one_pass_leaves(monkeypatch):
    base = tiny_base()
    requests = [*mixed_requests(base), Request(TokenRow((7,), ()))]  # of the last one nothing is read ahead
    prompts = left_pad([request.row.prompt for request in requests], pad_id=base.pad_id, device="cpu")

    def read(tokens: int) -> tuple[RoomyCache, list[list[int]]]:
        taken = []
        monkeypatch.setattr(generation, "PART_TOKENS", tokens)
        with torch.no_grad(), routed(base, [request.adapter for request in requests]) as take:
            cache = prefill(base, prompts, room=4, take=lambda rows: (taken.append(list(rows)), take(rows)))
        return cache, taken

    parts, of_parts = read(40)
    monkeypatch.setattr(generation, "padding_left_out_on", lambda device: False)  # as on a GPU: the model's own mask
    whole, of_one = read(40)
    assert len(of_one) == 2
    assert len(of_parts) > 4
    assert of_parts[-1] == list(range(len(requests))), "all rows go on"
    assert sorted(row for rows in of_parts[:-1] for row in rows) == of_parts[-1]
    for mine, theirs in zip(parts.layers, whole.layers, strict=True):
        assert mine.keys.shape[2] == prompts.input_ids.shape[1] - 1
        for one, other in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
            for row, length in enumerate(prompts.lengths):
                own = slice(one.shape[2] - length + 1, None)
                assert torch.allclose(one[row, :, own], other[row, :, own], rtol=0, atol=1e-10)
                assert length < 3 or bool(one[row, :, own].any())


def test_an_adapter_changes_the_answer_and_the_base_row_stays_bare():
    base = tiny_base()
    row = random_rows(1, 1)[0]
    adapter = random_adapter(base, ALL_LINEAR, seed=1, size=0.5)
    bare = generate(base, [Request(row)], max_new_tokens=6, engine=ALONE)
    both = generate(base, [Request(row, adapter), Request(row)], max_new_tokens=6, engine=TOGETHER)
    assert both[1] == bare[0]
    assert both[0] != both[1]


def test_candidates_at_other_temperatures_are_those_of_divided_logits():
    """One row at a time by the model itself, adapters in its weights."""
    base = tiny_base()
    adapter = random_adapter(base, ALL_LINEAR, seed=3, rank=2)
    rows = random_rows(5, 3)
    found = answer_and_score(
        base,
        [Request(row, adapter) for row in rows],
        [[row.answer, (7, 9)] for row in rows],
        max_new_tokens=2,
        engine=TOGETHER,
        temperatures=(0.5, 2.0),
    )
    model = copy.deepcopy(base.model)
    for module in adapter.modules:
        model.get_submodule(module).weight.data += adapter.delta(module)
    for row, answered in zip(rows, found, strict=True):
        for place, temperature in enumerate((1.0, 0.5, 2.0)):
            for number, tokens in enumerate((row.answer, (7, 9))):
                logits = model(input_ids=torch.tensor([row.prompt + tuple(tokens)])).logits[0] / temperature
                picked = logits[len(row.prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
                wanted = answered.scores if place == 0 else answered.tempered[place - 1]
                assert float(wanted[number]) == pytest.approx(float(picked.sum().detach()), abs=1e-9)


def test_score_answers_is_the_same_in_any_batch():
    base = tiny_base()
    requests = mixed_requests(base)
    together = score_answers(base, requests, engine=TOGETHER)
    alone = [score_answers(base, [request], engine=ALONE)[0] for request in requests]
    assert together == pytest.approx(alone, abs=1e-11)


def test_label_scores_equal_scoring_each_label_as_its_own_row():
    base = tiny_base()
    requests = mixed_requests(base)
    labels = [(40, 41, 1), (40, 1), (99, 98, 97, 1), (41, 1)]
    answered = answer_and_score(base, requests, [labels] * len(requests), max_new_tokens=2, engine=TOGETHER)
    for index, request in enumerate(requests):
        for column, label in enumerate(labels):
            row = TokenRow(request.row.prompt, label)
            (expected,) = score_answers(base, [Request(row, request.adapter)], engine=ALONE)
            assert float(answered[index].scores[column]) == pytest.approx(-expected, abs=1e-10)


def test_adapter_of_another_base_model_is_refused():
    base, other = tiny_base(), tiny_base(width=64)
    adapter = random_adapter(other, ALL_LINEAR, seed=1)
    with pytest.raises(AdapterError, match="use the base model it was trained on"):
        generate(base, [Request(random_rows(1, 1)[0], adapter)], max_new_tokens=2, engine=ALONE)
    unknown = Adapter({"model.layers.7.self_attn.q_proj": Factors(torch.zeros(2, 32), torch.zeros(32, 2))})
    with pytest.raises(AdapterError, match="does not have"):
        generate(base, [Request(random_rows(1, 1)[0], unknown)], max_new_tokens=2, engine=ALONE)


def test_generation_is_greedy_whatever_the_model_was_released_with():
    plain, opinionated = tiny_llama().double(), tiny_llama().double()
    opinionated.generation_config = GenerationConfig(
        do_sample=True, temperature=3.0, repetition_penalty=1.8, no_repeat_ngram_size=1, max_length=3, eos_token_id=1
    )
    requests = [Request(row) for row in random_rows(4, 6)]
    answers = [
        generate(wrap_model(model, byte_tokenizer(), name="m"), requests, max_new_tokens=12, engine=TOGETHER)
        for model in (plain, opinionated)
    ]
    assert answers[0] == answers[1]


def test_an_answer_ends_with_any_token_the_model_was_released_to_end_with():
    base = tiny_base()
    (request,) = [Request(row) for row in random_rows(4, 1)]
    (text,) = generate(base, [request], max_new_tokens=8, engine=ALONE)
    third = base.tokens.tokenizer(text, add_special_tokens=False).input_ids[2]
    model = tiny_llama().double()
    model.generation_config.eos_token_id = [third]
    ended = wrap_model(model, byte_tokenizer(), name="m")
    assert set(ended.end_ids) == {base.tokens.end_id, third}
    (short,) = generate(ended, [request], max_new_tokens=8, engine=ALONE)
    assert text.startswith(short)
    assert len(base.tokens.tokenizer(short, add_special_tokens=False).input_ids) <= 2


def test_answering_and_scoring_together_is_answering_and_scoring_apart():
    base = tiny_base()
    requests = mixed_requests(base)
    golds = [[request.row.answer] for request in requests]
    assert len({len(gold) for (gold,) in golds}) > 1, "answers of several lengths share a batch"
    seen: list[int] = []
    answered = answer_and_score(base, requests, golds, max_new_tokens=8, engine=TOGETHER, on_progress=seen.append)
    assert [one.text for one in answered] == generate(base, requests, max_new_tokens=8, engine=TOGETHER)
    wanted = score_answers(base, requests, engine=ALONE)
    assert [-float(score) for one in answered for score in one.scores] == pytest.approx(wanted, abs=1e-11)
    assert seen[-1] == len(requests)
    assert len(seen) > 1


def test_scores_of_a_model_with_sliding_windows_are_those_of_separate_rows():
    text = Gemma3TextConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    torch.manual_seed(0)
    base = wrap_model(Gemma3ForCausalLM(text).double(), byte_tokenizer(), name="gemma")
    requests = [Request(row) for row in random_rows(11, 6)]
    assert max(len(request.row.prompt) for request in requests) > 4, "longer than the window"
    labels = [(40, 41, 1), (40, 1), (99, 98, 97, 1)]
    answered = answer_and_score(base, requests, [labels] * 6, max_new_tokens=6, engine=TOGETHER)
    for request, one in zip(requests, answered, strict=True):
        for label, score in zip(labels, one.scores, strict=True):
            (wanted,) = score_answers(base, [Request(TokenRow(request.row.prompt, label))], engine=ALONE)
            assert float(score) == pytest.approx(-wanted, abs=1e-10)
        prompt = torch.tensor([request.row.prompt])
        with torch.no_grad():
            made = base.model.generate(input_ids=prompt, max_new_tokens=6, pad_token_id=base.pad_id)[
                0, prompt.shape[1] :
            ]
        assert one.text == base.tokens.decode([token for token in made.tolist() if token not in base.end_ids])


def test_a_repetition_penalty_does_not_see_the_padding_of_a_batch():
    base = tiny_base()
    requests = mixed_requests(base)
    golds = [[request.row.answer] for request in requests]

    def texts(some: slice, **more: float) -> list[str]:
        made = answer_and_score(base, requests[some], golds[some], max_new_tokens=8, engine=TOGETHER, **more)
        return [one.text for one in made]

    penalized = texts(slice(None), repetition_penalty=1.5)
    assert penalized != texts(slice(None))
    assert penalized == [texts(slice(place, place + 1), repetition_penalty=1.5)[0] for place in range(len(requests))]


def in_weights(base: BaseModel, adapter: Adapter | None) -> torch.nn.Module:
    """Return a copy of the model with an adapter in its weights."""
    model = copy.deepcopy(base.model)
    for module in adapter.modules if adapter else ():
        model.get_submodule(module).weight.data += adapter.delta(module)
    return model


def mixed_by_hand(base: BaseModel, mixture: Mixture, begun: Sequence[int], temperature: float) -> torch.Tensor:
    """Return (V,) probabilities of what comes after `begun`, each way's prompt read by itself."""
    parts = []
    for share, request in zip(mixture.shares, mixture.requests, strict=True):
        model = in_weights(base, request.adapter)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*request.row.prompt, *begun]])).logits[0, -1]
        parts.append(share * (logits / temperature).softmax(-1))
    return torch.stack(parts).sum(dim=0)


def test_a_mixture_averages_the_next_tokens_of_its_ways():
    """Ways with prompts of several lengths and other adapters, beside single requests in the same batch."""
    base = tiny_base()
    rows = random_rows(6, 8)
    adapters = [None, *(random_adapter(base, ALL_LINEAR, seed=seed, rank=2, size=0.6) for seed in range(3))]
    ways = [Request(row, adapter) for row, adapter in zip(rows, adapters * 2, strict=True)]
    assert len({len(row.prompt) for row in rows}) > 2
    questions = [
        Mixture((ways[0], ways[1], ways[5]), (0.2, 0.5, 0.3)),
        ways[4],
        Mixture((ways[2], ways[3]), (0.6, 0.4)),
    ]
    labels = [(40, 41, 1), (99, 1)]
    found = answer_and_score(base, questions, [labels] * 3, max_new_tokens=5, engine=TOGETHER, temperatures=(2.0,))
    for question, answered in zip(questions, found, strict=True):
        mixture = question if isinstance(question, Mixture) else Mixture((question,), (1.0,))
        for temperature, scores in ((1.0, answered.scores), (2.0, answered.tempered[0])):
            for label, score in zip(labels, scores, strict=True):
                parts = [
                    float(mixed_by_hand(base, mixture, label[:place], temperature)[token])
                    for place, token in enumerate(label)
                ]
                assert float(score) == pytest.approx(sum(map(math.log, parts)), abs=1e-9)
        begun: list[int] = []
        while len(begun) < 5 and not set(begun) & set(base.end_ids):
            begun.append(int(mixed_by_hand(base, mixture, begun, 1.0).argmax()))
        assert answered.text == base.tokens.decode([token for token in begun if token not in base.end_ids])
    assert [one.text for one in found] == generate(base, questions, max_new_tokens=5, engine=TOGETHER)
    alone = [answer_and_score(base, [one], [labels], max_new_tokens=5, engine=ALONE)[0] for one in questions]
    for one, other in zip(found, alone, strict=True):
        assert one.text == other.text
        assert torch.allclose(one.scores, other.scores, rtol=0, atol=1e-9)
