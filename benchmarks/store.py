"""What keeping people's adapters costs: bytes for each, and how many are written and read in a second.

    python benchmarks/store.py --folder DIR --out docs/results/speed/store [--users 100000]

- Bytes: from the shapes of SmolLM2-135M and Llama-3-8B, for MTA's own part (rank 4, beside a bank that all share), the
  same on q and v alone, and OPPU's adapter (rank 8), in bfloat16; a merged-only user is anchor names and weights.
- Writing and reading: adapter files with their checksums, as `mta` keeps them, at SmolLM2-135M's shape, and at a tiny
  shape for large numbers of users, where the files themselves are what costs. Reading picks 1,000 users at random.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from measuring import machine, refuse_busy, table, write
from mta.adapter_files import load_adapter, save_adapter
from mta.base_model import BaseModel, load_base_model
from mta.config import ALL_LINEAR, QUERY_VALUE
from mta.lora.adapter import Adapter, Factors

LLAMA_3_8B = {
    "q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096),
    "gate_proj": (14336, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336),
}  # fmt: skip
LLAMA_LAYERS = 32
KINDS = {"MTA, rank 4": (4, ALL_LINEAR), "MTA, rank 4, q and v": (4, QUERY_VALUE), "OPPU, rank 8": (8, ALL_LINEAR)}
READS = 1000


def adapter(base: BaseModel, rank: int, targets: tuple[str, ...]) -> Adapter:
    """Draw an adapter in bfloat16."""
    shapes = base.shapes(targets)
    return Adapter(
        {
            name: Factors(torch.randn(rank, d_in).bfloat16(), torch.randn(d_out, rank).bfloat16())
            for name, (d_out, d_in) in shapes.items()
        }
    )


def bytes_per_user(base: BaseModel) -> list[list[object]]:
    """Return a row for each kind of adapter."""
    rows: list[list[object]] = []
    for kind, (rank, targets) in KINDS.items():
        small = 2 * rank * sum(d_out + d_in for d_out, d_in in base.shapes(targets).values())
        large = 2 * rank * LLAMA_LAYERS * sum(sum(LLAMA_3_8B[target]) for target in targets)
        rows.append([kind, f"{small / 1e6:.2f} MB", f"{large / 1e6:.2f} MB"])
    return rows


def path_of(folder: Path, user: int) -> Path:
    """Spread files over folders of a thousand."""
    return folder / str(user // 1000) / f"{user}.safetensors"


def write_and_read(base: BaseModel, kind: str, users: int, folder: Path) -> dict[str, object]:
    """Write one adapter for each user, read some of them, and take everything away again."""
    rank, targets = KINDS[kind]
    one = adapter(base, rank, targets)
    shutil.rmtree(folder, ignore_errors=True)
    for start in range(0, users, 1000):
        (folder / str(start // 1000)).mkdir(parents=True)
    chosen = random.Random(0).choices(range(users), k=READS)
    try:
        written = _seconds(lambda n: save_adapter(path_of(folder, n), one, base=base, note={}), range(users))
        read = _seconds(lambda n: load_adapter(path_of(folder, n), base=base), chosen)
        size = path_of(folder, 0).stat().st_size
    finally:
        shutil.rmtree(folder)
    return {
        "base": base.name,
        "kind": kind,
        "users": users,
        "bytes": size,
        "written_per_s": round(users / written),
        "read_per_s": round(READS / read),
    }


def _seconds(work: Callable[[int], object], users: Iterable[int]) -> float:
    started = time.perf_counter()
    for user in users:
        work(user)
    return time.perf_counter() - started


def measured(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, object]]:
    """Measure the real shape with few users and the tiny one with up to as many as asked for."""
    real, tiny = load_base_model(options.base), load_base_model("tiny-random")
    for kind in KINDS:
        yield write_and_read(real, kind, options.real_users, folder)
    users = 1000
    while users <= options.users:
        for kind in ("MTA, rank 4", "OPPU, rank 8"):
            yield write_and_read(tiny, kind, users, folder)
        users *= 10


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to be measured; a folder in it is made")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--real-users", type=int, default=500)
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    parser.add_argument("--out", type=Path, help="folder")
    options = parser.parse_args()
    refuse_busy(anyway=options.anyway)
    before = machine()
    found = list(measured(options, options.folder / f"store-{os.getpid()}"))
    per_user = bytes_per_user(load_base_model(options.base))
    sizes = table(["bytes per user (bfloat16)", options.base, "Llama-3-8B"], per_user)
    rates = table(list(found[0]), [list(one.values()) for one in found])
    out = options.out / "store.json" if options.out else None
    write(out, {"measured": found, "machine": before}, f"{sizes}\n\n{rates}")


if __name__ == "__main__":
    main()
