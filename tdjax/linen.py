"""The adapter to flax.linen: layer table, plan, and the factorised model.

Nothing of the user's model is rewritten: a method interceptor, entered inside the model's own
methods, lets a chain of thin Flax layers answer in place of a layer's call.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from tdjax.chain import Stage
from tdjax.factorize import layer_params
from tdjax.layers import Layer
from tdjax.plan import Plan, PlannedLayer, Rule, plan_layers

KINDS: dict[type, str] = {nn.Conv: "conv", nn.Dense: "dense"}

# A variable collection that carries other kernels into a model and pairs of outputs out of it.
COMPARED = "tdjax_compared"

Interceptor = Callable[[Callable[..., Any], Any, Any, Any], Any]

_passes = itertools.count()


def make_plan(
    model: nn.Module, variables: Mapping[str, Any], rules: Sequence[Rule], sample: Any
) -> Plan:
    """Decide for every layer of a Linen model which format it gets, from shapes alone.

    Arguments:
        model: any Linen module; nothing in it needs to know of this library.
        variables: as `model.init` returns them; arrays or shapes.
        rules: the first whose path matches a layer decides; see `tdjax.Rule`.
        sample: one batch as the model takes it, arrays or shapes: the input, a tuple of
            positional or a dict of keyword arguments. The first axis is the batch.

    Raises ValueError for a rule that matches no layer or asks for ranks out of range, TypeError
    for something that is not a Linen module.
    """
    table = layer_table(model, variables, sample)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    return plan_layers(table, rules, total - sum(layer.size for layer in table))


def layer_table(model: nn.Module, variables: Mapping[str, Any], sample: Any) -> tuple[Layer, ...]:
    """All modules of a model that hold a weight array, in the order in which they are called.

    No arithmetic is done: the model is traced with shapes. Arguments and errors as `make_plan`.
    Modules that cannot be factorised are listed with the obstacle.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a flax.linen.Module, got {type(model).__name__}")
    if any(map(_is_boxed, jax.tree.leaves(variables, is_leaf=_is_boxed))):
        raise ValueError("the variables carry axis metadata; pass flax.linen.meta.unbox(variables)")
    args, kwargs = call_arguments(sample)
    arrays, frame = split_arrays((args, kwargs))
    batch = next((leaf.shape[0] for leaf in arrays if leaf.shape), 1)
    shapes = jax.eval_shape(lambda: variables)
    seen: dict[str, Layer] = {}

    def record(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        output = next_fun(*args, **kwargs)
        if context.method_name == "__call__" and _owns_weights(shapes["params"], module.path):
            path = "/".join(module.path)
            inputs = (*args, *kwargs.values())[0] if type(module) in KINDS else None
            layer = _describe(module, path, shapes["params"], inputs, output, batch)
            seen[path] = _called_again(seen[path], layer) if path in seen else layer
        return output

    def trace(variables: Any, arrays: Any) -> None:
        args, kwargs = frame.join(arrays)
        # Other streams fall back to "params"; nothing is drawn here.
        rngs = {name: jax.random.key(0) for name in ("dropout", "params")}
        # All collections may change; the name of no collection is new every time, which makes
        # `nn.jit` in the model trace again, and the calls inside it show.
        mutable = nn.DenyList(f"tdjax_{next(_passes)}")
        with nn.intercept_methods(record):
            model.apply(variables, *args, **kwargs, rngs=rngs, mutable=mutable)

    jax.eval_shape(trace, variables, arrays)
    for path in _weight_owners(shapes["params"]):
        if path not in seen:
            seen[path] = _unsupported(path, shapes["params"], "a module", "was not called")
    return tuple(seen.values())


def factorize(model: nn.Module, plan: Plan) -> nn.Module:
    """The model with the layers of the plan factorised: same signature, fewer parameters.

    `init`, `apply` with any method, `TrainState`, `jax.jit` and nesting inside other modules work
    as before. The result is an instance of a subclass of the model's class; equal models with
    equal plans are equal.

    Raises TypeError for something that is not a Linen module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a flax.linen.Module, got {type(model).__name__}")
    values = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.init and field.name != "parent"
    }
    return _factorised_class(type(model), plan)(**values)  # type: ignore[arg-type]


def layer_outputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    kernels: Mapping[str, Float[Array, "*_"]],
    inputs: Any,
) -> dict[str, list[tuple[Array, Array]]]:
    """Outputs of some layers with their own kernel and with another, on the same layer input.

    The model itself runs unchanged, so each layer is judged alone. A layer called several times
    gives several pairs.

    Arguments:
        kernels: for each path the other kernel.
        inputs: one batch, see `make_plan`.
    """

    def compare(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        output = next_fun(*args, **kwargs)
        # Variables reach a layer, and leave it, through `nn.jit` and `nn.remat` too.
        if context.method_name == "__call__" and module.has_variable(COMPARED, "kernel"):
            own = {**module.variables["params"], "kernel": module.get_variable(COMPARED, "kernel")}
            other = module.clone(parent=None, name=None).apply({"params": own}, *args, **kwargs)
            module.sow(COMPARED, "pairs", (output, other))
        return output

    others = unflatten_dict(
        {(*path.split("/"), "kernel") if path else ("kernel",): k for path, k in kernels.items()}
    )
    args, kwargs = call_arguments(inputs)
    with nn.intercept_methods(compare):
        _, found = model.apply({**variables, COMPARED: others}, *args, **kwargs, mutable=[COMPARED])
    return {path: list(layer_params(found[COMPARED], path).get("pairs", ())) for path in kernels}


def call_arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a model call from one batch, see `make_plan`."""
    if isinstance(sample, Mapping):
        return (), dict(sample)
    return (tuple(sample), {}) if isinstance(sample, tuple) else ((sample,), {})


@dataclasses.dataclass(frozen=True)
class Frame:
    """A pytree without its arrays; hashable where the leaves that are left are.

    Arguments:
        structure: of the whole.
        leaves: in order, None in place of each array.
        places: where the arrays belong.
    """

    structure: Any
    leaves: tuple[Any, ...]
    places: tuple[int, ...]

    def join(self, arrays: Sequence[Any]) -> Any:
        """The pytree with `arrays` in their places."""
        whole = list(self.leaves)
        for place, array in zip(self.places, arrays, strict=True):
            whole[place] = array
        return jax.tree.unflatten(self.structure, whole)


def split_arrays(tree: Any) -> tuple[list[Any], Frame]:
    """The arrays (or shapes) of a pytree, and the rest: a flag `train=False` is not traced."""
    leaves, structure = jax.tree.flatten(tree)
    places = tuple(k for k, leaf in enumerate(leaves) if hasattr(leaf, "shape"))
    rest = tuple(None if k in places else leaf for k, leaf in enumerate(leaves))
    return [leaves[place] for place in places], Frame(structure, rest, places)


@functools.lru_cache(maxsize=512)
def _factorised_class(cls: type[nn.Module], plan: Plan) -> type[nn.Module]:
    """A subclass whose methods run inside the interceptor; cached, so that jit caches hold."""
    entries = {entry.layer.path: entry for entry in plan.factorised}
    methods = {name: _inside(method, entries) for name, method in _own_methods(cls).items()}
    # Here for functions given as `method`, which call submodules outside the model's methods.
    for name in ("apply", "init_with_output"):
        methods[name] = _inside(getattr(cls, name), entries)
    about = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), {**methods, **about, "_dense_class": cls})


