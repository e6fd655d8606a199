"""The problem of a network, every name about it checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
from jaxtyping import Array

from tdjax.allocation.choices import (
    COSTS,
    KNOWN,
    TIME,
    ChoiceOptions,
    RankBounds,
    check_known,
)
from tdjax.allocation.clock import clock_of
from tdjax.allocation.problem import Problem, Rules, pose
from tdjax.allocation.rounding import ROUNDED
from tdjax.hints import known_are
from tdjax.moments.collect import LayerMoments
from tdjax.plan.costs import BYTES
from tdjax.plan.dtypes import DTYPES, FLOAT32
from tdjax.plan.form import METHODS
from tdjax.plan.layers import Inventory
from tdjax.plan.wishes import LossRise
from tdjax.progress import Progress
from tdjax.timings.timings import Timings

STRATEGIES = tuple(KNOWN)
OBJECTIVES = ("bound", "released")
# As many as are weighed against each other.
MOST_LIMITS = 2


def posed(
    model: Inventory,
    costs: tuple[str, ...],
    strategy: str,
    methods: Sequence[str],
    moments: Mapping[str, LayerMoments] | None,
    *,
    splits: Sequence[int] | None = None,
    objective: str = "bound",
    rules: Rules = (),
    multiple_of: int = 1,
    dtypes: Sequence[str] | None = None,
    key: Array | None = None,
    timings: Timings | None = None,
    progress: Progress = False,
) -> Problem:
    """The problem of a network, all names checked; see `tdjax.allocate`."""
    named = [("strategy", strategy, STRATEGIES), ("objective", objective, OBJECTIVES)]
    for name, value, values in [*named, *(("cost", cost, COSTS) for cost in costs)]:
        if value not in values:
            raise ValueError(f"allocate: {name} {value!r}: {known_are(value, values)}")
    if len(costs) > MOST_LIMITS:
        raise ValueError(f"allocate: budget of {', '.join(costs)}: two limits at most; leave one")
    if TIME in costs and timings is None:
        raise ValueError("allocate: time needs timings of the layers; tdjax.time_layers gives them")
    options = ChoiceOptions(
        costs,
        _methods(methods, strategy),
        None if splits is None else tuple(splits),
        RankBounds(multiple_of=int(multiple_of)),
        objective,
        jax.random.key(0) if key is None else key,
        clock=None if timings is None else clock_of(timings, model.layers),
        dtypes=_dtypes(dtypes, strategy, costs, timed=timings is not None),
    )
    if BYTES in costs:
        _check_float32(model)
    return pose(model, strategy, options, rules, moments, progress)


def strategy_of(strategy: str | None, target: LossRise | None) -> str:
    """The strategy, or the one that is meant where none is named."""
    return strategy or ("energy" if target is None else "loss")


def _methods(methods: Sequence[str], strategy: str) -> tuple[str, ...]:
    """The methods that a strategy chooses from: of all there are those that it knows."""
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"allocate: methods {method!r}: {known_are(method, METHODS)}")
    if not methods:
        raise ValueError("allocate: methods must name at least one")
    if set(methods) == set(METHODS):
        return tuple(method for method in methods if method in KNOWN[strategy])
    check_known("methods", strategy, methods)
    return tuple(methods)


def _dtypes(
    dtypes: Sequence[str] | None, strategy: str, costs: Sequence[str], *, timed: bool
) -> tuple[str, ...]:
    """The numbers that layers may be stored in, checked; None for all that go."""
    if dtypes is None:
        known = BYTES in costs and strategy in ROUNDED and not timed
        return DTYPES if known else (FLOAT32,)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"allocate: dtypes {dtype!r}: {known_are(dtype, DTYPES)}")
    if not dtypes:
        raise ValueError("allocate: dtypes must name at least one")
    if tuple(dtypes) == (FLOAT32,):
        return (FLOAT32,)
    if BYTES not in costs:
        raise ValueError(
            f"allocate: dtypes {', '.join(dtypes)}, but no bytes are counted: pass cost='bytes'"
        )
    if strategy not in ROUNDED:
        raise ValueError(
            f"allocate: strategy {strategy!r} does not know what rounding loses: leave out dtypes, "
            f"or take {' or '.join(map(repr, ROUNDED))}"
        )
    if timed:
        raise ValueError("allocate: timings are those of float32: leave out dtypes or timings")
    return tuple(dict.fromkeys(dtypes))


def _check_float32(model: Inventory) -> None:
    """Refuse a network whose bytes are not those of float32."""
    for layer in model.layers:
        dtype = getattr(model.array_of(layer), "dtype", None) if layer.obstacle is None else None
        if dtype is not None and str(dtype) != FLOAT32:
            raise ValueError(
                f"allocate: layer {layer.path!r} holds {dtype}: bytes are counted of networks in "
                "float32"
            )
