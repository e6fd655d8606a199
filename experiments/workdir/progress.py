"""A progress bar with an estimate of the time left."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """Counts what is done of a long work, on standard error.

    In a terminal a bar that moves; in a log file a line now and then.

    Raises ImportError that names the extra where tqdm is not installed.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        """`what` is counted; `done` of `total` were there before."""
        try:
            from tqdm import tqdm
        except ImportError as error:
            message = "experiments show progress with tqdm: install the extra 'experiments'"
            raise ImportError(message) from error
        self._bar: Any = tqdm(
            desc=what,
            total=total,
            initial=done,
            mininterval=0.5 if sys.stderr.isatty() else 20,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Progress:
        """The bar itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last state on the screen."""
        self._bar.close()

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._bar.update(count)
