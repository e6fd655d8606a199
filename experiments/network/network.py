"""The network under study, with all that experiments share, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.data import DataSplits, Examples, Inputs
from experiments.network.build import (
    build_network,
    check_hash,
    check_logits,
    model_errors,
    outputs_of,
    shapes_of,
)
from experiments.network.calibrate import Batch, Calibration, batches_of, source_examples
from experiments.network.examples import check_folder, read_splits
from experiments.network.forward import (
    Forward,
    FunctionNetwork,
    LinenNetwork,
    NnxNetwork,
    Variables,
    forward_of,
)
from experiments.network.judge import Judge, check_judge, judge_of
from experiments.network.settings import ExperimentSettings, ModelSettings, NetworkSettings
from experiments.network.training import steps_per_epoch
from experiments.network.weights import load_weights
from experiments.workdir.devices import check_divides, own_devices
from experiments.workdir.fields import FieldError
from experiments.workdir.ranges import INT32, shown
from tdjax.dispatch import make_plan
from tdjax.params.tree import join_path
from tdjax.plan.plan import Plan
from tdjax.trace.call import call_arguments
from tdjax.trace.names import names_of

# Random streams of an experiment.
INIT, TRAIN, DECOMPOSE, FINETUNE, REFINE = range(5)


@dataclass(frozen=True, eq=False)
class Network:
    """A network, its data, and how it is trained and looked at.

    Arguments:
        start: the network's variables, before training unless `is_trained`.
        judge: its loss and metric.
        dense: the plan that leaves every layer as it is, for counting.
        sources: the calibration images to draw from, by name.
    """

    settings: NetworkSettings
    module: Any
    start: Variables
    is_trained: bool
    splits: DataSplits
    judge: Judge
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
    def has_biases(self) -> bool:
        """Whether it is known which of its arrays are biases, so that dead neurons are too."""
        return not isinstance(self.apply, FunctionNetwork)

    @property
    def own_kernels(self) -> tuple[str, ...] | None:
        """The paths of a function's kernels; None of a module, which calls them so."""
        if self.has_biases:
            return None
        return tuple(entry.layer.path for entry in self.dense.layers if not entry.layer.obstacle)

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Layers whose rows are looked up: no moments of their gradient are collected."""
        entries = self.dense.layers
        return tuple(entry.layer.path for entry in entries if entry.layer.kind == "embed")

    @property
    def apply(self) -> Forward:
        """The uncompressed network's forward function."""
        return forward_of(self.module)

    def call(
        self, function: Callable[..., Any], model: Variables, *args: Any, **options: Any
    ) -> Any:
        """What a function of `tdjax` on models makes of the network with these arrays."""
        return self.apply.call(function, model, *args, **options)

    @property
    def sample(self) -> Inputs:
        """An input of the network, of zeros."""
        return _sample(self.splits)

    def batches(self, calibration: Calibration) -> Sequence[Batch]:
        """The images of a calibration."""
        source = self.sources[calibration.source]
        return batches_of(self.settings, source, calibration, self.splits.num_classes)


def configured(asked: ExperimentSettings) -> Network:
    """One of our networks on one of our data sets; its weights are read where settings name them.

    Raises ValueError or `experiments.data.DataError` for whatever in configuration, data or weights
    would stop an experiment later.
    """
    settings = asked.network
    check_folder("calibration.folder", settings.calibration.folder)
    splits = read_splits(settings)
    built = build_network(settings.model, splits.num_classes, settings.seed)
    if settings.weights is not None and not os.path.exists(settings.weights):
        raise FieldError("weights", f"is {shown(settings.weights)}: there is no such file")
    if isinstance(built, nn.Module):
        return _network(asked, built, _initial(settings, built, _sample(splits)), splits)
    module, arrays = built if isinstance(built, tuple) else (built, built)
    start = _start(settings.model, forward_of(module), arrays)
    if settings.weights is not None:
        start = forward_of(module).loaded(settings.weights, start)
    return _network(asked, module, start, splits, as_it_is=not settings.train.epochs)


def _initial(settings: NetworkSettings, module: nn.Module, sample: Inputs) -> Variables:
    """The variables of a Linen module that comes without, read or drawn."""
    key = jax.random.fold_in(jax.random.key(settings.seed), INIT)
    check_hash(settings.model, LinenNetwork(module))
    # Compiled once for all networks that differ in the key alone.
    init = partial(_init, module)
    shapes = shapes_of(settings.model, init, key, sample)
    if settings.weights is None:
        return LinenNetwork(module).start(init(key, sample))
    return LinenNetwork(module).start(load_weights(settings.weights, shapes))


@partial(jax.jit, static_argnames=("module",))
def _init(module: nn.Module, key: jax.Array, sample: Inputs) -> Any:
    args, kwargs = call_arguments(sample)
    return module.init(key, *args, **kwargs)


