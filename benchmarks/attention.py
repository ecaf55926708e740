"""Time attention in blocks against PyTorch's fused kernel on this CPU, forward and backward, at SmolLM2-135M's shape.

    python benchmarks/attention.py [--threads 1] [--repeats 9]

The two take turns; medians in milliseconds per row and layer. The ratio decides which of the two a row goes through
(see `mta.block_attention.faster_in_blocks`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mta.block_attention import attend_in_blocks
from mta.memory_at_hand import keep_freed_memory

HEADS, KEY_HEADS, WIDTH = 9, 3, 64
LENGTHS = (50, 150, 400, 768, 1024)
DTYPES = (torch.bfloat16, torch.float32)
KINDS: dict[str, Callable[..., Tensor]] = {
    "fused": partial(scaled_dot_product_attention, is_causal=True, scale=WIDTH**-0.5, enable_gqa=True),
    "blocks": partial(attend_in_blocks, scaling=WIDTH**-0.5),
}


def seconds(attend: Callable[..., Tensor], tensors: list[Tensor]) -> float:
    """Return the time of one forward and backward pass."""
    started = time.perf_counter()
    out = attend(*tensors)
    torch.autograd.grad(out, tensors, torch.ones_like(out))
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    print("| format | tokens | fused, ms | in blocks, ms | blocks / fused |\n| --- | ---: | ---: | ---: | ---: |")
    for dtype in DTYPES:
        for length in LENGTHS:
            tensors = [
                torch.randn(1, length, heads, WIDTH).to(dtype).transpose(1, 2).requires_grad_()
                for heads in (HEADS, KEY_HEADS, KEY_HEADS)
            ]
            times: dict[str, list[float]] = {name: [] for name in KINDS}
            for _ in range(options.repeats + 1):
                for name, attend in KINDS.items():
                    times[name].append(1e3 * seconds(attend, tensors))
            fused, blocks = (statistics.median(times[name][1:]) for name in ("fused", "blocks"))
            print(f"| {str(dtype)[6:]} | {length} | {fused:.1f} | {blocks:.1f} | {blocks / fused:.2f} |")


if __name__ == "__main__":
    main()