def _own_methods(cls: type[nn.Module]) -> dict[str, Callable[..., Any]]:
    """The methods that the user's classes define, those that Flax calls or hides left out."""
    found: dict[str, Callable[..., Any]] = {}
    bases = set(nn.Module.__mro__)
    for base in reversed([base for base in cls.__mro__ if base not in bases]):
        for name, value in vars(base).items():
            hidden = name == "setup" or (name.startswith("__") and name != "__call__")
            if inspect.isfunction(value) and not hidden and not hasattr(value, "nowrap"):
                found[name] = value
    return found


def _inside(method: Callable[..., Any], entries: Mapping[str, PlannedLayer]) -> Callable[..., Any]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Without a scope the model is the root of what it calls.
        prefix = () if self.scope is None else self.path
        with nn.intercept_methods(_interceptor(entries, prefix)):
            return method(self, *args, **kwargs)

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    # What jit wrappers and readers ask for; `__wrapped__` would pass on Flax's compact mark.
    call.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    # The method itself is known to Flax, and would be seen twice.
    return nn.nowrap(call)


def _interceptor(entries: Mapping[str, PlannedLayer], prefix: tuple[str, ...]) -> Interceptor:
    def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, context.module.path
        # Inside another model the path is absolute, the plan's is not.
        within = path[: len(prefix)] == prefix
        entry = entries.get("/".join(path[len(prefix) :])) if within else None
        if entry is None or _class(module) not in KINDS or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        return _run_chain(module, entry.stages, *args, **kwargs)

    return intercept


def _class(module: nn.Module) -> type:
    """The class of a module; of a factorised one, that of the model it was made of."""
    return getattr(module, "_dense_class", type(module))


def _run_chain(module: Any, chain: Sequence[Stage], inputs: Array) -> Array:
    """Call the thin layers in place of a Conv or Dense; they live in its scope."""
    x = inputs
    for stage in chain:
        x = _thin_layer(module, stage)(x)
    if module.use_bias:
        shape = (module.features,)
        bias = module.param("bias", module.bias_init, shape, module.param_dtype)
        x, bias = module.promote_dtype(x, bias, dtype=module.dtype)
        x = x + bias
    return x


