"""Our networks by name, built and traced with shapes alone before any work."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from experiments import models
from experiments.data.splits import Inputs, installed_memory
from experiments.network.forward import Forward, Variables, arguments_of
from experiments.network.own import is_own, own_function
from experiments.network.settings import ModelSettings
from experiments.workdir.fields import FieldError, read_value, type_hints
from experiments.workdir.ranges import shown
from tdjax.files import one_line
from tdjax.hints import known_are

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
# Arrays as large as the parameters that training holds: they and the best, gradient and momentum.
COPIES = 4


def build_network(settings: ModelSettings, classes: int, seed: int = 0) -> Any:
    """The network of a configuration, ours or what a function of your own returns.

    A module, or a pair of a module or function and its arrays.

    Raises FieldError for a name or argument it lacks, and for a function that returns no network.
    """
    if is_own(settings.name):
        return _own_network(settings, seed)
    if settings.name not in NETWORKS:
        problem = f"is {shown(settings.name)}: {known_are(settings.name, NETWORKS)}"
        raise FieldError("model.name", problem)
    make = NETWORKS[settings.name]
    known, values = _fields_of(make), {}
    for name, value in settings.arguments.items():
        if name not in known:
            problem = f"has {shown(name)}: {known_are(name, known) if known else 'it takes none'}"
            raise FieldError("model.arguments", problem)
        values[name] = read_value(known[name], value, f"model.arguments.{name}")
    with model_errors(settings):
        return make(classes=classes, **values)


def _own_network(settings: ModelSettings, seed: int) -> Any:
    make = own_function("model.name", settings.name)
    with model_errors(settings):
        takes_seed = "seed" in arguments_of(make) and not isinstance(make, type)
        made = make(**{**({"seed": seed} if takes_seed else {}), **settings.arguments})
    is_pair = isinstance(made, tuple) and len(made) == 2 and callable(made[0])
    if isinstance(made, nn.Module | nnx.Module) or is_pair:
        return made
    raise FieldError(
        "model.name",
        f"is {settings.name!r}: it returns a {type(made).__name__}; a Linen or NNX module is "
        "needed, or a pair of a function (params, inputs) -> outputs and its params",
    )


def shapes_of(
    settings: ModelSettings, init: Callable[..., Any], key: jax.Array, sample: Inputs
) -> Any:
    """The shapes of a network's variables.

    Raises FieldError for a network that cannot take such inputs, that has an array without
    entries, or that is too large for the machine.
    """
    with model_errors(settings, _on(sample)):
        shapes = jax.eval_shape(init, key, sample)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for path, leaf in leaves:
        if not math.prod(leaf.shape):
            name = "/".join(str(entry.key) for entry in path)
            problem = f"{_on(sample)} its array {name} has shape {leaf.shape}"
            raise FieldError("model", f"is {_named(settings)}: {problem}")
    needed = COPIES * sum(leaf.dtype.itemsize * math.prod(leaf.shape) for _, leaf in leaves)
    present = installed_memory()
    if present is not None and needed > present:
        raise FieldError(
            "model",
            f"is {_named(settings)}: its training needs {needed / 1e9:.3g} GB of memory, this "
            f"machine has {present / 1e9:.3g} GB",
        )
    return shapes


def outputs_of(
    settings: ModelSettings, apply: Forward, model: Variables, sample: Inputs, *, train: bool
) -> Any:
    """The shapes of what one call returns, of training where it is trained on.

    Raises FieldError where that fails.
    """
    key = jax.random.key(0) if train else None
    check_hash(settings, apply)
    with model_errors(settings, _on(sample)):
        found: Any = jax.eval_shape(apply, model.params, model.state, sample, key)
        return found[0]


def check_hash(settings: ModelSettings, apply: Forward) -> None:
    """Raise FieldError for a network by which no programs can be kept."""
    try:
        hash(apply)
    except TypeError as error:
        problem = "an attribute of it cannot be hashed: use tuples in place of lists and arrays"
        raise FieldError("model", f"is {_named(settings)}: {problem}") from error


def check_logits(settings: ModelSettings, outputs: Any, classes: int) -> None:
    """Raise FieldError for outputs of one example that are anything but (1, classes)."""
    shape = getattr(outputs, "shape", None)
    if shape != (1, classes):
        what = type(outputs).__name__ if shape is None else f"shape {shape}"
        raise FieldError(
            "model",
            f"is {_named(settings)}: of one example its outputs have {what}, where "
            f"{(1, classes)} is needed",
        )


@contextmanager
def model_errors(settings: ModelSettings, where: str = "") -> Iterator[None]:
    """Whatever is raised inside, as a FieldError in one line that names the model."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        place = f" {where}" if where else ""
        problem = f"is {_named(settings)}{place}: {kind}{one_line(error)}"
        raise FieldError("model", problem) from error


def _on(sample: Inputs) -> str:
    shapes = jax.tree.map(lambda own: own.shape[1:], sample)
    return f"on inputs of shape {shapes}"


def _named(settings: ModelSettings) -> str:
    given = ", ".join(f"{name}={value}" for name, value in settings.arguments.items())
    return f"{settings.name}({given})" if given else settings.name


def _fields_of(make: Callable[..., nn.Module]) -> dict[str, Any]:
    """The arguments that a configuration may give a network, with their types."""
    bound = len(make.args) if isinstance(make, partial) else 0
    cls: Any = make.func if isinstance(make, partial) else make
    names = [field.name for field in dataclasses.fields(cls) if field.init][bound:]
    hints = type_hints(cls)
    return {name: hints[name] for name in names if name not in ("classes", "parent", "name")}