def given(asked: ExperimentSettings, module: Any, variables: Any, splits: DataSplits) -> Network:
    """A network of your own, trained already, with its data.

        splits = prepare_arrays(arrays)
        settings = read_fields(compress.Compress, {...})
        network = given(settings, module, variables, splits)
        page = compress.run(network, settings, Path("runs/mine"))

    and so with `error_study`, `data_aware` and `compressibility`, all of `experiments`.

    Arguments:
        asked: the settings of the experiment; "model" and "data" hold names for the report.
        module: a Linen or NNX module whose call takes images, or a function of parameters and
            images; with an argument such as `train` if it is to be trained on.
        variables: of a Linen module its collections, "params" among them; of a function its
            parameters; None of an NNX module, which holds its own.
        splits: examples as the network expects them, see `DataSplits`.

    Raises ValueError where the settings ask for what the network or its data do not have.
    """
    apply = forward_of(module)
    start = _start(asked.network.model, apply, module if variables is None else variables)
    return _network(asked, module, start, splits, as_it_is=True)


def reseeded(network: Network, seed: int) -> Network:
    """One of our networks again, with all that is random from another seed."""
    return configured(replace(network.settings, seed=seed))


def _network(
    asked: ExperimentSettings,
    module: Any,
    start: Variables,
    splits: DataSplits,
    *,
    as_it_is: bool = False,
) -> Network:
    # Not as one of several processes.
    own_devices()
    settings, sample, apply = asked.network, _sample(splits), forward_of(module)
    is_trained = as_it_is or settings.weights is not None
    trains = bool(settings.finetune.epochs) or not is_trained
    if trains:
        _check_steps(settings, splits.train, is_trained=is_trained)
    if settings.reestimate and not apply.keeps_batch_stats(start):
        known = "" if isinstance(apply, LinenNetwork | NnxNetwork) else ", which modules alone have"
        problem = f"is True: {settings.model.name} has no batch statistics{known}; use False"
        raise FieldError("reestimate", problem)
    with model_errors(settings.model):
        dense = apply.call(make_plan, start, (), sample)
    outputs = outputs_of(settings.model, apply, start, sample, train=trains)
    if settings.predicts_classes:
        check_logits(settings.model, outputs, splits.num_classes)
    judge = judge_of(settings.loss, settings.metric, splits.train.labels)
    check_judge(judge, outputs, splits.train.labels[:1])
    return Network(
        settings,
        module,
        start,
        is_trained,
        splits,
        judge,
        dense,
        _sources(settings, splits) if asked.needs_images else {},
    )


def _start(settings: ModelSettings, apply: Forward, arrays: Any) -> Variables:
    """The arrays that come with a network. Raises FieldError for others than can be trained."""
    with model_errors(settings):
        start = apply.start(arrays)
        for path, leaf in jax.tree.leaves_with_path(start.params):
            dtype = getattr(leaf, "dtype", None)
            if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
                name, what = join_path(*names_of(path)), f"a {type(leaf).__name__}"
                raise ValueError(
                    f"its parameter {name!r} is {what if dtype is None else dtype}; arrays of "
                    "floats are needed, what is not trained belongs into the function"
                )
        return cast(Variables, jax.tree.map(jnp.asarray, start))


def _sample(splits: DataSplits) -> Inputs:
    def zeros(images: Any) -> jax.Array:
        return jnp.zeros((1, *images.shape[1:]), images.dtype)

    return jax.tree.map(zeros, splits.train.images)


def _check_steps(settings: NetworkSettings, train: Examples, *, is_trained: bool) -> None:
    """Refuse a training of no step, of more than can be counted, or that devices cannot share."""
    try:
        steps = steps_per_epoch(train, settings.train)
    except FieldError as error:
        raise error.inside("train") from None
    if not is_trained and (problem := check_divides(settings.train.batch_size)):
        raise FieldError("train.batch_size", f"is {settings.train.batch_size}: {problem}")
    for name, epochs in (
        ("train.epochs", settings.train.epochs),
        ("train.warmup", settings.train.warmup),
        ("finetune.epochs", settings.finetune.epochs),
    ):
        if epochs * steps > INT32:
            raise FieldError(name, f"is {epochs}: at most {INT32 // steps} of {steps} steps")


def _sources(settings: NetworkSettings, splits: DataSplits) -> dict[str, Examples]:
    most = max(settings.calibration.images)
    sources = {
        name: source_examples(settings, name, splits) for name in settings.calibration.sources
    }
    for name, examples in sources.items():
        if most > len(examples.labels):
            raise FieldError(
                "calibration.images",
                f"asks for {most}, but source {name!r} has {len(examples.labels)} images",
            )
    return sources
