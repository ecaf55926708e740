"""Runs on file systems that are too small for them."""

from __future__ import annotations

import shutil
import subprocess
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from fault_lives import LONGEST_LIFE_S, REFUSED, Violation, last_told, require_same, require_whole, result_of, start

SMALL_DISKS_KIB = (40, 120, 200, 300, 400, 600)


def full_disks(processes: ForkServerContext, work: Path, wanted: dict[str, Any], count: int) -> dict[str, Any]:
    """Run where there is no room, then make room and run on; takes the `count` smallest disks."""
    place = work / "small disk"
    place.mkdir()
    full = went_on = 0
    sizes = SMALL_DISKS_KIB[:count]
    for kilobytes in sizes:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(command).returncode:
            return {"skipped": "no file system can be mounted here; it takes root"}
        try:
            was_full = fills_up(processes, place / "run", f"a disk of {kilobytes} KiB")
            subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
            child, _ = start(processes, place / "run")
            child.join(LONGEST_LIFE_S)
            if child.exitcode != 0:
                raise Violation(f"with room again the run ended with exit code {child.exitcode}")
            require_same(result_of(place / "run"), wanted, f"after a full disk of {kilobytes} KiB")
            full, went_on = full + was_full, went_on + was_full
        finally:
            subprocess.run(["umount", place], check=True)
    if not full:
        raise Violation(f"no disk was full, not even one of {SMALL_DISKS_KIB[0]} KiB")
    return {"disks": len(sizes), "runs that met a full disk": full, "runs that went on with room": went_on}


def fills_up(processes: ForkServerContext, folder: Path, where: str) -> bool:
    """Start a run on a small disk; return whether the disk was full."""
    child, stages = start(processes, folder)
    child.join(LONGEST_LIFE_S)
    if folder.exists():
        require_whole(folder, f"on {where}")
    if child.exitcode == 0:
        return False
    told = last_told(stages)
    if child.exitcode != REFUSED or "No space left" not in told:
        raise Violation(f"on {where} a run ended with exit code {child.exitcode} ({told})")
    return True
