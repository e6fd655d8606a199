"""The factorised Linen model: the user's own, with some of its layers answered by chains.

Nothing of the user's model is rewritten: a method interceptor, entered inside the model's own
methods, lets a chain of thin layers answer in place of a layer's call.

A plan that was made for another model would meet none of its layers, and the model would run dense.
So what a call finds is held against the plan: each planned layer where it is called, and after the
outermost call of the model's own methods the parameters that it has, or has made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import flax.linen as nn

from tdjax.compute.convolve import apart
from tdjax.linen import own
from tdjax.linen.fit import check_call, check_params
from tdjax.linen.intercept import Interceptor, changed, changes_of, dense_class
from tdjax.linen.kinds import KINDS
from tdjax.linen.place import Path, Place
from tdjax.linen.watch import Watching, watch
from tdjax.params.storing import full_array
from tdjax.params.tree import join_path
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.shared import relative

# Models whose methods are running, by the key of their place, in one thread.
_running: ContextVar[frozenset[int]] = ContextVar("running", default=frozenset())


def factorize(model: nn.Module, plan: Plan) -> nn.Module:
    """The model with the layers of the plan factorised: same signature, fewer parameters.

    `init`, `apply` with any method, `bind`, `TrainState`, `jax.jit`, pickling and nesting inside
    other modules work as before, and modules taken out of it are factorised too. The result is an
    instance of a subclass of the model's class; equal models with equal plans are equal.

    Raises TypeError for something that is not a Linen module, ValueError for a layer that is
    factorised already. The result raises ValueError when it is called with a plan of another model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a flax.linen.Module, got {type(model).__name__}")
    made = [change for change in changes_of(type(model)) if isinstance(change, Factors)]
    done = {path for change in made for path in change.entries}
    for entry in plan.factorised:
        if entry.layer.path in done:
            raise ValueError(
                f"factorize: layer {entry.layer.path!r} of the model is factorised already: pass "
                "the model that the plan was made for, or make a plan for this one"
            )
    return changed(model, Factors(plan))


@dataclass(frozen=True)
class Factors:
    """Chains of thin layers in place of the layers of a plan; see `tdjax.linen.intercept.Change`.

    Arguments:
        plan: its paths start at the model.
        part: whether the model was taken out of another, whose plan this is a part of.
    """

    plan: Plan
    part: bool = False

    @cached_property
    def entries(self) -> dict[str, PlannedLayer]:
        """The layers that are factorised, by path."""
        return {entry.layer.path: entry for entry in self.plan.factorised}

    @cached_property
    def kept(self) -> frozenset[str]:
        """The paths of the layers that are kept dense."""
        return frozenset(entry.layer.path for entry in self.plan.layers if entry.form is None)

    @cached_property
    def members(self) -> dict[str, list[PlannedLayer]]:
        """Those that are arrays of modules, by the path of the module."""
        found: dict[str, list[PlannedLayer]] = {}
        for path, entry in self.entries.items():
            if entry.layer.is_member:
                found.setdefault(path.rpartition("/")[0], []).append(entry)
        return found

    @cached_property
    def _known(self) -> int:
        return hash((self.plan, self.part))

    def __hash__(self) -> int:
        """As of the fields; asked for at every call, and that of a plan takes its time."""
        return self._known

    @cached_property
    def stored(self) -> dict[str, tuple[str, ...]]:
        """By path of a module, the arrays that are stored in fewer bits than they have."""
        found: dict[str, tuple[str, ...]] = {}
        for entry in self.plan.layers:
            path = entry.layer.path
            if entry.dtype is not None:
                own = {join_path(path, stage.name): ("kernel",) for stage in entry.stages}
                found.update(own or {path: (entry.layer.storage.name,)})
        return found

    def below(self, path: Path) -> Factors | None:
        """The part for a module of the model; None where nothing in it is other than it was."""
        start = join_path(*path)
        changed = [e.layer.path for e in self.plan.layers if e.form is not None or e.dtype]
        if any(own == start or own.startswith(f"{start}/") for own in changed):
            return _part(self.plan, start)
        return None

    def interceptor(self, place: Place) -> Interceptor:
        """Answers the calls of the plan's layers, and holds what it meets against the plan."""

        def refuse(path: Path, name: str) -> None:
            entry = self.entries.get(join_path(*path))
            if entry is not None and name == entry.layer.storage.name:
                raise ValueError(_asked([entry], "by get_variable or has_variable"))

        def read(path: Path, name: str, value: Any) -> Any:
            stored = name in self.stored.get(join_path(*path), ())
            return full_array(value) if stored else value

        watching = Watching(refuse, read)

        def answer(next_fun: Any, args: Any, kwargs: Any, context: Any, path: Path) -> Any:
            module, method = context.module, context.method_name
            entry, kind = self.entries.get(join_path(*path)), KINDS.get(dense_class(type(module)))
            members = self.members.get(join_path(*path))
            if kind is None and members is not None:
                return own.answer_by_members(module, members, method, next_fun, args, kwargs)
            if entry is not None and kind is None and entry.layer.is_own:
                return own.answer(module, entry, method, next_fun, args, kwargs)
            if kind is None or method not in kind.methods:
                return next_fun(*args, **kwargs)
            if entry is None:
                output = next_fun(*args, **kwargs)
                return apart(output) if join_path(*path) in self.kept else output
            check_call(kind, entry, module, method, [*args, *kwargs.values()])
            return apart(kind.methods[method](module, entry, *args, **kwargs))

        def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
            path = place.path_of(context.module)
            if path is None:
                return next_fun(*args, **kwargs)
            watch(context.module, place, watching)
            if path or context.method_name == "setup" or place.key in _running.get():
                return answer(next_fun, args, kwargs, context, path)
            whole = context.method_name == "__call__" and not self.part
            with _fitting(self.plan, place, context.module, whole=whole):
                return answer(next_fun, args, kwargs, context, path)

        return intercept


