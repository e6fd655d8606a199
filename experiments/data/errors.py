"""The error of the data readers."""

from pathlib import Path


class DataError(ValueError):
    """A data set's file is missing or damaged; the message says what was expected, and where."""


def data_error(file: str | Path, problem: str, home: str) -> DataError:
    """Return the `DataError` that says what is wrong with `file` and where its set is published."""
    return DataError(f"{file}: {problem}. The data set is published at {home}")


def read_bytes(path: Path, home: str) -> bytes:
    """Return the bytes of the file at `path`; raises `DataError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise data_error(path, f"cannot be read ({error.strerror or error})", home) from error
