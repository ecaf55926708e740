"""The exception tree of the package.

    MtaError
    ├── ConfigError   (also ValueError)   settings that contradict each other or do not exist
    ├── DataError     (also ValueError)   a data file or record that cannot be used
    ├── BankError     (also ValueError)   a bank that is damaged or belongs to another base model
    ├── AdapterError  (also ValueError)   adapters that do not fit together or to the model
    ├── ModelError    (also ValueError)   a base model or encoder that cannot be loaded or used
    ├── StorageError  (also OSError)      a file, folder or database that cannot be read or written
    ├── Conflict      (also ValueError)   something that is there already, in another form
    └── NotFound      (also KeyError)     a name that is not there; the message lists those that are

Every message says what was asked, what was found, what was wanted, and the next step. The command
line turns any of them into one line and exit code 2, and never prints a traceback for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class MtaError(Exception):
    """Base of every error this package raises on purpose."""

    def __str__(self) -> str:  # KeyError would show its message in quotes
        return str(self.args[0]) if self.args else ""


class ConfigError(MtaError, ValueError):
    """Settings that contradict each other or are out of range."""


class DataError(MtaError, ValueError):
    """A data file or a record in it that cannot be used."""


class BankError(MtaError, ValueError):
    """A bank directory that is damaged, incomplete or built for another base model."""


class AdapterError(MtaError, ValueError):
    """Adapters that do not fit together, or do not fit the model."""


class ModelError(MtaError, ValueError):
    """A base model or encoder that cannot be loaded or used."""


class StorageError(MtaError, OSError):
    """A file, folder or database that cannot be read or written."""


class Conflict(MtaError, ValueError):
    """Something that is there already, or in another form."""


class NotFound(MtaError, KeyError):
    """A name that does not exist; the message lists the names that do."""


def unknown_name(what: str, got: str, known: Iterable[str]) -> NotFound:
    """Build the error for a name that is not among `known`; the list comes from the caller's own table."""
    names = sorted(known)
    close = get_close_matches(got, names, n=1, cutoff=0.85)
    hint = f"did you mean {close[0]}? " if close else ""
    return NotFound(f"unknown {what} {got!r}; {hint}known: {', '.join(names)}")
