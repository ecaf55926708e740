"""What scripts that train and ask on real users are called with, and how they begin."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from mta.base_model import BaseModel, load_base_model
from mta.memory_at_hand import keep_freed_memory
from mta.runtime import limit_threads


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all of them have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with LaMP_1 to LaMP_5")
    parser.add_argument("--task", required=True)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder for runs, which hold people's texts")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def begin(options: argparse.Namespace) -> BaseModel:
    """Set up the process and load the base model."""
    logging.basicConfig(level=logging.WARNING)
    if options.threads:
        limit_threads(options.threads)
    keep_freed_memory()
    return load_base_model(options.base, dtype=options.dtype)
