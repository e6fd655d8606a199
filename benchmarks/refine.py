"""What refinement gains on trained networks: `python -m benchmarks.refine --data=FOLDER ...`.

A network for CIFAR-10 is compressed to several budgets from a few unlabelled training images, and
refined on these: test accuracy before and after, seconds, and beside it fine-tuning with labels. A
ResNet-20 comes from a file:

    python -m benchmarks.refine --weights=resnet20.npz --data=cifar-10-batches-bin --subsets=0,1,2

A thin VGG-16 and a small transformer, on which nothing here was tuned, are trained first, for a few
epochs over all training images, and kept as files in a folder:

    python -m benchmarks.refine --network=vit --trained=FOLDER --data=cifar-10-batches-bin

With `--records=FILE` each run is written as it ends, and what the file holds is not measured again:
after a kill the same command goes on, and prints the table at once where nothing is missing. A run
is known by its settings, the weights and the test images, not by the version of the library.

Fine-tuning (`--labels`) is given what refinement has: the same compressed network with balanced
factors, images, epochs, batches, augmentation, Adam with a warm-up and half a cosine, and batch
statistics that stay. Beyond that it trains all parameters on all of the images, where refinement
holds out a tenth and leaves dense kernels as they are, and the table has the best of its rates
(`--label_rates`) for each subset, chosen by the test images themselves.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from absl import app, flags

from benchmarks.refinement.networks import MODELS, network_of
from benchmarks.refinement.records import read_records
from benchmarks.refinement.runs import Asked, measure
from benchmarks.refinement.table import table_of
from benchmarks.refinement.tasks import METHODS, Task
from benchmarks.timing import describe_machine
from experiments.data.cifar import read_cifar10

NETWORK = flags.DEFINE_enum("network", "resnet20", list(MODELS), "What is compressed.")
WEIGHTS = flags.DEFINE_string("weights", None, "npz file of the trained network.")
TRAINED = flags.DEFINE_string("trained", None, "Folder of networks that are trained here.")
DATA = flags.DEFINE_string("data", None, "Folder of CIFAR-10.")
RECORDS = flags.DEFINE_string("records", None, "File of JSON lines to go on from and add to.")
MEASURE = flags.DEFINE_bool("measure", True, "Else the table is of what is recorded so far.")
BUDGETS = flags.DEFINE_list("budgets", ["0.5", "0.3", "0.2"], "Shares of the parameters kept.")
IMAGES = flags.DEFINE_integer("images", 2000, "For calibration, without labels.", lower_bound=1)
SUBSETS = flags.DEFINE_list("subsets", ["0"], "Seeds of the choice of these images.")
PLAN = flags.DEFINE_enum("plan", "loss", list(METHODS), "How ranks are chosen.")
SOFT = flags.DEFINE_float(
    "plan_temperature", 4.0, "Divides the logits of the loss whose rise ranks are chosen by."
)
EPOCHS = flags.DEFINE_integer("epochs", 20, "Of refinement.", lower_bound=1)
LOSS = flags.DEFINE_enum("loss", "mse", ["mse", "kl"], "Of the logits.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of KL.")
RATE = flags.DEFINE_list(
    "rate", ["1x"], 'Learning rates, a row for each: "1x" is found, "2x" is twice that.'
)
FEATURES = flags.DEFINE_string("features", "auto", "Modules that are matched too; empty for none.")
BLOCKS = flags.DEFINE_bool("blocks", False, "Refine block by block first.")
AUGMENT = flags.DEFINE_bool("augment", True, "Random crops and mirrored images.")
LABELS = flags.DEFINE_bool("labels", False, "Fine-tune with labels beside it.")
LABEL_RATES = flags.DEFINE_list(
    "label_rates", ["3e-4", "1e-3", "3e-3"], "Learning rates of that; the best counts."
)


def main(_: list[str]) -> None:
    """Measure what is missing, and print a table."""
    warnings.filterwarnings("ignore", message="too few rows")
    print(describe_machine(), flush=True)
    asked, whole = read_asked(), read_task()
    records = read_records(None if RECORDS.value is None else Path(RECORDS.value))
    if MEASURE.value:
        measure(asked, whole, records)
    print(table_of(asked, records, whole.digest()))


def read_asked() -> Asked:
    """What the flags ask for."""
    return Asked(
        network=NETWORK.value,
        plan=PLAN.value,
        plan_temperature=SOFT.value,
        images=IMAGES.value,
        subsets=list(map(int, SUBSETS.value)),
        budgets=list(map(float, BUDGETS.value)),
        epochs=EPOCHS.value,
        loss=LOSS.value,
        temperature=TEMPERATURE.value,
        features=FEATURES.value,
        blocks=BLOCKS.value,
        augment=AUGMENT.value,
        rates=RATE.value,
        label_rates=list(map(float, LABEL_RATES.value)) if LABELS.value else [],
    )


def read_task() -> Task:
    """The network, and all images."""
    images, labels, *test = read_cifar10(str(DATA.value))
    model, variables = network_of(NETWORK.value, WEIGHTS.value, TRAINED.value, images, labels)
    return Task(model, variables, (images, labels), (test[0], test[1]))


if __name__ == "__main__":
    flags.mark_flag_as_required("data")
    app.run(main)
