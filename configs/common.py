"""What the configurations of the study share."""

from collections.abc import Mapping, Sequence
from typing import Any

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

# How ALDS trains networks and, from their factors, trains them again (Liebenwein et al., NeurIPS
# 2021, arXiv 2107.11442).
ALDS_TRAINING: dict[str, dict[str, Any]] = {
    "resnet": {
        "epochs": 182,
        "batch_size": 128,
        "learning_rate": 0.1,
        "boundaries": (91, 136),
        "warmup": 5,
        "weight_decay": 1e-4,
    },
    "vgg16": {
        "epochs": 300,
        "batch_size": 256,
        "learning_rate": 0.05,
        "boundaries": tuple(range(30, 300, 30)),
        "factor": 0.5,
        "warmup": 5,
        "weight_decay": 5e-4,
    },
    "densenet22": {
        "epochs": 300,
        "batch_size": 64,
        "learning_rate": 0.1,
        "boundaries": (150, 225),
        "warmup": 5,
        "nesterov": True,
        "weight_decay": 1e-4,
    },
    "wrn16_8": {
        "epochs": 200,
        "batch_size": 128,
        "learning_rate": 0.1,
        "boundaries": (60, 120, 160),
        "factor": 0.2,
        "warmup": 5,
        "nesterov": True,
        "weight_decay": 5e-4,
    },
    "resnet_imagenet": {
        "epochs": 90,
        "batch_size": 256,
        "learning_rate": 0.1,
        "boundaries": (30, 60, 80),
        "weight_decay": 1e-4,
    },
}
# What networks that were trained on ImageNet by PyTorch expect of a pixel.
IMAGENET_INPUTS = {"mean": (0.485, 0.456, 0.406), "deviation": (0.229, 0.224, 0.225)}


def geometric_shares(count: int, most: float, least: float) -> tuple[float, ...]:
    """Shares in geometric progression, to four decimals, the largest first."""
    return tuple(round(most * (least / most) ** (k / (count - 1)), 4) for k in range(count))


# Examples in a variant of a minute: at least one of each class where there are a thousand.
LITTLE_DATA = {"train_size": 400, "validation_size": 100, "test_size": 100}
LITTLE_TABLE = {"train_size": 200, "validation_size": 40, "test_size": 80}
LITTLE_IMAGENET = {"train_size": 2000, "validation_size": 2000, "test_size": 1000}
# The shares of the parameters kept at which ALDS is compared.
CIFAR_SHARES = geometric_shares(20, 0.85, 0.03)
IMAGENET_SHARES = geometric_shares(10, 0.9, 0.15)


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
                "warmup": 0,
                "momentum": 0.9,
                "nesterov": False,
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
                "repeat": False,
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
    check_argument(arg, ("smoke",))
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
            "repeat": False,
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
            "layers": (".*",),
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


def compressibility(data: str, model: str) -> ConfigDict:
    """The experiment on l_q compressibility, for one data set and network."""
    return ConfigDict(
        {
            "experiment": "compressibility",
            **subject(data, model),
            "runs": 3,
            "methods": (
                "magnitude global",
                "magnitude layer",
                "magnitude neuron",
                "abp-m",
                "sap",
                "tail",
                "abp-l",
            ),
            "shares": (0.3, 0.5, 0.7, 0.8, 0.9),
            "qs": (0.3, 0.5, 0.7),
            "etas": (0.1, 0.2, 0.3),
            "eta_q": 0.5,
            "penalties": (1e-3, 1e-4, 1e-5),
            "layer_steps": 49,
            "tolerance": 0.01,
            "published": config_dict.placeholder(str),
        }
    )


def shortened_compressibility(config: ConfigDict) -> ConfigDict:
    """The same experiment in a minute: little data, two networks, few shares."""
    config.runs = 2
    config.shares = (0.5, 0.9)
    config.qs = (0.5,)
    config.layer_steps = 9
    _little_work(config)
    config.finetune.epochs = 1
    return config


