"""The study of ResNet-18 on CIFAR-10: 1,800 measurements.

3 networks x 8 layers x 3 methods x 5 levels x 5 runs; PATH is the folder with the published files.

    python -m experiments.main --config=configs/resnet18_cifar10.py \\
        --workdir=runs/resnet18_cifar10 --config.data.folder=PATH

Made for an accelerator; not timed in full. The report shows the published values beside its own.
"""

from ml_collections import ConfigDict

from configs.common import RESNET18_LAYERS, shortened, study


def get_config(arg: str = "") -> ConfigDict:
    """The study, or with `arg` "smoke" a variant of a minute."""
    config = study("cifar10", "resnet18", RESNET18_LAYERS)
    config.train.update(
        {"epochs": 300, "optimizer": "adam", "learning_rate": 1e-3, "boundaries": (100, 150)}
    )
    config.finetune.epochs = 25
    config.networks = 3
    config.decompose.ranks = "resnet18"
    config.published = "resnet18/cifar10"
    return shortened(config, arg)
