"""Attention in blocks against PyTorch's own, in fp64 to rounding and in bfloat16 to that format's precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from helpers import tiny_base
from mta.block_attention import BLOCK, LONGEST, attend_in_blocks, faster_in_blocks
from mta.forward import answer_nll
from mta.packing import TokenRow, pack_rows
from mta.row_attention import attend_within_rows


def query_key_value(length: int, *, dtype: torch.dtype, heads: int = 6, key_heads: int = 2) -> list[Tensor]:
    """Draw (1, heads, T, 8) tensors in the strided layout that models hand over."""
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(1, length, count, 8, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2)
        for count in (heads, key_heads, key_heads)
    ]


def result_and_gradients(attend, tensors: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = attend(*leaves)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, seed)]


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)


def in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend_in_blocks(q, k, v, scaling=0.3)


@pytest.mark.parametrize("length", [1, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_blocks_give_what_the_fused_kernel_gives(length, key_heads):
    tensors = query_key_value(length, dtype=torch.float64, key_heads=key_heads)
    wanted = result_and_gradients(fused, tensors)
    for mine, theirs in zip(result_and_gradients(in_blocks, tensors), wanted, strict=True):
        assert mine.shape == theirs.shape
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (BLOCK + 1, BLOCK + 40), (3, 2 * BLOCK + 3)])
def test_the_last_tokens_of_a_row_see_all_before_them(queries: int, keys: int) -> None:
    q, k, v = query_key_value(keys, dtype=torch.float64)
    tensors = [q[:, :, -queries:], k, v]
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)

    wanted = result_and_gradients(masked, tensors)
    for mine, theirs in zip(result_and_gradients(in_blocks, tensors), wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_bfloat16_is_as_near_to_the_truth_as_the_format_allows():
    exact = query_key_value(200, dtype=torch.bfloat16)
    wanted = result_and_gradients(fused, [tensor.double() for tensor in exact])
    for mine, truth in zip(result_and_gradients(in_blocks, exact), wanted, strict=True):
        assert (mine.double() - truth).abs().max() < 0.02 * truth.abs().max()


@pytest.mark.parametrize(
    ("dtype", "length", "trained", "wanted"),
    [
        (torch.bfloat16, 5, False, True),
        (torch.bfloat16, LONGEST, True, True),
        (torch.bfloat16, LONGEST + 1, True, False),
        (torch.float32, BLOCK, True, True),
        (torch.float32, BLOCK - 1, True, False),
        (torch.float32, BLOCK, False, False),
        (torch.float64, BLOCK, True, False),
    ],
)
def test_which_rows_go_in_blocks(dtype, length, trained, wanted):
    query = torch.empty(1, 1, length, 4, dtype=dtype, requires_grad=trained)
    assert faster_in_blocks(query, query) == wanted
    assert not faster_in_blocks(query.to("meta"), query.to("meta"))
    assert not faster_in_blocks(query, query.new_empty(1, 1, LONGEST + 1, 4)), "the keys decide what is too long"


@pytest.mark.parametrize(("dtype", "blocks_kept"), [(torch.bfloat16, 2), (torch.float32, 0)])
def test_weights_are_kept_for_the_way_back_in_bfloat16_only(dtype: torch.dtype, blocks_kept: int) -> None:
    tensors = [tensor.requires_grad_() for tensor in query_key_value(BLOCK + 5, dtype=dtype)]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        in_blocks(*tensors)
    assert len(kept) == len(("q", "k", "v")) + blocks_kept


def test_rows_in_blocks_stay_apart_and_use_the_models_scale():
    """Two rows in one sequence, with and without a scale of the model's own, against each row by the fused kernel."""
    lengths = [BLOCK + 3, 40]
    tensors = query_key_value(sum(lengths), dtype=torch.bfloat16)
    for scale in (None, 0.3):
        both, _ = attend_within_rows(
            torch.nn.Module(), *tensors, None, segment_lengths=lengths, segments_before=[None, None], scaling=scale
        )
        rows = zip(*(tensor.float().split(lengths, dim=2) for tensor in tensors), strict=True)
        wanted = [scaled_dot_product_attention(*row, is_causal=True, scale=scale, enable_gqa=True) for row in rows]
        assert (both.float() - torch.cat(wanted, dim=2).transpose(1, 2)).abs().max() < 0.05


def test_a_model_trains_through_blocks_as_through_its_own_attention():
    """Losses of packed rows, one long enough for blocks, and their gradients, against the model's own forward pass."""
    base = tiny_base(torch.float32)
    rows = [TokenRow(tuple(range(3, 3 + length)), (7, 8, 1)) for length in (BLOCK + 40, 20)]
    rows.append(TokenRow(rows[0].prompt[:20] + rows[0].prompt[30:], (9, 1)))
    weight = base.model.get_submodule("model.layers.0.self_attn.q_proj").weight.requires_grad_()
    pack = pack_rows(rows, device="cpu", adapters=["one"] * 3)
    assert pack.lengths[0] == 19, "a beginning is shared"
    mine = answer_nll(base, pack)
    (gradient,) = torch.autograd.grad(mine.sum(), weight)
    theirs = []
    for row in rows:
        logits = base.model(input_ids=torch.tensor([row.prompt + row.answer])).logits[0, -1 - len(row.answer) : -1]
        theirs.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer), reduction="sum"))
    (wanted,) = torch.autograd.grad(sum(theirs), weight)
    assert torch.allclose(mine, torch.stack(theirs), rtol=0, atol=1e-5)
    assert torch.allclose(gradient, wanted, rtol=0, atol=1e-6)
    assert float(wanted.abs().max()) > 1e-4
