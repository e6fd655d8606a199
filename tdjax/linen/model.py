"""The factorised Linen model: the user's own, with some of its layers answered by chains.

Nothing of the user's model is rewritten: a method interceptor, entered inside the model's own
methods, lets a chain of thin layers answer in place of a layer's call.

A plan that was made for another model would meet none of its layers, and the model would run dense.
So what a call finds is held against the plan: each planned layer where it is called, and after the
outermost call of the model's own methods the parameters that it has, or has made.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import flax.linen as nn

from tdjax.linen.fit import check_call, check_params
from tdjax.linen.intercept import Interceptor, dense_class, intercepted_class, rebuilt
from tdjax.linen.kinds import KINDS
from tdjax.params.tree import join_path
from tdjax.plan.plan import Plan

Path = tuple[str, ...]
# Paths of models whose methods are running, in one thread.
Running = ContextVar[frozenset[Path]]


def factorize(model: nn.Module, plan: Plan) -> nn.Module:
    """The model with the layers of the plan factorised: same signature, fewer parameters.

    `init`, `apply` with any method, `TrainState`, `jax.jit` and nesting inside other modules work
    as before. The result is an instance of a subclass of the model's class; equal models with
    equal plans are equal.

    Raises TypeError for something that is not a Linen module, ValueError for a layer that is
    factorised already. The result raises ValueError when it is called with a plan of another model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a flax.linen.Module, got {type(model).__name__}")
    done = getattr(model, "_factorised", ())
    for entry in plan.factorised:
        if entry.layer.path in done:
            raise ValueError(
                f"factorize: layer {entry.layer.path!r} of the model is factorised already: pass "
                "the model that the plan was made for, or make a plan for this one"
            )
    return rebuilt(model, _factorised_class(type(model), plan))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=512)
def _factorised_class(cls: type[nn.Module], plan: Plan) -> type[nn.Module]:
    """A subclass whose methods run inside the interceptor; cached, so that jit caches hold."""
    running: Running = ContextVar("running", default=frozenset())
    made: Any = intercepted_class(cls, functools.partial(_interceptor, plan, running))
    paths = (entry.layer.path for entry in plan.factorised)
    made._factorised = (*getattr(cls, "_factorised", ()), *paths)
    return made


def _interceptor(plan: Plan, running: Running, prefix: Path) -> Interceptor:
    entries = {entry.layer.path: entry for entry in plan.factorised}

    def answer(next_fun: Any, args: Any, kwargs: Any, context: Any, path: Path) -> Any:
        module, method = context.module, context.method_name
        # Inside another model the path is absolute, the plan's is not.
        within = path[: len(prefix)] == prefix
        entry = entries.get(join_path(*path[len(prefix) :])) if within else None
        kind = KINDS.get(dense_class(module))
        if entry is None or kind is None or method not in kind.methods:
            return next_fun(*args, **kwargs)
        check_call(kind, entry, module, method, [*args, *kwargs.values()])
        return kind.methods[method](module, entry, *args, **kwargs)

    def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if module.scope is None:
            return next_fun(*args, **kwargs)
        path = module.path
        if path != prefix or context.method_name == "setup" or path in running.get():
            return answer(next_fun, args, kwargs, context, path)
        with _fitting(plan, running, module, whole=context.method_name == "__call__"):
            return answer(next_fun, args, kwargs, context, path)

    return intercept


@contextmanager
def _fitting(plan: Plan, running: Running, model: Any, *, whole: bool) -> Iterator[None]:
    """Hold the parameters that a model's method is given, or makes, against the plan.

    Arguments:
        running: models whose methods are running: those that they call see a part alone.
        whole: whether the method is the model's own call, which meets all of its layers.
    """
    path = model.path
    before = running.set(running.get() | {path})
    try:
        made = model.is_mutable_collection("params")
        if not made:
            check_params(plan, model.variables.get("params", {}), whole=whole)
        yield
        if made:
            check_params(plan, model.variables.get("params", {}), whole=whole)
    finally:
        running.reset(before)
