"""A small vision transformer compressed in many ways: `python -m benchmarks.digits_transformer`.

It is trained on the digits that scikit-learn holds, compressed by those of its training to shares
of the matrices of its blocks, without fine-tuning, and judged on others: accuracy and cross
entropy. Rows, `--records` and `--weights` are those of `benchmarks.language`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from sklearn.datasets import load_digits

from benchmarks.transformers import command
from benchmarks.transformers.models import DigitsTransformer
from benchmarks.transformers.runs import EVERY
from benchmarks.transformers.settings import ACCURACY
from benchmarks.transformers.task import Classified
from benchmarks.transformers.training import trained

WEIGHTS = flags.DEFINE_string("vit_weights", None, "File of the trained network, read or written.")
STEPS = flags.DEFINE_integer("vit_steps", 1000, "Of training, 64 digits each.", lower_bound=1)

TRAINED, BATCH, RATE = 1257, 64, 2e-3


def task_of(seed: int) -> Classified:
    """The network, trained where it is not, and the digits."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = (digits.images[order] / 16).astype(np.float32)[..., None]
    labels = digits.target[order].astype(np.int32)
    seen = images[:TRAINED], labels[:TRAINED]

    def drawn(number: int) -> Iterator[tuple[Any, Any]]:
        chosen = np.random.default_rng(seed)
        for _ in range(number):
            rows = chosen.choice(TRAINED, BATCH, replace=False)
            yield seen[0][rows], seen[1][rows]

    model = DigitsTransformer()
    path = None if WEIGHTS.value is None else Path(WEIGHTS.value)
    variables = trained(model, drawn, STEPS.value, RATE, path)
    return Classified(model, variables, seen, (images[TRAINED:], labels[TRAINED:]))


def main(_: list[str]) -> None:
    """Measure what is missing, and print a row for each method and share."""
    command.of_small_network(task_of, ACCURACY, EVERY)


if __name__ == "__main__":
    app.run(main)
