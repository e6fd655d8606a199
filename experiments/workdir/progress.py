"""A progress bar with an estimate of the time left."""

import sys
from typing import Any


def progress_bar(what: str, total: int, done: int = 0) -> Any:
    """A `tqdm.tqdm` on standard error; in a log file a line now and then.

    Arguments:
        what: is counted, by its method `update`.
        total: number of these, of which `done` were there before.

    Raises ImportError that names the extra where tqdm is not installed.
    """
    try:
        from tqdm import tqdm
    except ImportError as error:
        message = "experiments show progress with tqdm: install the extra 'experiments'"
        raise ImportError(message) from error
    interval = 0.5 if sys.stderr.isatty() else 20
    return tqdm(desc=what, total=total, initial=done, mininterval=interval, dynamic_ncols=True)
