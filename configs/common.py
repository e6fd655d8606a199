"""What the configurations share: each is made from the dataclass that reads it."""

import dataclasses
import typing
from collections.abc import Mapping
from functools import partial
from typing import Any

from ml_collections import ConfigDict, config_dict

from experiments.compress.settings import Compress
from experiments.compressibility.settings import Compressibility
from experiments.data_aware.settings import DataAware
from experiments.error_study.protocol import Protocol
from experiments.workdir.fields import read_fields

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

# What networks that were trained on ImageNet by PyTorch expect of a pixel.
IMAGENET_INPUTS = {"mean": (0.485, 0.456, 0.406), "deviation": (0.229, 0.224, 0.225)}
# How ResNet-18 is trained on ImageNet by ALDS (Liebenwein et al., NeurIPS 2021).
IMAGENET_TRAINING: dict[str, Any] = {
    "epochs": 90,
    "batch_size": 256,
    "learning_rate": 0.1,
    "boundaries": (30, 60, 80),
    "weight_decay": 1e-4,
}
# Examples in a variant of a minute: at least one of each class where there are a thousand.
LITTLE_DATA = {"train_size": 400, "validation_size": 100, "test_size": 100}
LITTLE_TABLE = {"train_size": 200, "validation_size": 40, "test_size": 80}
LITTLE_IMAGENET = {"train_size": 2000, "validation_size": 2000, "test_size": 1000}
# What such a variant measures, by experiment.
LITTLE_WORK: dict[str, dict[str, Any]] = {
    "study": {
        "compressions": (0.5, 0.9),
        "networks": 2,
        "runs": 2,
        "deterministic_runs": 1,
        "data": {"train_size": 600, "validation_size": 100, "test_size": 100},
        "train": {"epochs": 2, "boundaries": (1,), "batch_size": 50},
        "decompose": {"max_iters": 10},
        "measure": {"feature_images": 100, "batch_size": 100},
        "finetune": {"epochs": 1},
        "poor_baseline": True,
    },
    "data_aware": {
        "methods": ("svd", "tucker"),
        "keeps": (0.5,),
        "reestimate": False,
        "test": {"layer_images": 0},
    },
    "compress": {"strategies": ("uniform", "loss"), "reestimate": False, "timed_images": 0},
    "compressibility": {
        "runs": 2,
        "shares": (0.5, 0.9),
        "qs": (0.5,),
        "layer_steps": 9,
        "finetune": {"epochs": 1},
    },
}
# How long the iterative decompositions of most configurations go on.
FEW_SWEEPS = {"max_iters": 50, "tol": 1e-5}
# How many networks a study trains, which differ in all that is random.
NETWORKS = 5
# Until a configuration says otherwise.
TRAINING: dict[str, Any] = {"epochs": 100, "boundaries": (30, 60, 90)}


def configuration(settings: type, **values: Any) -> ConfigDict:
    """A configuration of all fields of a dataclass of settings, to be set on the command line.

    Arguments:
        settings: fields that may be None take what their type says.
        values: in place of the defaults; mappings for fields that are dataclasses themselves.

    Raises as `read_fields` does.
    """
    return _settable(read_fields(settings, values))


def study(data: str, model: str, layers: tuple[str, ...]) -> ConfigDict:
    """Protocol of Schuurmans et al. (ICLR 2023) for one data set and kind of network."""
    train = {**TRAINING, "augment": True, "best_by_metric": True}
    return configuration(
        Protocol,
        data={"name": data},
        model={"name": model},
        train=train,
        layers=layers,
        networks=NETWORKS,
    )


def garipov_study(data: str) -> ConfigDict:
    """The study of a GaripovNet on one data set."""
    return study(data, "garipovnet", GARIPOV_LAYERS)


def experiment(settings: type, data: str, model: str) -> ConfigDict:
    """Another of the experiments, by its settings, on one data set and network."""
    return configuration(settings, data={"name": data}, model={"name": model}, train=TRAINING)


data_aware = partial(experiment, DataAware)
compress = partial(experiment, Compress)
compressibility = partial(experiment, Compressibility)


def on_embedded_digits(config: ConfigDict) -> ConfigDict:
    """A configuration for the GaripovNet of 35,450 parameters that fits 8x8 images."""
    config.model.arguments = {"widths": (16, 16, 32, 32, 32, 32), "pools": (2, 0), "average": 4}
    config.data.update({"validation_share": 0.25, "validation_size": 350})
    config.train.update({"epochs": 30, "batch_size": 64, "learning_rate": 0.05})
    config.train.boundaries = (15, 25)
    return config


def on_photographs(config: ConfigDict) -> ConfigDict:
    """A configuration for a network for photographs, from PyTorch's weights."""
    config.inputs.update(IMAGENET_INPUTS)
    config.train.update(IMAGENET_TRAINING)
    config.reestimate = True
    config.solver.update(FEW_SWEEPS)
    config.calibration.batch_size = 50
    config.test.batch_size = 100
    # An epoch of ImageNet has 5,000 steps.
    config.checkpoint_steps = 1000
    return config


def shortened(config: ConfigDict, arg: str, *others: str) -> ConfigDict:
    """The same experiment, or for `arg` "smoke" one of a minute: little data, few choices.

    Raises ValueError for an `arg` that is none of "smoke", "" and `others`.
    """
    if arg not in ("", *others, "smoke"):
        known = ", ".join((*others, "smoke"))
        raise ValueError(f"config argument {arg!r}: known are {known}, or none")
    if arg != "smoke":
        return config
    if config.experiment == "study":
        config.layers = config.layers[-2:]
    else:
        _shorten_network(config)
    if config.experiment == "compress":
        config.budgets = config.budgets[:1]
    config.update(LITTLE_WORK[config.experiment])
    return config


def _shorten_network(config: ConfigDict) -> None:
    little = {"imagenet": LITTLE_IMAGENET, "diabetes": LITTLE_TABLE}
    config.data.update(little.get(config.data.name, LITTLE_DATA))
    config.train.update({"epochs": 2, "boundaries": (1,), "warmup": 0, "batch_size": 50})
    count = min(350, config.data.train_size)
    config.calibration.update({"images": (count,), "subsets": 1, "batch_size": 50})
    config.solver.max_iters = 5
    config.test.batch_size = 100
    config.finetune.epochs = 0
    if "refine" in config:
        config.refine.epochs = min(1, config.refine.epochs)


def _settable(settings: Any) -> ConfigDict:
    """The fields of a dataclass of settings, each with its type."""
    config, hints = ConfigDict(), typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value is None:
            # A reference of its own: one that is shared would set all its fields together.
            value = config_dict.placeholder(_type_of(hints[field.name]))
        elif dataclasses.is_dataclass(value):
            value = _settable(value)
        config[field.name] = dict(value) if isinstance(value, Mapping) else value
    return config


def _type_of(hint: Any) -> type:
    """The type of a field that may be None."""
    kind = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return typing.get_origin(kind) or kind
