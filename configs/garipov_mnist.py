"""The study of GaripovNet on MNIST: 1,875 measurements.

5 networks x 5 layers x 3 methods x 5 levels x 5 runs; PATH is the folder with the published files.

    python -m experiments.main --config=configs/garipov_mnist.py \\
        --workdir=runs/garipov_mnist --config.data.folder=PATH

Made for an accelerator; not run in full. A small version of it, all 75 choices once on each of the
five networks, took 1 hour and 14 minutes on two busy CPU cores; docs/results.md has its figures.
What yours takes, --dry-run says:

    ... --config.runs=1 --config.deterministic_runs=1 --config.data.train_size=768 \\
        --config.data.validation_size=250 --config.data.test_size=750 --config.train.epochs=10 \\
        '--config.train.boundaries=(6,9)' --config.train.batch_size=64 \\
        --config.finetune.epochs=1 --config.measure.feature_images=250
"""

from ml_collections import ConfigDict

from configs.common import garipov_study, shortened


def get_config(arg: str = "") -> ConfigDict:
    """The study, or with `arg` "smoke" a variant of a minute."""
    config = garipov_study("mnist")
    config.decompose.ranks = "garipovnet"
    # Digits are not mirror images of each other.
    config.train.augment = False
    return shortened(config, arg)
