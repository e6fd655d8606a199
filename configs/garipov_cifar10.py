"""The study of GaripovNet on CIFAR-10: 1,875 measurements.

5 networks x 5 layers x 3 methods x 5 levels x 5 runs; PATH is the folder with the published files.

    python -m experiments.main --config=configs/garipov_cifar10.py \\
        --workdir=runs/garipov_cifar10 --config.data.folder=PATH

Made for an accelerator; not timed in full. The report shows the published values beside its own.
"""

from ml_collections import ConfigDict

from configs.common import garipov_study, shortened


def get_config(arg: str = "") -> ConfigDict:
    """The study, or with `arg` "smoke" a variant of a minute."""
    config = garipov_study("cifar10")
    config.decompose.ranks = "garipovnet"
    config.published = "garipovnet/cifar10"
    return shortened(config, arg)