class PartOfPlan(Plan):
    """The layers of a plan inside one of its modules; they may share factors of others outside."""

    def __post_init__(self) -> None:
        """All was checked of the whole plan."""


@lru_cache(maxsize=1024)
def _part(plan: Plan, start: str) -> Factors:
    """The part of a plan for the module at a path."""
    inside = [
        _below(entry, start)
        for entry in plan.layers
        if (layer := entry.layer).path == start or layer.path.startswith(f"{start}/")
    ]
    return Factors(PartOfPlan(tuple(inside)), part=True)


def _below(entry: PlannedLayer, start: str) -> PlannedLayer:
    """An entry whose paths start at a module; another layer's may lie outside of it."""
    layer, lender = entry.layer, entry.shares
    if lender is not None:
        around = lender.startswith(f"{start}/")
        lender = lender.removeprefix(f"{start}/") if around else relative(layer.path, lender)
    own = replace(layer, path=layer.path.removeprefix(start).removeprefix("/"))
    return replace(entry, layer=own, shares=lender)


@contextmanager
def _fitting(plan: Plan, place: Place, model: Any, *, whole: bool) -> Iterator[None]:
    """Hold the parameters that a model's method is given, or makes, against the plan.

    Arguments:
        place: of the model. Methods that are called by its methods see a part alone.
        whole: whether the method is the model's own call, which meets all of its layers.
    """
    before = _running.set(_running.get() | {place.key})
    try:
        made = model.is_mutable_collection("params")
        if not made:
            check_params(plan, model.variables.get("params", {}), whole=whole)
        with _asking_for_kernels(plan):
            yield
        if made:
            check_params(plan, model.variables.get("params", {}), whole=whole)
    finally:
        _running.reset(before)


@contextmanager
def _asking_for_kernels(plan: Plan) -> Iterator[None]:
    """Say so where the user's code asks for the array of a factorised layer, which is not there.

    What it reads of the values was seen by the plan; a shape leaves nothing in a traced program.
    """
    try:
        yield
    except (KeyError, AttributeError) as error:
        named = [e for e in plan.factorised if _names(error, e.layer.storage.name)]
        if not named:
            raise
        raise ValueError(_asked(named, f"{type(error).__name__}: {error}")) from error


def _asked(entries: Sequence[PlannedLayer], how: str) -> str:
    paths = ", ".join(repr(entry.layer.path) for entry in entries)
    return (
        f"the model's own code asks for the {entries[0].layer.storage.name} of a factorised layer, "
        f"if only for its shape ({how}): leave that layer out of the rules; factorised are {paths}"
    )


def _names(error: Exception, weight: str) -> bool:
    """Whether an error is about an array of that name."""
    return f"'{weight}'" in str(error) or f'"{weight}"' in str(error)
