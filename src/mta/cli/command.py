"""What all commands share: how they are registered, how errors become one line, what is logged.

A command is a function whose parameters are its options. `command` adds the options of a settings table, `--verbose`
and `--debug`, and turns errors into exit codes: 0 done, 1 a defect, 2 bad usage or bad input, 130 interrupted.
"""

from __future__ import annotations

import inspect
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from mta.cli.settings import Given, Setting
from mta.errors import ConfigError, MtaError

F = TypeVar("F", bound=Callable[..., None])

NOISY = ("transformers", "sentence_transformers", "huggingface_hub", "bm25s", "matplotlib", "filelock", "httpx")
QUIET_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
GIVEN = "given"
"""Name of the parameter by which a command receives the settings that were given."""

_Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Say more; -vv says everything.")
]
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def command(app: typer.Typer, name: str, *, example: str, settings: Sequence[Setting] = ()) -> Callable[[F], F]:
    """Register a function as a command.

    Args:
        app: where it goes.
        name: as it is typed.
        example: a runnable line, shown below the help.
        settings: config fields that become options; the function receives those given as `given`.
    """

    def register(function: F) -> F:
        app.command(name, epilog=f"Example:  {_plain_markup(example)}")(_runner(function, settings))
        return function

    return register


def _plain_markup(text: str) -> str:
    return text.replace("[", "\\[")


def _runner(function: Callable[..., None], settings: Sequence[Setting]) -> Callable[..., None]:
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != GIVEN]
    only = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter("verbose", only, annotation=_Verbose, default=0),
        inspect.Parameter("debug", only, annotation=_Debug, default=False),
    ]
    parameters = [*(p.replace(kind=only) for p in own), *(setting.parameter() for setting in settings), *shared]

    def run(**values: Any) -> None:
        verbose, debug = values.pop("verbose"), values.pop("debug")
        with _errors_as_exit_codes(debug=debug), _quiet(verbose):
            if settings:
                values[GIVEN] = Given({setting: values.pop(setting.name) for setting in settings})
            _refuse_own_input(values)
            function(**values)

    run.__doc__ = _plain_markup(inspect.getdoc(function) or "")
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _refuse_own_input(values: Mapping[str, Any]) -> None:
    """Refuse to write over a file that the same call reads."""
    out = values.get("out")
    for name, value in values.items():
        read = value if isinstance(value, list | tuple) else [value]
        if name != "out" and isinstance(out, Path) and any(isinstance(one, Path) and _same(one, out) for one in read):
            raise ConfigError(f"--out is {out}, which this call reads as {name.replace('_', '-')}; name another path")


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


@contextmanager
def _errors_as_exit_codes(*, debug: bool) -> Iterator[None]:
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except MtaError as error:
        _fail(f"error: {error}", 2, debug=debug)
    except KeyboardInterrupt:
        _fail("interrupted; finished parts are kept, and the same command goes on from there", 130, debug=debug)
    except Exception as error:
        what = f"unexpected error: {type(error).__name__}: {error}"
        _fail(f"{what}; this is a defect, please report it with the output of --debug", 1, debug=debug)


def _fail(message: str, code: int, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    typer.echo(" ".join(message.split()).encode("utf-8", "replace").decode(), err=True)
    raise typer.Exit(code) from None


class _EchoHandler(logging.Handler):
    """Writes log lines to whatever standard error is at that moment, progress bars included."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        typer.echo(f"{record.levelname.lower()}: {record.getMessage()}", err=True)


@contextmanager
def _quiet(verbose: int) -> Iterator[None]:
    """Log this package as asked, and keep the libraries beneath it silent."""
    _set_missing(os.environ, QUIET_ENVIRONMENT)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING if verbose > 1 else logging.ERROR)
    logger = logging.getLogger("mta")
    level, handlers = logger.level, logger.handlers[:]
    logger.setLevel(LEVELS[min(verbose, len(LEVELS) - 1)])
    logger.handlers[:] = [_EchoHandler()]
    try:
        with warnings.catch_warnings():
            if verbose < len(LEVELS) - 1:
                warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def _set_missing(target: Any, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        target.setdefault(name, value)
