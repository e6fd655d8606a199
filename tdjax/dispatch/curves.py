"""What a model is predicted to lose at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import flax.linen as nn
import jax
from flax import nnx

from tdjax.allocation.choices import PREFERRED
from tdjax.allocation.limits import Budget
from tdjax.allocation.problem import Rules
from tdjax.allocation.several import BudgetCurve
from tdjax.allocation.several import budget_curve as curve_of
from tdjax.arguments.called import Method
from tdjax.arguments.checks import check_moments_fit
from tdjax.decompose.meshes import on_any_mesh
from tdjax.dispatch.clocks import Called, clocked
from tdjax.dispatch.models import on_models, room_of, with_arrays
from tdjax.moments.collect import LayerMoments
from tdjax.progress import Progress
from tdjax.timings.timings import Timings

Variables = Mapping[str, Any]


@overload
def budget_curve(
    model: nn.Module,
    variables: Variables,
    sample: Any,
    budgets: Sequence[Budget],
    *,
    moments: Mapping[str, LayerMoments],
    cost: str | None = ...,
    methods: Sequence[str] = ...,
    rules: Rules = ...,
    multiple_of: int = ...,
    dtypes: Sequence[str] | None = ...,
    seed: int = ...,
    batch: int | None = ...,
    timings: Timings | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> BudgetCurve: ...


@overload
def budget_curve(
    model: nnx.Module,
    sample: Any,
    budgets: Sequence[Budget],
    *,
    moments: Mapping[str, LayerMoments],
    cost: str | None = ...,
    methods: Sequence[str] = ...,
    rules: Rules = ...,
    multiple_of: int = ...,
    dtypes: Sequence[str] | None = ...,
    seed: int = ...,
    batch: int | None = ...,
    timings: Timings | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> BudgetCurve: ...


@overload
def budget_curve(
    model: Callable[..., Any],
    params: Any,
    sample: Any,
    budgets: Sequence[Budget],
    *,
    moments: Mapping[str, LayerMoments],
    cost: str | None = ...,
    methods: Sequence[str] = ...,
    rules: Rules = ...,
    multiple_of: int = ...,
    dtypes: Sequence[str] | None = ...,
    seed: int = ...,
    batch: int | None = ...,
    timings: Timings | None = ...,
    progress: Progress = ...,
) -> BudgetCurve: ...


@on_models
@on_any_mesh
def budget_curve(
    model: Any,
    variables: Any,
    sample: Any,
    budgets: Sequence[Budget],
    *,
    moments: Mapping[str, LayerMoments],
    cost: str | None = None,
    methods: Sequence[str] = PREFERRED,
    rules: Rules = (),
    multiple_of: int = 1,
    dtypes: Sequence[str] | None = None,
    seed: int = 0,
    batch: int | None = None,
    timings: Timings | None = None,
    progress: Progress = True,
    method: Method = None,
) -> BudgetCurve:
    """The predicted rise of the loss against size, with the plan for each of several budgets.

    `budget_curve(model, variables, sample, budgets, moments=moments)` for Linen,
    `budget_curve(model, sample, budgets, moments=moments)` for NNX, as for Linen with a function
    and its parameters. The plans are those of
    `tdjax.allocate` with strategy "loss", each budget a limit that need not be used up; what the
    choices of the layers lose is measured once for all of them.

        >>> import jax, jax.numpy as jnp, tdjax
        >>> from flax import nnx
        >>> model = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (1000, 64))
        >>> moments = tdjax.collect_moments(model, [x], loss_fn=lambda y, batch: (y**2).sum(axis=1))
        >>> curve = tdjax.budget_curve(model, x, (0.4, 0.6, 0.8), moments=moments)
        >>> curve.params.tolist(), bool((curve.rises[:-1] > curve.rises[1:]).all())
        ([1600, 2496, 3264], True)

    Arguments:
        model, variables, params, sample, method: as for `tdjax.make_plan`.
        budgets: each as for `tdjax.allocate`, and all of them counting the same.
        moments: from `tdjax.collect_moments` with a `loss_fn`, in whose units the rises are.
        cost, methods, rules, multiple_of, dtypes, seed, batch, timings, progress: as for
            `tdjax.allocate`; time is measured once for all budgets.

    Returns: `tdjax.allocation.several.BudgetCurve`: `params`, `macs`, `bytes` and `rises`, arrays
    in the order of the budgets, `plans`, and with timings their `seconds`.

    Raises as `tdjax.allocate`.
    """
    inventory = room_of(model).inventory(*with_arrays(model, variables), sample, method=method)
    check_moments_fit(inventory.layers, moments)
    choices: dict[str, Any] = {"methods": methods, "moments": moments, "rules": rules}
    choices |= {"multiple_of": multiple_of, "dtypes": dtypes}
    asked, cost, timings = clocked(
        "budget_curve", Called(model, variables, sample, method, inventory), budgets, cost,
        batch=batch, timings=timings, strategy="loss", choices=choices, progress=progress,
    )  # fmt: skip
    return curve_of(
        inventory, asked, cost=cost, timings=timings, key=jax.random.key(seed), progress=progress,
        **choices,
    )  # fmt: skip