def shortened_compress(config: ConfigDict, arg: str) -> ConfigDict:
    """The same experiment for `arg` "", and for "smoke" one of a minute.

    Raises ValueError for another `arg`.
    """
    check_argument(arg, ("smoke",))
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
    check_argument(arg, ("smoke",))
    if arg == "smoke":
        config.methods = ("svd", "tucker")
        config.keeps = (0.5,)
        config.test.layer_images = 0
        config.reestimate = False
        _little_work(config)
    return config


def compress_alds(data: str, model: str, training: Mapping[str, Any]) -> ConfigDict:
    """The comparison of ALDS on CIFAR: a network trained as there, strategies at many budgets."""
    config = compress(data, model)
    config.train.update(training)
    config.train.augment = True
    config.budgets = (0.85, 0.75, 0.65, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15)
    config.strategies = ("uniform", "energy", "alds", "alds released", "loss")
    config.reestimate = True
    config.solver.update({"max_iters": 50, "tol": 1e-5})
    config.timed_images = 100
    return config


def alds_variant(config: ConfigDict, arg: str) -> ConfigDict:
    """The same comparison for `arg` "", for "smoke" one of a minute, for "retrain" with training.

    "retrain" has ALDS's twenty budgets, and trains each compressed network by the whole schedule.
    Raises ValueError for another `arg`.
    """
    check_argument(arg, ("retrain", "smoke"))
    if arg == "retrain":
        config.budgets = CIFAR_SHARES
        config.reestimate = False
        config.calibration.subsets = 1
        config.finetune.update({"epochs": config.train.epochs, "repeat": True})
        return config
    return shortened_compress(config, arg)


def compress_imagenet(model: str) -> ConfigDict:
    """One budget for the whole network, of one for ImageNet, from PyTorch's weights."""
    config = compress("imagenet", model)
    config.inputs.update(IMAGENET_INPUTS)
    config.train.update(ALDS_TRAINING["resnet_imagenet"])
    # Of the training images only those are held in memory that the calibration draws from.
    config.data.update({"train_size": 6000, "validation_size": 2000})
    config.budgets = IMAGENET_SHARES
    config.strategies = ("energy", "alds released", "loss")
    config.reestimate = True
    config.solver.update({"max_iters": 50, "tol": 1e-5})
    config.calibration.update({"images": (6000,), "subsets": 1, "batch_size": 50})
    config.test.batch_size = 100
    config.timed_images = 32
    return config


def data_aware_photographs(data: str, model: str) -> ConfigDict:
    """Norms that see the data, on a network for photographs, from PyTorch's weights."""
    config = data_aware(data, model)
    config.inputs.update(IMAGENET_INPUTS)
    config.train.update(ALDS_TRAINING["resnet_imagenet"])
    config.keeps = (0.75, 0.5, 0.25)
    config.reestimate = True
    config.solver.update({"max_iters": 50, "tol": 1e-5})
    config.calibration.batch_size = 50
    config.test.update({"batch_size": 100, "layer_images": 0})
    return config


def check_argument(arg: str, known: Sequence[str]) -> None:
    """Raise ValueError for an argument of a configuration that is not known."""
    if arg not in ("", *known):
        raise ValueError(f"config argument {arg!r}: known are {', '.join(known)}, or none")


def _little_work(config: ConfigDict) -> None:
    little = {"imagenet": LITTLE_IMAGENET, "diabetes": LITTLE_TABLE}
    config.data.update(little.get(config.data.name, LITTLE_DATA))
    config.train.update({"epochs": 2, "boundaries": (1,), "warmup": 0, "batch_size": 50})
    count = min(350, config.data.train_size)
    config.calibration.update({"images": (count,), "subsets": 1, "batch_size": 50})
    config.solver.max_iters = 5
    config.test.batch_size = 100
    config.finetune.epochs = 0
