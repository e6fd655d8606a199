"""What users hand to public functions, checked before any work and answered in their words.

The name of an argument says what it has to be, in every function alike: `CHECKS` holds a check for
each name, and for that of a single function where it is stricter. A check returns what is wrong, as
an error that goes on from the argument's name: the thing, then the remedy.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp

from tdjax.arguments import functions, numeric, pruned, refined, trees
from tdjax.arguments.described import described, is_array, is_shape
from tdjax.arguments.models import is_model, kind_in_words
from tdjax.arguments.numeric import Problem
from tdjax.moments.collect import LayerMoments
from tdjax.plan.layers import Layer
from tdjax.plan.plan import Plan
from tdjax.plan.rules import Rule
from tdjax.plan.wishes import BudgetRule, LossRise
from tdjax.timings.timings import Timings
from tdjax.trace.call import split_arrays

Function = TypeVar("Function", bound=Callable[..., Any])
RULES = (Rule, BudgetRule)


def checked(**checks: str) -> Callable[[Function], Function]:
    """A decorator of functions whose arguments are checked by their names, see `CHECKS`.

    Arguments:
        checks: names of other checks, by name of the argument.
    """

    def decorated(function: Function) -> Function:
        signature = inspect.signature(function)
        call = call_text(function.__name__, signature)

        @functools.wraps(function)
        def answer(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            check_arguments(function.__name__, call, given, checks)
            return function(*args, **kwargs)

        return answer  # type: ignore[return-value]

    return decorated


def check_arguments(
    function: str, call: str, given: Mapping[str, Any], checks: Mapping[str, str] | None = None
) -> None:
    """Refuse arguments that cannot be meant.

    Arguments:
        function, call: its name, and how it is called, for messages.
        given: the arguments by name.
        checks: names of other checks than their own, by name.

    Raises TypeError for an argument of a wrong kind, ValueError for one of a wrong value.
    """
    for name, value in given.items():
        own = CHECKS.get(f"{function}.{name}")
        check = own or CHECKS.get((checks or {}).get(name, name))
        problem = None if check is None else check(value)
        if problem is not None:
            raise type(problem)(f"{function}: {name} {problem}; the call is {call}")


def check_moments_fit(layers: Iterable[Layer], moments: Mapping[str, LayerMoments]) -> None:
    """Refuse the moments of another network, with a ValueError that names the layer."""
    known = [layer for layer in layers if layer.obstacle is None and layer.path in moments]
    if moments and not known:
        raise ValueError(
            f"moments: those of {', '.join(moments)} are no layers of this network: "
            "collect them with the model that you pass"
        )
    for layer in known:
        found, (*rows, columns) = moments[layer.path], layer.group_shape
        front = (*((layer.copies,) if layer.storage.stack is not None else ()), layer.groups)
        for array, size in ((found.inputs, math.prod(rows)), (found.outputs, columns)):
            if array is not None and array.shape not in ((*front, size, size), (*front, size)):
                raise ValueError(
                    f"moments: layer {layer.path!r} has one of shape {array.shape}, expected "
                    f"{(*front, size, size)}: are these the moments of another network?"
                )


def call_text(function: str, signature: inspect.Signature) -> str:
    """How a function is called: its arguments without default."""
    given = [p.name for p in signature.parameters.values() if p.default is p.empty]
    return f"{function}({', '.join(given)})"


def check_mapping(function: str, params: Any) -> None:
    """Refuse, with a TypeError, parameters of a model that are no mapping of its layers."""
    if not isinstance(params, Mapping):
        raise TypeError(
            f"{function}: params is {described(params)}: pass variables['params'], or the variables"
        )
    # A dict may hold more than the plan's layers, which is each function's to judge.
    if not isinstance(params, dict) and not _has_names(params):
        raise TypeError(
            f"{function}: params has keys that are no names, as the state of an NNX model with "
            "lists, whose keys are numbers: pass the model to tdjax.factorize or "
            "tdjax.nnx.reconstruct"
        )


def _has_names(tree: Mapping[Any, Any]) -> bool:
    """Whether all keys of nested mappings are strings."""
    return all(
        isinstance(name, str) and (not isinstance(below, Mapping) or _has_names(below))
        for name, below in tree.items()
    )


def _rules(value: Any) -> Problem:
    if isinstance(value, RULES):
        return TypeError(f"is {described(value)}: pass a sequence, (rule,)")
    if isinstance(value, Plan):
        return TypeError("is a Plan, which is made of rules already: pass it to tdjax.factorize")
    if isinstance(value, Mapping) and value and all(isinstance(r, RULES) for r in value.values()):
        return TypeError("is a dict of rules: pass tuple(rules.values())")
    if is_array(value) or isinstance(value, str) or not isinstance(value, Sequence):
        return TypeError(f"is {described(value)}: pass a list or tuple of tdjax.Rule")
    for place, rule in enumerate(value):
        if not isinstance(rule, RULES):
            return TypeError(
                f"holds {described(rule)} at {place}: every entry is a tdjax.Rule(path=..., "
                "method=..., compression=...)"
            )
    return None


def _rules_of_plan(value: Any) -> Problem:
    problem = _rules(value)
    bounds = [] if problem else [rule for rule in value if isinstance(rule, BudgetRule)]
    if bounds:
        return TypeError(
            f"holds a {bounds[0]}, which bounds what tdjax.allocate chooses: pass Rule"
        )
    return problem


def _plan(value: Any) -> Problem:
    if isinstance(value, Plan):
        return None
    if _are_rules(value):
        return TypeError("holds rules: pass the plan that tdjax.make_plan makes of them")
    if isinstance(value, str):
        return TypeError("is a str: pass tdjax.Plan.from_json(text)")
    return TypeError(f"is {described(value)}: pass the plan that tdjax.make_plan makes")


def _plan_or_params(value: Any) -> Problem:
    model = kind_in_words(value)
    if isinstance(value, Plan) or (model is not None and model.held is None):
        return None
    if _are_rules(value):
        return _plan(value)
    if trees.is_train_state(value):
        return trees.check_params(value)
    if not isinstance(value, Mapping):
        return TypeError(f"is {described(value)}: pass a plan, or approximated dense parameters")
    return None


def _plan_or_tree(value: Any) -> Problem:
    return None if trees.holds_arrays(value) else _plan_or_params(value)


def _sample(value: Any) -> Problem:
    if _are_rules(value) or isinstance(value, Plan) or is_model(value):
        what = "rules" if _are_rules(value) else described(value)
        return TypeError(f"is {what}: pass one batch as the model takes it")
    if is_shape(value):
        return TypeError(
            f"is {described(value)}, and a shape is no sample: pass an array, or "
            f"jax.ShapeDtypeStruct({tuple(value)}, jnp.float32)"
        )
    if not split_arrays(value)[0]:
        return TypeError(f"holds no array, it is {described(value)}: pass one batch, or its shapes")
    return None


def _batches(value: Any) -> Problem:
    if is_array(value):
        return TypeError(f"is {described(value)}: pass a list of batches, [x]")
    if isinstance(value, Mapping):
        return TypeError(f"is {described(value)}, which is one batch: pass a list, [batch]")
    other = isinstance(value, (str, Rule, Plan)) or is_model(value)
    if other or not isinstance(value, Iterable):
        return TypeError(f"is {described(value)}: pass a list of batches")
    if isinstance(value, tuple) and _is_one_batch(value):
        return TypeError("is one batch, a tuple of different arrays: pass a list, [(x, y)]")
    if isinstance(value, (list, tuple)) and value and not split_arrays(value[0])[0]:
        return TypeError(f"holds {described(value[0])}: every batch holds an array")
    return None


def _moments(value: Any) -> Problem:
    remedy = "pass what tdjax.collect_moments returned"
    if value is None:
        return None
    if not isinstance(value, Mapping):
        remedy = "pass tdjax.load_moments(path)" if isinstance(value, str) else remedy
        return TypeError(f"is {described(value)}: {remedy}")
    for path, found in value.items():
        if not isinstance(found, LayerMoments):
            return TypeError(f"holds {described(found)} at {path!r}: {remedy}")
    return None


def _measured(value: Any) -> Problem:
    if value is None or (hasattr(value, "groups") and hasattr(value, "together")):
        return None
    return TypeError(f"is {described(value)}: pass what tdjax.measure_rises returned")


def _timings(value: Any) -> Problem:
    if value is None or isinstance(value, Timings):
        return None
    if isinstance(value, (str, Path)):
        return TypeError(f"is {described(value)}: pass tdjax.Timings.load(path)")
    return TypeError(f"is {described(value)}: pass what tdjax.time_layers returned")


def _methods(value: Any) -> Problem:
    if isinstance(value, str):
        return TypeError(f"is a str: pass a sequence, ({value!r},)")
    if not isinstance(value, Sequence):
        return TypeError(f"is {described(value)}: pass a sequence of names")
    return None


def _key(value: Any) -> Problem:
    if value is None or is_array(value):
        return None
    seed = value if isinstance(value, int) else 0
    return TypeError(f"is {described(value)}: pass jax.random.key({seed})")


def _method(value: Any) -> Problem:
    if value is None or callable(value) or isinstance(value, str):
        return None
    return TypeError(
        f"is {described(value)}: pass the name of a method of the model, or a function of the "
        "model and the inputs"
    )


def _target(value: Any) -> Problem:
    if value is None or isinstance(value, LossRise):
        return None
    number = value if isinstance(value, float) else 0.05
    return TypeError(f"is {described(value)}: pass tdjax.LossRise({number:g})")


def _progress(value: Any) -> Problem:
    if isinstance(value, bool) or callable(value):
        return None
    return TypeError(f"is {described(value)}: pass True, False, or a function of a line of text")


def _path(value: Any) -> Problem:
    if isinstance(value, str):
        return None
    return TypeError(f"is {described(value)}: pass the '/'-joined path of a layer")


CHECKS: Mapping[str, Callable[[Any], Problem]] = {
    "variables": trees.check_variables,
    "params": trees.check_params,
    "rules": _rules,
    "make_plan.rules": _rules_of_plan,
    "plan": _plan,
    "plan_or_params": _plan_or_params,
    # Of functions, whose parameters are any pytree.
    "tree": trees.check_tree,
    "plan_or_tree": _plan_or_tree,
    "sample": _sample,
    "batches": _batches,
    "moments": _moments,
    "measured": _measured,
    "measure_rises.loss_fn": functions.check_loss_to_measure,
    "measure_rises.groups": pruned.check_paths,
    "timings": _timings,
    "batch": numeric.whole_or_none(1),
    "methods": _methods,
    "loss_fn": functions.check_loss,
    "metric_fn": functions.check_metric,
    "row_weights": functions.check_row_weights,
    "key": _key,
    "budget": numeric.budget,
    "budgets": numeric.budgets,
    "multiple_of": numeric.whole(1),
    "time_layers.rounds": numeric.whole(1),
    "target": _target,
    "progress": _progress,
    "method": _method,
    "path": _path,
    "max_iters": numeric.whole(0),
    "tol": numeric.tolerance,
    "seed": numeric.seed,
    "splits": numeric.splits,
    "chunk": numeric.whole(1),
    "memory": numeric.whole(1),
    "iterations": numeric.whole(1),
    "paths": pruned.check_paths,
    "layers": pruned.check_layers,
    "chain": pruned.check_chain,
    "mask": pruned.check_mask,
    "share": pruned.check_share,
    "augment": functions.check_augment,
    "factorize_sequentially.blocks": refined.check_blocks,
    "collect_moments.temperature": refined.positive,
    **refined.CHECKS,
}


def _are_rules(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if not isinstance(value, (list, tuple)):
        return isinstance(value, RULES)
    return bool(value) and all(isinstance(rule, RULES) for rule in value)


def _is_one_batch(value: tuple[Any, ...]) -> bool:
    """Whether the arrays of a tuple differ as those of one batch do, inputs and labels."""
    arrays = [is_array(entry) for entry in value]
    if not all(arrays):
        # Inputs in a dict or a tuple, and labels.
        return any(arrays)
    return len({(len(a.shape), jnp.issubdtype(a.dtype, jnp.floating)) for a in value}) > 1
