"""draft"""

from ml_collections import ConfigDict

from configs.common import compressibility, shortened_compressibility


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or with `arg` "smoke" a variant of a minute."""
    config = compressibility("diabetes", "mlp")
    config.model.arguments = {"widths": (24, 24)}
    config.data.validation_share = 0.15
    config.train.update(
        {
            "epochs": 100,
            "batch_size": 32,
            "optimizer": "adam",
            "learning_rate": 3e-3,
            "boundaries": (60,),
            "patience": 20,
        }
    )
    config.calibration.images = (300,)
    config.tolerance = 0.02
    config.finetune.epochs = 3
    config.published = "yang2022/california_housing"
    return shortened_compressibility(config, arg)
