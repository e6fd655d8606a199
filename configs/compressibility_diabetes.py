"""How far networks that predict a number can be pruned, on scikit-learn's diabetes table.

    python -m experiments.main --config=configs/compressibility_diabetes.py \\
        --workdir=runs/compressibility_diabetes

FIGURES

On California Housing, as in the paper; PATH is the folder with the published `cal_housing.data`:

    ... --config=configs/compressibility_diabetes.py:california --config.data.folder=PATH
"""

from ml_collections import ConfigDict

from configs.common import check_argument, compressibility, shortened_compressibility


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; with `arg` "california" on that table, with "smoke" a variant of a minute.

    Raises ValueError for another `arg`.
    """
    check_argument(arg, ("california", "smoke"))
    config = compressibility("diabetes", "mlp")
    config.data.validation_share = 0.15
    config.model.arguments = {"widths": (24, 24)}
    config.train.update({"epochs": 100, "batch_size": 32, "optimizer": "adam"})
    config.train.update({"learning_rate": 3e-3, "boundaries": (60,), "patience": 20})
    config.train.weight_decay = 0.03
    config.runs = 5
    # Those of the paper, and greater ones.
    config.penalties = (0.1, 0.01, 1e-3, 1e-4, 1e-5)
    config.calibration.update({"images": (300,), "batch_size": 300})
    config.tolerance = 0.02
    config.finetune.epochs = 3
    config.published = "yang2022/california_housing"
    if arg == "california":
        config.data.name = "california_housing"
        config.model.arguments = {"widths": (64, 64)}
        config.train.update({"epochs": 60, "batch_size": 128, "boundaries": (40,), "patience": 10})
        config.train.update({"learning_rate": 1e-3, "weight_decay": 0.0})
        config.calibration.update({"images": (10000,), "batch_size": 2500})
        config.test.batch_size = 2500
    if arg == "smoke":
        config.model.arguments = {"widths": (12, 12)}
        return shortened_compressibility(config)
    return config
