"""The study of GaripovNet on MNIST: 1,875 measurements.

5 networks x 5 layers x 3 methods x 5 levels x 5 runs; PATH is the folder with the published files.

    python -m experiments.main --config=configs/garipov_mnist.py \\
        --workdir=runs/garipov_mnist --config.data.folder=PATH

Made for an accelerator; neither timed nor run in full. A small version of it, all 75 choices once
on one network, takes about half an hour on two idle CPU cores; what yours takes, --dry-run says:

    ... --config.networks=1 --config.runs=1 --config.data.train_size=3000 \\
        --config.data.validation_size=500 --config.data.test_size=2000 --config.train.epochs=6 \\
        --config.train.boundaries='(4, 5)' --config.train.batch_size=64 --config.finetune.epochs=1
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
