"""How far networks can be pruned, on MNIST; PATH is the folder with the published files.

    python -m experiments.main --config=configs/compressibility_mnist.py \\
        --workdir=runs/compressibility_mnist --config.data.folder=PATH

A GaripovNet; an MLP in its place:

    ... --config=configs/compressibility_mnist.py:mlp
"""

from ml_collections import ConfigDict

from configs.common import compressibility, shortened


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; with `arg` "mlp" of an MLP, with "smoke" a variant of a minute.

    Raises ValueError for another `arg`.
    """
    config = compressibility("mnist", "garipovnet")
    if arg == "mlp":
        config.model.name = "mlp"
        config.model.arguments = {"widths": (256, 128)}
    if arg == "smoke":
        config.model.arguments = {"widths": (8, 8, 8, 8, 8, 8)}
    config.train.update({"epochs": 6, "batch_size": 64, "boundaries": (4, 5)})
    config.train.learning_rate = 0.05
    config.penalties = (0.03, 0.01, 0.003)
    config.calibration.update({"images": (10000,), "batch_size": 500})
    config.finetune.epochs = 1
    return shortened(config, arg, "mlp")
