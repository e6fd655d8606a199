"""A small language model by others' low rank and by tdjax: `python -m benchmarks.language`.

A transformer in the form of GPT-2 learns to predict the next byte of the modules of Python's
standard library, and is compressed to shares of the matrices of its blocks by pieces of these
modules, without fine-tuning. It is judged on other modules: perplexity, which is the exponential of
the mean cross entropy of the next byte, and the share of bytes that it finds likeliest.

    python -m benchmarks.language --weights=language.npz --records=language.jsonl

With `--weights=FILE` the network is trained once, with `--records=FILE` each run is written as it
ends; what the files hold is not made again. "Kronecker" and what is below it weigh outputs by the
loss of labels that the network itself draws; "loss in NNX" is "loss" with the same network in NNX;
what is "in bytes" or "int8 alone" takes as many bytes as the others do in float32. Seconds are
those of the row alone; what rows share counts for the first that needs it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from absl import app, flags

from benchmarks.transformers import command
from benchmarks.transformers.library_bytes import batches, drawn_windows, read_texts
from benchmarks.transformers.models import LanguageModel
from benchmarks.transformers.nnx_models import twin_of
from benchmarks.transformers.runs import EVERY, IN_NNX
from benchmarks.transformers.settings import PERPLEXITY
from benchmarks.transformers.task import Classified
from benchmarks.transformers.training import trained

WEIGHTS = flags.DEFINE_string("weights", None, "File of the trained network, read or written.")
LIBRARY = flags.DEFINE_string("library", None, "Folder of modules, in place of Python's own.")
FEATURES = flags.DEFINE_integer("features", 128, "Width of the tokens.", lower_bound=4)
DEPTH = flags.DEFINE_integer("depth", 4, "Number of blocks.", lower_bound=1)
CONTEXT = flags.DEFINE_integer("context", 128, "Bytes of a piece of text.", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 2000, "Of training, 32 pieces each.", lower_bound=1)
PIECES = flags.DEFINE_integer("pieces", 256, "Of text, for calibration.", lower_bound=1)
JUDGES = flags.DEFINE_integer("judges", 512, "Pieces of text that judge.", lower_bound=1)

BATCH, RATE = 32, 4e-3


def task_of(seed: int) -> Classified:
    """The network, trained where it is not, and its texts."""
    texts, length = read_texts(seed, LIBRARY.value), CONTEXT.value
    seen = drawn_windows(texts.seen, length, PIECES.value, seed)
    held_out = drawn_windows(texts.held_out, length, JUDGES.value, seed)
    model = LanguageModel(FEATURES.value, DEPTH.value, places=length)
    path = None if WEIGHTS.value is None else Path(WEIGHTS.value)
    drawn = partial(batches, texts.seen, length, size=BATCH, seed=seed)
    variables = trained(model, drawn, STEPS.value, RATE, path)
    return Classified(model, variables, seen, held_out, twin_of(model, variables))


def main(_: list[str]) -> None:
    """Measure what is missing, and print a row for each method and share."""
    command.of_small_network(task_of, PERPLEXITY, (*EVERY, IN_NNX))


if __name__ == "__main__":
    app.run(main)
