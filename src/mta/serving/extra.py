"""What serving needs beside the package itself."""

from __future__ import annotations

from importlib.util import find_spec

from mta.errors import ConfigError

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "sqlalchemy", "alembic")


def need_serve_extra() -> None:
    """Check that the libraries of the extra `serve` are there.

    Raises:
        ConfigError: one is not.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f'serving needs {", ".join(missing)}; install them with: pip install "mta[serve]"')
