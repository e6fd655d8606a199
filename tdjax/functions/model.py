"""The factorised function: the user's own program, with chains in place of some products."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from tdjax.compute.convolve import (
    apart,
    dense_kernel,
    is_forced,
    reconstructs,
    stage_convolution,
    widened,
    with_zeros,
)
from tdjax.functions.chains import Whole
from tdjax.functions.evaluate import evaluate
from tdjax.functions.held import Factorised, is_held
from tdjax.functions.place import Product
from tdjax.functions.program import Apply, program_of
from tdjax.functions.read import form_of, is_attending
from tdjax.functions.sides import Side
from tdjax.params.arrays import reconstruct_array, reconstruct_kernel, stack_axes
from tdjax.params.check import factor_problems
from tdjax.params.leaves import LeafTree, of_leaves, tree_of_plan
from tdjax.params.storing import in_full
from tdjax.plan.layers import CONVOLUTIONS, LEAF
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.trace.call import split_arrays
from tdjax.trace.programs import bind
from tdjax.trace.views import view_of


def factorize(apply: Apply, plan: Plan) -> FactorisedFunction:
    """The function with the arrays of a plan factorised: small(factors, *inputs).

    Safe inside `jax.jit`, `jax.grad` and `jax.vmap`; compiled once for inputs of equal shapes.

    Raises ValueError for a plan that was not made for a function.
    """
    if plan.layers and not of_leaves(plan):
        raise ValueError(
            "factorize: the plan is one of a model's layers, not of a function's arrays: make it "
            "by tdjax.make_plan(apply_fn, params, rules, sample)"
        )
    try:
        return _known(apply, plan)
    except TypeError:
        # A function without a hash.
        return FactorisedFunction(apply, plan)


class FactorisedFunction:
    """A function of factors and inputs; see `factorize`.

    Attributes:
        function: of parameters and inputs, which it computes.
        plan: its arrays that are factorised.
    """

    def __init__(self, function: Apply, plan: Plan) -> None:
        """Nothing is traced yet."""
        self.function = function
        self.plan = plan
        self._programs: dict[Any, Callable[[Any], Any]] = {}

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """What the function returns.

        Arguments:
            params: as `tdjax.factorize_params` gives them.
            args, kwargs: as the function takes them; what is no array is static.

        Raises ValueError for parameters without the factors of the plan, and for inputs with which
        the function uses a factorised array otherwise than the plan has it.
        """
        arrays, frame = split_arrays((params, args, kwargs))

        def run(arrays: Sequence[Any]) -> Any:
            params, args, kwargs = frame.join(arrays)
            return evaluated(self.function, self.plan, params, args, kwargs)

        try:
            known = self._programs.setdefault((frame, is_forced()), jax.jit(run))
        except TypeError:
            # Something static has no hash.
            known = run
        return known(arrays)

    def __reduce__(self) -> Any:
        """For pickle and copies: it is made again."""
        return factorize, (self.function, self.plan)

    def __repr__(self) -> str:
        """The function, and how many of its arrays are factorised."""
        return f"<{self.function!r} with {len(self.plan.factorised)} arrays factorised>"


_known = functools.lru_cache(maxsize=256)(FactorisedFunction)


def evaluated(
    function: Apply, plan: Plan, params: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """What a function of parameters and inputs returns, of the factors of a plan.

    Arguments and errors as `FactorisedFunction`.
    """
    tree = tree_of_plan(params, plan)
    entries = {entry.layer.path: entry for entry in plan.factorised}
    _check(tree, entries)
    if any(entry.dtype for entry in plan.layers):
        tree = tree_of_plan(tree.filled(in_full(tree.mapping, plan), plan), plan)
    dense = [
        _shape(leaf, entries[path]) if path in entries else leaf
        for path, leaf in zip(tree.paths, tree.leaves, strict=True)
    ]
    program = program_of(function, jax.tree.unflatten(tree.structure, dense), args, kwargs)
    factors = dict(zip(tree.paths, tree.leaves, strict=True))
    held = [
        _held(factors[path], entries[path], place) if path in entries else array
        for place, (path, array) in enumerate(program.arrays.items())
    ]
    results = evaluate(program.jaxpr, [*held, *program.inputs], _Chains())
    return jax.tree.unflatten(jax.tree.structure(program.outputs), results)


def _check(tree: LeafTree, entries: Mapping[str, PlannedLayer]) -> None:
    """Refuse parameters without the factors of a plan."""
    leaves = dict(zip(tree.paths, tree.leaves, strict=True))
    for path, entry in entries.items():
        problem = " is not among the parameters"
        if path in leaves:
            own = leaves[path]
            found = factor_problems(own if isinstance(own, Mapping) else {LEAF: own}, entry)
            problem = next(found, "")
        if problem:
            raise ValueError(
                f"layer {path!r}{problem}: pass what tdjax.factorize_params(params, plan) returns"
            )


def _shape(factors: Mapping[str, Any], entry: PlannedLayer) -> jax.ShapeDtypeStruct:
    """Of the array that factors stand for."""
    dtype = factors[entry.stages[0].name]["kernel"].dtype
    return jax.ShapeDtypeStruct(entry.layer.storage.whole_shape, dtype)


def _held(factors: Mapping[str, Any], entry: PlannedLayer, place: int) -> Factorised:
    kernels = {stage.name: jnp.asarray(factors[stage.name]["kernel"]) for stage in entry.stages}
    return Factorised(kernels, entry, view_of(place, entry.layer.storage.whole_shape))


class _Chains:
    """Lets chains take the place of products; see `tdjax.functions.evaluate.Policy`."""

    def product(
        self, held: Factorised, product: Product, eqn: JaxprEqn, reads: Sequence[Any]
    ) -> Any:
        """See `Policy.product`."""
        entry, attends = held.entry, is_attending(held.entry.layer, product)
        if not attends and form_of(product.layer) != form_of(entry.layer):
            raise _otherwise(held, f"by {eqn.primitive.name} in another way")

        def multiply(rows: Array, kernels: Mapping[str, Array]) -> Array:
            return _multiplied(product, entry, kernels, rows, attends)

        at = product.batch
        if at is not None:
            multiply = jax.vmap(multiply, in_axes=(at, stack_axes(entry)), out_axes=at)
        return product.result(apart(multiply(product.rows(reads), held.kernels)))

    def plain(self, eqn: JaxprEqn, results: Sequence[Any]) -> Sequence[Any]:
        """See `Policy.plain`: convolutions that stay dense are computed apart."""
        kept = eqn.primitive.name == "conv_general_dilated"
        return list(map(apart, results)) if kept else results

    def released(self, held: Factorised, reader: str) -> Array:
        """See `Policy.released`."""
        raise _otherwise(held, reader)

    def ruled(self, eqn: JaxprEqn, run: Callable[..., Any], reads: Sequence[Any]) -> list[Any]:
        """See `Policy.ruled`."""

        def dense(*reads: Any) -> list[Any]:
            return bind(eqn, [_dense(x) if is_held(x) else x for x in reads])

        if "jvp" in eqn.primitive.name:
            return _with_tangents_of(dense, run)(*reads)
        if "vjp" in eqn.primitive.name:
            return _with_gradients_of(dense, run)(*reads)
        again = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
        return jax.checkpoint(run, **again)(*reads)


def _multiplied(
    product: Product, entry: PlannedLayer, kernels: Mapping[str, Array], rows: Array, attends: bool
) -> Array:
    """Rows times the kernel that a layer's factors stand for."""
    own, convolutions = [kernels[stage.name] for stage in entry.stages], []
    if entry.layer.kind in CONVOLUTIONS:
        if reconstructs(entry, rows.shape):
            whole = Whole(entry.layer)
            return product.multiply(whole, [dense_kernel(entry, kernels)], rows, attends)
        convolutions = [stage_convolution(entry, number) for number in range(len(own))]
        entry = widened(entry)
        pairs = zip(own, entry.stages, strict=True)
        own = [with_zeros(kernel, stage.kernel_shape) for kernel, stage in pairs]
    return product.multiply(entry.chain, own, rows, attends, convolutions)


