"""Options that several commands have, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

TASK_HELP = "What is asked: lamp-1 to lamp-5; own for data of your own, own-by-id where its user ids are surely people."
Task = Annotated[str, typer.Option("--task", help=TASK_HELP)]
TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help=TASK_HELP)]
Pool = Annotated[Path, typer.Option("--pool", help="Data file of the users to build the bank from.")]
Targets = Annotated[Path, typer.Option("--targets", help="Data file of the users to serve.")]
Golds = Annotated[
    Path | None, typer.Option("--golds", help="File of the gold answers, if it is not beside the questions.")
]
BankFolder = Annotated[Path, typer.Option("--bank", help="Folder of a bank, made by `mta bank build` or `mta run`.")]
Base = Annotated[
    str, typer.Option("--base", help="Base model: a short name from `mta models`, a hub id, a folder or a .gguf file.")
]
BankBase = Annotated[str | None, typer.Option("--base", help="Base model; the bank's, by name, if not given.")]
User = Annotated[str | None, typer.Option("--user", help="Only this user of the file.")]
OneUser = Annotated[str, typer.Option("--user", help="Id of the user.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to; made if missing.")]
OutFile = Annotated[Path | None, typer.Option("--out", help="File to write as well.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: auto, cpu, cuda or cuda:1.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float64"],
    typer.Option("--dtype", help="Number format of the base model; auto is float32 on a CPU, bfloat16 on a GPU."),
]
Threads = Annotated[
    int, typer.Option("--threads", min=0, help="CPU threads; 0 chooses: 1 for tiny-random, else what torch takes.")
]
Preset = Annotated[
    Literal["paper", "released", "small", "recommended", "recommended-large"] | None,
    typer.Option(
        "--preset", help="Named settings; by default recommended below a billion parameters, else recommended-large."
    ),
]
SkipMalformed = Annotated[
    bool, typer.Option("--skip-malformed", help="Leave out records that do not fit the task, and say how many.")
]
QueriesPerUser = Annotated[
    int,
    typer.Option("--queries-per-user", min=0, help="Own data only: answered lines of each user to hold out."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every draw.")]