def _thin_layer(module: Any, stage: Stage) -> nn.Module:
    shared = {
        "features": stage.kernel_shape[-1],
        "use_bias": False,
        "dtype": module.dtype,
        "param_dtype": module.param_dtype,
        "precision": module.precision,
        "kernel_init": module.kernel_init,
        "promote_dtype": module.promote_dtype,
        "name": stage.name,
    }
    if _class(module) is nn.Dense:
        return nn.Dense(
            **shared, dot_general=module.dot_general, dot_general_cls=module.dot_general_cls
        )
    window = stage.kernel_shape[:-2]

    def on_axes(value: int | Sequence[int] | None) -> tuple[int, ...]:
        sizes = (value or 1,) * len(window) if not isinstance(value, Sequence) else value
        return tuple(size if axis in stage.axes else 1 for axis, size in enumerate(sizes))

    return nn.Conv(
        **shared,
        kernel_size=window,
        strides=on_axes(module.strides),
        padding=_stage_padding(module.padding, stage, len(window)),
        input_dilation=on_axes(module.input_dilation),
        kernel_dilation=on_axes(module.kernel_dilation),
        feature_group_count=stage.groups,
        conv_general_dilated=module.conv_general_dilated,
        conv_general_dilated_cls=module.conv_general_dilated_cls,
    )


def _stage_padding(padding: Any, stage: Stage, axes: int) -> Any:
    # A named padding adds nothing along an axis of window 1 and stride 1.
    if isinstance(padding, str):
        return padding
    pairs = [padding] * axes if isinstance(padding, int) else list(padding)
    return [
        ((pair, pair) if isinstance(pair, int) else tuple(pair)) if axis in stage.axes else (0, 0)
        for axis, pair in enumerate(pairs)
    ]


def _describe(module: Any, path: str, params: Any, inputs: Any, output: Any, batch: int) -> Layer:
    """One entry of the layer table from a call that was traced."""
    if type(module) not in KINDS:
        return _unsupported(path, params, type(module).__name__, "is not supported")
    own = layer_params(params, path)
    kernel = own["kernel"]
    groups = getattr(module, "feature_group_count", 1)
    window = getattr(module, "kernel_size", ())
    window = (window,) if isinstance(window, int) else tuple(window)
    expected = (*window, inputs.shape[-1] // groups, module.features)
    spatial = len(window)
    positions = math.prod(output.shape[: output.ndim - spatial - 1]) // max(batch, 1)
    obstacle = None
    if tuple(kernel.shape) != expected:
        obstacle = f"its kernel has shape {tuple(kernel.shape)}, a stack of {expected}"
    elif getattr(module, "mask", None) is not None:
        obstacle = "its kernel is masked"
    return Layer(
        path,
        KINDS[type(module)],
        tuple(kernel.shape),
        groups=groups,
        in_spatial=tuple(inputs.shape[-spatial - 1 : -1]) if spatial else (),
        out_spatial=tuple(output.shape[-spatial - 1 : -1]) if spatial else (),
        positions=max(positions, 1),
        other=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(own)) - math.prod(kernel.shape),
        obstacle=obstacle,
    )


def _called_again(known: Layer, layer: Layer) -> Layer:
    """The entry of a layer that was met before."""
    # A transformed class calls the plain one, and `nn.scan` traces more than once.
    if layer.obstacle is not None or layer.kind != known.kind:
        return known
    return dataclasses.replace(known, positions=known.positions + layer.positions)


def _unsupported(path: str, params: Any, kind: str, why: str) -> Layer:
    arrays = [leaf for leaf in layer_params(params, path).values() if _is_weight(leaf)]
    largest = max(arrays, key=lambda leaf: math.prod(leaf.shape))
    return Layer(path, kind, tuple(largest.shape), obstacle=f"{kind} {why}")


def _owns_weights(params: Any, path: Sequence[str]) -> bool:
    try:
        own = layer_params(params, "/".join(path))
    except KeyError:
        return False
    return isinstance(own, Mapping) and any(_is_weight(leaf) for leaf in own.values())


def _weight_owners(params: Any, path: tuple[str, ...] = ()) -> list[str]:
    if not isinstance(params, Mapping):
        return []
    own = ["/".join(path)] if any(_is_weight(leaf) for leaf in params.values()) else []
    return own + [p for name, sub in params.items() for p in _weight_owners(sub, (*path, name))]


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata)


def _is_weight(leaf: Any) -> bool:
    return not isinstance(leaf, Mapping) and len(getattr(leaf, "shape", ())) >= 2
