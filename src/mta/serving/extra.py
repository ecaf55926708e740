"""What serving needs beside the package itself."""

from __future__ import annotations

from importlib.util import find_spec

from mta.errors import ConfigError

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "sqlalchemy", "alembic")
OF_THE_PAGE = ("gradio", "pandas")


def need_serve_extra(*, playground: bool = False) -> None:
    """Check that the libraries of the extra `serve` are there, with those of the page at / if it is wanted.

    Raises:
        ConfigError: one is not.
    """
    missing = [name for name in (*NEEDED, *(OF_THE_PAGE if playground else ())) if find_spec(name) is None]
    if missing:
        raise ConfigError(f'serving needs {", ".join(missing)}; install them with: pip install "mta[serve]"')
