"""The factorised Linen model: the user's own, with some of its layers answered by chains.

Nothing of the user's model is rewritten: a method interceptor, entered inside the model's own
methods, lets a chain of thin layers answer in place of a layer's call.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from tdjax.linen.intercept import Interceptor, dense_class, intercepted_class, rebuilt
from tdjax.linen.kinds import KINDS
from tdjax.plan.plan import Plan, PlannedLayer


def factorize(model: nn.Module, plan: Plan) -> nn.Module:
    """The model with the layers of the plan factorised: same signature, fewer parameters.

    `init`, `apply` with any method, `TrainState`, `jax.jit` and nesting inside other modules work
    as before. The result is an instance of a subclass of the model's class; equal models with
    equal plans are equal.

    Raises TypeError for something that is not a Linen module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a flax.linen.Module, got {type(model).__name__}")
    return rebuilt(model, _factorised_class(type(model), plan))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=512)
def _factorised_class(cls: type[nn.Module], plan: Plan) -> type[nn.Module]:
    """A subclass whose methods run inside the interceptor; cached, so that jit caches hold."""
    entries = {entry.layer.path: entry for entry in plan.factorised}
    return intercepted_class(cls, functools.partial(_interceptor, entries))


def _interceptor(entries: Mapping[str, PlannedLayer], prefix: tuple[str, ...]) -> Interceptor:
    def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, context.module.path
        # Inside another model the path is absolute, the plan's is not.
        within = path[: len(prefix)] == prefix
        entry = entries.get("/".join(path[len(prefix) :])) if within else None
        kind = KINDS.get(dense_class(module))
        if entry is None or kind is None or context.method_name not in kind.methods:
            return next_fun(*args, **kwargs)
        return kind.methods[context.method_name](module, entry, *args, **kwargs)

    return intercept
