"""What the configurations of the study share."""

from ml_collections import ConfigDict, config_dict

GARIPOV_LAYERS = ("conv2", "conv3", "conv4", "conv5", "conv6")
RESNET18_LAYERS = (
    "layer1.1/conv2",
    "layer2.0/conv1",
    "layer2.1/conv1",
    "layer3.0/conv2",
    "layer3.0/downsample.0",
    "layer3.1/conv1",
    "layer4.1/conv1",
    "layer4.1/conv2",
)


def study(data: str, model: str, layers: tuple[str, ...]) -> ConfigDict:
    """Protocol of Schuurmans et al. (ICLR 2023) for one data set and network."""
    # Each placeholder is a reference of its own: one shared would set all its fields together.
    return ConfigDict(
        {
            "experiment": "study",
            "seed": 0,
            "data": {
                "name": data,
                "folder": config_dict.placeholder(str),
                "validation_share": 0.1,
                "train_size": config_dict.placeholder(int),
                "validation_size": config_dict.placeholder(int),
                "test_size": config_dict.placeholder(int),
            },
            "model": {"name": model, "arguments": {}},
            "train": {
                "epochs": 100,
                "batch_size": 128,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "boundaries": (30, 60, 90),
                "factor": 0.1,
                "momentum": 0.9,
                "weight_decay": 0.0,
                "patience": config_dict.placeholder(int),
                "augment": True,
            },
            "layers": layers,
            "methods": ("cp", "tucker", "tt"),
            "compressions": (0.1, 0.25, 0.5, 0.75, 0.9),
            "runs": 5,
            "decompose": {
                "cp_init": "random",
                "max_iters": 100,
                "tucker_iters": 100,
                "tol": 1e-8,
                "ranks": "rule",
            },
            "measure": {"feature_images": 1000, "batch_size": 500, "chunk": 25},
            "finetune": {
                "epochs": 10,
                "patience": config_dict.placeholder(int),
                "learning_rate": config_dict.placeholder(float),
            },
            "published": config_dict.placeholder(str),
            "checkpoint_every": 1,
        }
    )


def garipov_study(data: str) -> ConfigDict:
    """The study of a GaripovNet on one data set."""
    return study(data, "garipovnet", GARIPOV_LAYERS)


def shortened(config: ConfigDict, arg: str) -> ConfigDict:
    """The same study for `arg` "", and for "smoke" one of a minute: little data, few choices.

    Raises ValueError for another `arg`.
    """
    if arg not in ("", "smoke"):
        raise ValueError(f"config argument {arg!r}: known are smoke, or none")
    if arg == "smoke":
        config.layers = config.layers[-2:]
        config.compressions = (0.5, 0.9)
        config.runs = 2
        config.data.update({"train_size": 600, "validation_size": 100, "test_size": 100})
        config.train.update({"epochs": 2, "boundaries": (1,), "batch_size": 50})
        config.decompose.update({"max_iters": 10, "tucker_iters": 10})
        config.measure.update({"feature_images": 100, "batch_size": 100})
        config.finetune.epochs = 1
    return config


def subject(data: str, model: str) -> dict:
    """A trained network, its data and how it is looked at, as experiments on it share them."""
    whole = study(data, model, ())
    whole.train.augment = False
    return {
        "note": "",
        "seed": 0,
        "data": whole.data,
        "inputs": {
            "mean": config_dict.placeholder(tuple),
            "deviation": config_dict.placeholder(tuple),
        },
        "model": whole.model,
        "weights": config_dict.placeholder(str),
        "train": whole.train,
        "reestimate": False,
        "calibration": {
            "sources": ("same",),
            "folder": config_dict.placeholder(str),
            "images": (2000,),
            "subsets": 3,
            "batch_size": 250,
            "labels": "sampled",
            "temperature": 4.0,
            "brightness": 0.2,
        },
        "solver": {"max_iters": 100, "tol": 1e-6},
        "test": {"batch_size": 500, "change": "same"},
        "finetune": {
            "epochs": 0,
            "patience": config_dict.placeholder(int),
            "learning_rate": config_dict.placeholder(float),
        },
        "checkpoint_every": 1,
    }


def data_aware(data: str, model: str) -> ConfigDict:
    """The experiment on decompositions that see the data, for one data set and network."""
    config = ConfigDict(
        {
            "experiment": "data_aware",
            **subject(data, model),
            "methods": ("svd", "cp", "tucker", "tt"),
            "norms": ("frobenius", "covariance", "kronecker"),
            "keeps": (0.75, 0.5, 0.25),
            "correct_bias": (False,),
            "finetune_subsets": 1,
        }
    )
    config.test.layer_images = config_dict.placeholder(int)
    return config


def compress(data: str, model: str) -> ConfigDict:
    """The experiment on budgets of whole networks, for one data set and network."""
    return ConfigDict(
        {
            "experiment": "compress",
            **subject(data, model),
            "budgets": (0.5,),
            "cost": "params",
            "strategies": ("uniform", "energy", "alds released", "loss"),
            "methods": ("svd", "tucker"),
            "norms": ("frobenius", "kronecker"),
            "sequential": False,
            "rounds": 1,
            "timed_images": 0,
        }
    )


def shortened_compress(config: ConfigDict, arg: str) -> ConfigDict:
    """The same experiment for `arg` "", and for "smoke" one of a minute.

    Raises ValueError for another `arg`.
    """
    if arg not in ("", "smoke"):
        raise ValueError(f"config argument {arg!r}: known are smoke, or none")
    if arg == "smoke":
        config.budgets = config.budgets[:1]
        config.strategies = ("uniform", "loss")
        _little_work(config)
        config.reestimate = False
        config.timed_images = 0
    return config


def shortened_data_aware(config: ConfigDict, arg: str) -> ConfigDict:
    """The same experiment for `arg` "", and for "smoke" one of a minute.

    Raises ValueError for another `arg`.
    """
    if arg not in ("", "smoke"):
        raise ValueError(f"config argument {arg!r}: known are smoke, or none")
    if arg == "smoke":
        config.methods = ("svd", "tucker")
        config.keeps = (0.5,)
        config.test.layer_images = 0
        config.reestimate = False
        _little_work(config)
    return config


def _little_work(config: ConfigDict) -> None:
    config.data.update({"train_size": 400, "validation_size": 100, "test_size": 100})
    config.train.update({"epochs": 2, "boundaries": (1,), "batch_size": 50})
    config.calibration.update({"images": (350,), "subsets": 1, "batch_size": 50})
    config.solver.max_iters = 5
    config.test.batch_size = 100
    config.finetune.epochs = 0
