"""draft"""

from ml_collections import ConfigDict

from configs.common import compressibility, shortened_compressibility


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; with `arg` "mlp" of a small MLP, with "smoke" a variant of a minute."""
    config = compressibility("digits", "mlp" if arg == "mlp" else "garipovnet")
    if arg == "mlp":
        config.model.arguments = {"widths": (64, 32)}
    else:
        config.model.arguments = {
            "widths": (16, 16, 32, 32, 32, 32),
            "pools": (2, 0),
            "average": 4,
        }
    config.data.validation_share = 0.25
    config.data.validation_size = 350
    config.train.update(
        {"epochs": 30, "batch_size": 64, "learning_rate": 0.05, "boundaries": (15, 25)}
    )
    config.penalties = (1.0, 0.1, 0.01)
    config.calibration.images = (800,)
    config.test.batch_size = 360
    config.finetune.epochs = 1
    return shortened_compressibility(config, "" if arg == "mlp" else arg)
