"""Outputs of a layer with its own kernel and with another, from inside the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from tdjax.arguments.called import Method, call_model
from tdjax.linen.intercept import Interceptor, apply_inside
from tdjax.linen.place import Place
from tdjax.params.factorize import weight_name
from tdjax.params.tree import layer_params, split_path
from tdjax.trace.call import call_arguments

# A variable collection that carries other kernels into a model and pairs of outputs out of it.
COMPARED = "tdjax_compared"


def layer_outputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    kernels: Mapping[str, Float[Array, "*_"]],
    inputs: Any,
    method: Method = None,
) -> dict[str, list[tuple[Array, Array]]]:
    """Outputs of some layers with their own kernel and with another, on the same layer input.

    The model itself runs unchanged, so each layer is judged alone. A layer called several times
    gives several pairs.

    Arguments:
        kernels: for each path the other kernel.
        inputs, method: one batch, and how the model is called on it, see `tdjax.make_plan`.
    """
    params = variables["params"]
    names = {path: weight_name(layer_params(params, path)) or "kernel" for path in kernels}
    others = unflatten_dict({(*split_path(path), names[path]): k for path, k in kernels.items()})
    args, kwargs = call_arguments(inputs)
    call = partial(call_model, method=method, args=args, kwargs=kwargs)
    given = {**variables, COMPARED: others}
    # As what the model's training mode updates; where anything may change,
    # `nn.map_variables(init=True)` of Flax asks that parameters may.
    _, found = apply_inside(model, _comparing, given, call, mutable=True)
    return {path: list(layer_params(found[COMPARED], path).get("pairs", ())) for path in kernels}


def _comparing(place: Place) -> Interceptor:
    """An interceptor that lets layers keep pairs of outputs."""

    def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, output = context.module, next_fun(*args, **kwargs)
        if context.method_name not in ("__call__", "attend") or place.path_of(module) is None:
            return output
        # Variables reach a layer, and leave it, through `nn.jit` and `nn.remat` too.
        name = weight_name(module.variables.get(COMPARED, {}))
        if name is not None:
            own = {**module.variables["params"], name: module.get_variable(COMPARED, name)}
            other = module.clone(parent=None, name=None).apply(
                {"params": own}, *args, **kwargs, method=context.method_name
            )
            module.sow(COMPARED, "pairs", (output, other))
        return output

    return intercept
