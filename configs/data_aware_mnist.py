"""Norms that see the data, GaripovNet on MNIST; PATH is the folder with the published files.

    python -m experiments.main --config=configs/data_aware_mnist.py \\
        --workdir=runs/data_aware_mnist --config.data.folder=PATH

Transfer, with moments from the embedded digits, resized to 28x28:

    ... --config.calibration.sources="('same', 'digits')" --config.calibration.images="(1000,)"
"""

from ml_collections import ConfigDict

from configs.common import data_aware, shortened_data_aware


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or with `arg` "smoke" a variant of a minute."""
    config = data_aware("mnist", "garipovnet")
    config.train.update({"epochs": 6, "batch_size": 64, "boundaries": (4, 5)})
    config.calibration.images = (2000, 10000)
    config.test.layer_images = 2000
    config.finetune.epochs = 1
    if arg == "smoke":
        config.model.arguments = {"widths": (8, 8, 8, 8, 8, 8)}
    return shortened_data_aware(config, arg)
