"""How far networks can be pruned, on scikit-learn's embedded 8x8 digits: nothing to download.

    python -m experiments.main --config=configs/compressibility_digits.py \\
        --workdir=runs/compressibility_digits

FIGURES

A small MLP in place of the GaripovNet:

    ... --config=configs/compressibility_digits.py:mlp
"""

from ml_collections import ConfigDict

from configs.common import check_argument, compressibility, shortened_compressibility


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; with `arg` "mlp" of a small MLP, with "smoke" a variant of a minute.

    Raises ValueError for another `arg`.
    """
    check_argument(arg, ("mlp", "smoke"))
    config = compressibility("digits", "garipovnet")
    config.model.arguments = {
        "widths": (16, 16, 32, 32, 32, 32),
        "pools": (2, 0),
        "average": 4,
    }
    if arg == "mlp":
        config.model.name = "mlp"
        config.model.arguments = {"widths": (64, 32)}
    config.data.validation_share = 0.25
    config.data.validation_size = 350
    config.train.update(
        {"epochs": 30, "batch_size": 64, "learning_rate": 0.05, "boundaries": (15, 25)}
    )
    config.penalties = (0.03, 0.01, 0.003)
    config.calibration.update({"images": (800,), "batch_size": 400})
    config.test.batch_size = 360
    config.finetune.epochs = 1
    return shortened_compressibility(config) if arg == "smoke" else config
