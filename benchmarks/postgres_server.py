"""A PostgreSQL server for tests and benchmarks, in a folder of its own; it can be stopped hard and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import psycopg

from server_process import free_port

FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def missing() -> str:
    """Say why no server can be started here; "" where one can."""
    if not _binary("initdb"):
        return "no PostgreSQL server here (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and not _account():
        return "PostgreSQL does not run as root, and there is no account postgres"
    return ""


def _binary(name: str) -> str | None:
    beside = next((str(folder / name) for folder in FOLDERS if (folder / name).exists()), None)
    return beside or shutil.which(name)


def _account() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


class PostgresServer:
    """One server with one data folder, on a free port of the loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        folder.mkdir(parents=True)
        if os.geteuid() == 0 and (account := _account()):
            shutil.chown(folder, account.pw_uid, account.pw_gid)
            for parent in folder.parents:  # pytest's folders are closed to others
                if parent.stat().st_uid == 0 and parent not in (Path("/"), Path("/tmp")):
                    parent.chmod(parent.stat().st_mode | 0o011)
        self._run("initdb", "-A", "trust", "-U", "mta", "-N", "--locale=C.UTF-8")

    def _run(self, name: str, *words: str) -> None:
        binary = _binary(name)
        assert binary
        account = _account() if os.geteuid() == 0 else None
        subprocess.run(
            [binary, "-D", str(self.folder / "data"), *words],
            check=True,
            cwd=self.folder,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self._run("pg_ctl", "-l", str(self.folder / "log"), "-o", options, "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-m", mode, "-w", "stop")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://mta@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database and return its URL."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)