def _otherwise(held: Factorised, reader: str) -> ValueError:
    return ValueError(
        f"layer {held.path!r} is read {reader} with these inputs, as it was not with the sample "
        "that the plan was made for: make the plan with a sample like them"
    )


def _with_tangents_of(dense: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    """What `run` computes, with the derivatives of `dense`, which has a rule for them."""
    answer = jax.custom_jvp(run)

    @answer.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        return run(*primals), jax.jvp(dense, primals, tangents)[1]

    return answer


def _with_gradients_of(dense: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    """What `run` computes, with the gradients of `dense`, which has a rule for them."""
    answer = jax.custom_vjp(run)
    answer.defvjp(lambda *reads: jax.vjp(dense, *reads), lambda gradients_of, y: gradients_of(y))
    return answer


def _dense(held: Factorised) -> Array:
    """The view of the array that the kernels stand for."""
    storage, value = held.entry.layer.storage, held.value
    assert value.parts is not None
    side, stack = Side(value.parts), storage.stack
    if stack is None or stack in side.axes:
        array, flipped = reconstruct_array(held.kernels, held.entry), value.flipped
    else:
        array = storage.from_kernel(reconstruct_kernel(held.kernels, held.entry))
        flipped = frozenset(axis - (axis > stack) for axis in value.flipped)
    return side.spread(jnp.flip(array, sorted(flipped)).reshape(-1))
