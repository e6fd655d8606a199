"""The error of the data readers."""

from pathlib import Path

from tdjax.files import open_regular


class DataError(ValueError):
    """A data set's file is missing or damaged; the message says what was expected, and where."""


def data_error(file: str | Path, problem: str, home: str) -> DataError:
    """Return the `DataError` that says what is wrong with `file` and where its set is published."""
    return DataError(f"{file}: {problem}. The data set is published at {home}")


def read_bytes(path: Path, home: str, most: int) -> bytes:
    """Return the bytes of the file at `path`, `most` of them at most.

    Raises `DataError` if it cannot be read, has more, or is no regular file.
    """
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
    except OSError as error:
        raise data_error(path, f"cannot be read ({error.strerror or error})", home) from error
    if len(content) > most:
        raise data_error(path, f"has more than {most:,} bytes, which no published one has", home)
    return content
