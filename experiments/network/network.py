"""The network under study, with all that experiments share, checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments import models
from experiments.data import TABLES, DataSplits, Examples, load, load_table, prepare, prepare_table
from experiments.network.calibrate import Batch, Calibration, altered, batches_of, source_examples
from experiments.network.settings import ExperimentSettings, ModelSettings, NetworkSettings
from experiments.network.torch_weights import load_torch_npz
from experiments.network.training import LinenNetwork, Variables, steps_per_epoch
from tdjax.linen import make_plan
from tdjax.plan.plan import Plan

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": models.MLP,
    "garipovnet": models.GaripovNet,
    "resnet18": models.ResNet18,
    "resnet20": models.ResNet20,
    "resnet56": models.ResNet56,
    "resnet110": models.ResNet110,
    "vgg16": models.VGG16,
    "densenet22": models.DenseNet22,
    "wrn16_8": models.WRN16_8,
    "resnet18_imagenet": models.ImageNetResNet18,
    "resnet50": models.ResNet50,
    "googlenet": models.GoogLeNet,
}

# Random streams of an experiment.
INIT, TRAIN, DECOMPOSE, FINETUNE = range(4)


@dataclass(frozen=True, eq=False)
class Network:
    """A network, its data, and how it is trained and looked at.

    Arguments:
        start: the network's variables, before training unless `is_trained`.
        dense: the plan that leaves every layer as it is, for counting.
        sources: the calibration images to draw from, by name.
    """

    settings: NetworkSettings
    module: nn.Module
    start: Variables
    is_trained: bool
    splits: DataSplits
    dense: Plan
    sources: Mapping[str, Examples]

    def key(self, stream: int) -> jax.Array:
        """The key of one of the random streams."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), stream)

    @property
    def is_given(self) -> bool:
        """Whether it is none of ours, so that it cannot be made again."""
        return self.is_trained and self.settings.weights is None

    @property
    def apply(self) -> LinenNetwork:
        """The uncompressed network's forward function."""
        return LinenNetwork(self.module)

    @property
    def sample(self) -> jax.Array:
        """An input of the network, of zeros."""
        return _sample(self.splits)

    def batches(self, calibration: Calibration) -> list[Batch]:
        """The images of a calibration."""
        source = self.sources[calibration.source]
        return batches_of(self.settings, source, calibration, self.splits.num_classes)


def configured(asked: ExperimentSettings) -> Network:
    """One of our networks on one of our data sets; its weights are read where settings name them.

    Raises ValueError or `experiments.data.DataError` for whatever in configuration, data or weights
    would stop an experiment later.
    """
    settings = asked.network
    if settings.data.name in TABLES and not settings.takes_tables:
        raise ValueError(
            f"config field 'data.name': {settings.data.name!r} is a table, which only the "
            "experiment 'compressibility' takes"
        )
    splits = _splits(settings)
    module = build_network(settings.model, splits.num_classes)
    key = jax.random.fold_in(jax.random.key(settings.seed), INIT)
    if settings.weights is None:
        variables = jax.jit(module.init)(key, _sample(splits))
    elif Path(settings.weights).is_file():
        shapes = jax.eval_shape(module.init, key, _sample(splits))
        variables = load_torch_npz(settings.weights, shapes)
    else:
        raise ValueError(f"config field 'weights': no file {settings.weights}")
    return _network(asked, module, variables, splits, is_trained=settings.weights is not None)


def given(
    asked: ExperimentSettings, module: nn.Module, variables: Mapping[str, Any], splits: DataSplits
) -> Network:
    """A network of your own, trained already, with its data.

        network = given(settings, module, variables, splits)
        page = experiments.compress.run.run(network, settings, Path("runs/mine"))

    Arguments:
        asked: the settings of the experiment; "model" and "data" hold names for the report.
        module: a Linen module whose call takes images, and `train` if it is to be trained on.
        variables: its collections, "params" among them.
        splits: examples as the network expects them, see `DataSplits`.

    Raises ValueError where the settings ask for what the network or its data do not have.
    """
    return _network(asked, module, variables, splits, is_trained=True)


def reseeded(network: Network, seed: int) -> Network:
    """One of our networks again, with all that is random from another seed."""
    return configured(replace(network.settings, seed=seed))


def build_network(settings: ModelSettings, classes: int) -> nn.Module:
    """The network of a configuration. Raises ValueError for a name or argument it lacks."""
    if settings.name not in NETWORKS:
        raise ValueError(
            f"config field 'model.name' is {settings.name!r}: known are {', '.join(NETWORKS)}"
        )
    try:
        return NETWORKS[settings.name](classes=classes, **settings.arguments)
    except TypeError as error:
        raise ValueError(f"config field 'model.arguments': {error}") from error


def _network(
    asked: ExperimentSettings,
    module: nn.Module,
    variables: Mapping[str, Any],
    splits: DataSplits,
    *,
    is_trained: bool,
) -> Network:
    settings = asked.network
    if settings.finetune.epochs or not is_trained:
        steps_per_epoch(splits.train, settings.train)
    state = {name: value for name, value in variables.items() if name != "params"}
    if settings.reestimate and "batch_stats" not in state:
        raise ValueError(
            f"config field 'reestimate': {settings.model.name} has no batch statistics"
        )
    return Network(
        settings,
        module,
        Variables(variables["params"], state),
        is_trained,
        splits,
        make_plan(module, variables, (), _sample(splits)),
        _sources(settings, splits) if asked.needs_images else {},
    )


def _sample(splits: DataSplits) -> jax.Array:
    return jnp.zeros((1, *splits.train.images.shape[1:]))


def _sources(settings: NetworkSettings, splits: DataSplits) -> dict[str, Examples]:
    most = max(settings.calibration.images)
    sources = {
        name: source_examples(settings, name, splits) for name in settings.calibration.sources
    }
    for name, examples in sources.items():
        if most > len(examples.labels):
            raise ValueError(
                f"config field 'calibration.images' asks for {most}, "
                f"but source {name!r} has {len(examples.labels)} images"
            )
    return sources


def _splits(settings: NetworkSettings) -> DataSplits:
    data, inputs = settings.data, settings.inputs
    sizes = (data.train_size, data.validation_size, data.test_size)
    if data.name in TABLES:
        _check_table(settings)
        table = load_table(data.name, data.folder)
        return prepare_table(table, data.validation_share, settings.seed, *sizes)
    statistics = None
    if inputs.mean is not None and inputs.deviation is not None:
        statistics = (
            tuple(255 * value for value in inputs.mean),
            tuple(255 * value for value in inputs.deviation),
        )
    splits = prepare(
        load(data.name, data.folder),
        data.validation_share,
        settings.seed,
        *sizes,
        statistics,
    )
    images = altered(splits.test.images, settings.test.change, settings, splits)
    return replace(splits, test=Examples(images, splits.test.labels))


def _check_table(settings: NetworkSettings) -> None:
    """Refuse what rows of a table do not have. Raises ValueError that names the field."""
    what = f"no such thing for {settings.data.name!r}, which is a table"
    model, change = settings.model.name, settings.test.change
    if model != "mlp":
        raise ValueError(f"config field 'model.name' is {model!r}: {what}; use 'mlp'")
    for field, wrong in (
        ("'inputs.mean'", settings.inputs.mean is not None),
        ("'train.augment'", settings.train.augment),
        (f"'test.change' is {change!r}", change != "same"),
        ("'reestimate'", settings.reestimate),
    ):
        if wrong:
            raise ValueError(f"config field {field}: {what}")
