"""Parameter pytrees: kernels -> factors, factors -> kernels.

Pure functions on nested mappings; they know a plan, and nothing of modules. Where a layer's
parameters were {"kernel", "bias"}, a factorised layer has {<stage>: {"kernel"}, ..., "bias"}; one
with a sparse correction has {"sparse": {"values"}} too, and the indices in another collection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.arguments.checks import check_mapping, checked
from tdjax.decompose.dealing import dealt, shared_devices
from tdjax.decompose.inputs import is_at_hand, is_finite
from tdjax.decompose.meshes import on_any_mesh
from tdjax.moments.collect import LayerMoments
from tdjax.params.arrays import INDICES, VALUES, Factors, decompose_array, reconstruct_array
from tdjax.params.bias import around_mean, can_correct, lost_output, shifted
from tdjax.params.check import factor_problems
from tdjax.params.corrections import unpacked, with_params, without_indices
from tdjax.params.kernels import Weights, is_by_numpy
from tdjax.params.leaves import leaf_tree, of_leaves, tree_of_plan, with_members
from tdjax.params.options import DEFAULTS, Options
from tdjax.params.paired import factorised_pairs
from tdjax.params.partitioning import box_factor, box_whole, is_boxed, unboxed
from tdjax.params.placing import beside_kernel, whole_beside
from tdjax.params.shared import joined_array, joined_entry, joined_weights, parted, parted_shift
from tdjax.params.stored import check_storable
from tdjax.params.storing import in_full, stored_tree
from tdjax.params.tree import copied, join_path, layer_params, put, remove, split_path
from tdjax.params.weighing import weights_of
from tdjax.plan.form import PAIRED
from tdjax.plan.layers import LEAF, is_weight, numbers_obstacle
from tdjax.plan.pair import PairChain
from tdjax.plan.pairing import pairs_in
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.sharing import units_of
from tdjax.plan.stage import CORRECTION, INPUT
from tdjax.progress import Done, Progress, Steps

Params = Mapping[str, Any]


@checked(params="tree")
def factorize_params(
    params: Any,
    plan: Plan,
    *,
    key: Array | None = None,
    init: str = Options.init,
    max_iters: int = Options.max_iters,
    tol: float | Float[Array, ""] = Options.tol,
    moments: Mapping[str, LayerMoments] | None = None,
    norm: str | None = None,
    correct_bias: bool = False,
    progress: Progress = True,
) -> Any:
    """Replace the kernels of all layers that the plan factorises by their factors.

    Half-precision kernels are decomposed in float32 and cast back. Layers whose arrays lie in a
    CPU's memory are decomposed side by side, one on each core; meanwhile the OpenBLAS of NumPy and
    SciPy has one thread in the whole process. Where kernels lie on several devices, each layer is
    decomposed by one of them, and its factors then lie on all of them.

    A layer with a sparse correction gets parameters "sparse" with the (k,) "values" of its
    nonzeros. Their "indices", int32, are no parameters, and go into a collection "sparsity" of the
    variables, which the factorised model is to be given:

        variables = tdjax.factorize_params(variables, plan)
        small.apply(variables, x)

    Decomposition and correction are renewed in turn, up to 20 times; see
    `tdjax.decompose.sparse.alternate`.

    What the plan stores in other numbers, see `Plan.with_dtypes`, is rounded to them: "bfloat16"
    arrays, or `tdjax.params.quantised.Quantised` in place of arrays. `tdjax.dequantize` is the way
    back.

    Of a function's parameters, and of a module that has several kernels, each factorised array
    becomes a mapping {<stage>: {"kernel"}, ...}.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, tdjax
    >>> model, x = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(4)]), jnp.ones((2, 32))
    >>> variables = model.init(jax.random.key(0), x)
    >>> rules = [tdjax.Rule(path="layers_0", method="svd", rank=3)]
    >>> plan = tdjax.make_plan(model, variables, rules, x)
    >>> params = tdjax.factorize_params(variables["params"], plan)
    >>> [params["layers_0"][stage]["kernel"].shape for stage in ("input", "output")]
    [(32, 3), (3, 16)]

    Arguments:
        params: nested mapping of arrays, as `variables["params"]`; or all variables, with such a
            "params", which are then what is returned; with the plan of a function the pytree of
            its parameters. It is not changed.
        plan: from `tdjax.make_plan`.
        key: PRNG key for the random starts of CP; needed if the plan has such a layer.
        init, max_iters, tol: see `tdjax.cp_als` and `tdjax.tucker_als`; the least change of the
            error is larger here than theirs, as what they gain beyond is not worth their time.
        moments: from `tdjax.collect_moments`, for decompositions that change the layers' outputs
            least, rather than their kernels (Kalle et al., NeurIPS 2025).
        norm: with moments, "covariance" of what goes in, or "kronecker", which weighs what comes
            out by its gradient too; None for the latter where the moments have it.
        correct_bias: with moments, take what the mean input loses into the layer's bias, and
            weigh by the covariance around that mean. Layers without a bias stay as they are.
        progress: see `tdjax.compress`.

    Raises KeyError or ValueError for parameters or moments that do not fit the plan, ValueError
    for kernels of integers, of complex or of 8-bit numbers, and for NaN or Inf in one; all name
    the layer. ValueError for parameters alone where the plan
    has sparse corrections.
    """
    options = Options(
        key=key, init=init, max_iters=max_iters, tol=tol,
        moments=moments, norm=norm, correct_bias=correct_bias,
        steps=Steps("factorize_params", progress),
    )  # fmt: skip
    if of_leaves(plan):
        own = leaf_tree(params)
        return own.filled(factor_tree(own.mapping, plan, options), plan)
    check_mapping("factorize_params", params)
    params, variables = unpacked(params, plan)
    sparse = [entry.layer.path for entry in plan.factorised if entry.nonzeros]
    if sparse and variables is None:
        raise ValueError(
            f"factorize_params: layer {sparse[0]!r} has a sparse correction, whose indices are no "
            'parameters: give all variables, as {"params": params}'
        )
    tree = factor_tree(params, plan, options)
    return tree if variables is None else with_params(variables, tree, plan)


def factor_tree(params: Params, plan: Plan, options: Options = DEFAULTS) -> dict[str, Any]:
    """`factorize_params` of parameters alone, with the indices of corrections beside the values."""
    check_kernels(params, plan, options.key)
    weights = weights_of(plan, options.moments, options.norm)
    if options.correct_bias and options.moments is None:
        raise ValueError("factorize_params: correct_bias needs moments=")

    units = units_of([entry for entry in plan.factorised if entry.method not in PAIRED])
    work = [
        _work(params, unit, weights, options.of_part(number)) for number, unit in enumerate(units)
    ]
    devices = shared_devices([params, weights])
    on_a_cpu = {device.platform for device in devices} == {"cpu"}

    def by_numpy(own: _Work) -> bool:
        at_hand = on_a_cpu or isinstance(own.array, np.ndarray) or is_at_hand(own.array)
        return at_hand and is_by_numpy(own.entry, weighted=own.weights is not None)

    pairs = pairs_in(plan.factorised)
    layers: dict[str, FactorisedLayer] = {}
    with options.steps.lasting("factors", "layer", len(units) + len(pairs)) as tick:
        done = Done(tick)

        def made(own: _Work) -> FactorisedLayer:
            factorised = _factorised(own)
            done()
            return factorised

        found = dealt(made, work, devices, by_numpy, lambda own: own.entry.layer.size)
        of_pairs = factorised_pairs(params, pairs, weights, options, done)
    for unit, own in zip(units, found, strict=True):
        layers |= apart_again(own, unit)
    for path, kept in of_pairs.items():
        layers[path] = FactorisedLayer({PairChain.STAGE: kept.kept}, kept.shift)
    return with_factors(params, plan, layers)


class _Work(NamedTuple):
    """What the factors of one layer are made from, or of layers that share an input factor.

    Arguments:
        array: that holds its kernel.
        mean: of what goes in, where its bias is to be corrected; else None.
        key: in place of that of the options.
    """

    array: Array
    entry: PlannedLayer
    weights: Weights | None
    mean: Array | None
    key: Array | None
    options: Options


def _work(
    params: Params,
    unit: Sequence[PlannedLayer],
    weights: Mapping[str, Weights],
    options: Options,
) -> _Work:
    paths, mean = [entry.layer.path for entry in unit], None
    own = [layer_params(params, path) for path in paths]
    # What lies around the mean is what layers with biases have left; all of a group, or none.
    if (
        options.correct_bias
        and options.moments is not None
        and all(can_correct(entry, held) for entry, held in zip(unit, own, strict=True))
    ):
        mean = options.moments[paths[0]].mean
    arrays = [
        unboxed(held[entry.layer.storage.name]) for entry, held in zip(unit, own, strict=True)
    ]
    array, weight = arrays[0], weights.get(paths[0])
    if len(unit) > 1:
        layers = [entry.layer for entry in unit]
        array = joined_array(arrays, layers)
        if weight is not None:
            weight = joined_weights([weights[path] for path in paths], layers)
    return _Work(array, joined_entry(unit), weight, mean, options.key, options)


class FactorisedLayer(NamedTuple):
    """What becomes of one layer.

    Arguments:
        factors: kernels of its stages, by name, and its sparse correction; see
            `tdjax.params.arrays.Factors`.
        shift: what its bias takes on, (T,), or (copies, T) of a stack; None for nothing.
    """

    factors: Factors
    shift: Array | None


def apart_again(found: FactorisedLayer, unit: Sequence[PlannedLayer]) -> dict[str, FactorisedLayer]:
    """By path, what becomes of one layer, or of each of those that share an input factor."""
    paths = [entry.layer.path for entry in unit]
    if len(unit) == 1:
        return {paths[0]: found}
    made = map(FactorisedLayer, parted(found.factors, unit), parted_shift(found.shift, unit))
    return dict(zip(paths, made, strict=True))


@on_any_mesh
def _factorised(work: _Work) -> FactorisedLayer:
    """One layer."""
    array, entry, weights, mean, key, options = work
    array = jnp.asarray(array)
    if mean is not None:
        assert weights is not None
        weights = around_mean(weights, mean)
    factors = decompose_array(array, entry, replace(options, key=key), weights=weights)
    if mean is None:
        return FactorisedLayer(factors, None)
    return FactorisedLayer(factors, lost_output(array, factors, entry, mean))


def with_factors(
    params: Params, plan: Plan, layers: Mapping[str, FactorisedLayer]
) -> dict[str, Any]:
    """Parameters with the factors of all layers of a plan, by path, in place of their kernels."""
    result = copied(params)
    for entry in plan.factorised:
        path, storage = entry.layer.path, entry.layer.storage
        stored = layer_params(params, path)[storage.name]
        factors, shift = layers[path]
        factors = beside_kernel(unboxed(stored), factors, entry)
        dtype = jnp.asarray(unboxed(stored)).dtype
        own: dict[str, Any] = {
            stage.name: {
                "kernel": box_factor(stored, factors[stage.name].astype(dtype), entry, stage)
            }
            for stage in entry.stages
        }
        if entry.nonzeros:
            own[CORRECTION] = {VALUES: factors[VALUES].astype(dtype), INDICES: factors[INDICES]}
        if shift is not None:
            bias = layer_params(params, path)["bias"]
            own["bias"] = shifted(bias, whole_beside(unboxed(bias), shift))
        put(result, path, own)
        remove(result, join_path(path, storage.name))
    return stored_tree(result, plan)


@checked(params="tree")
def reconstruct_params(params: Any, plan: Plan) -> Any:
    """Multiply the factors out to kernels of the original shapes; the inverse direction.

    Differentiable and safe inside `jit` and `vmap`.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, tdjax
    >>> model, x = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(4)]), jnp.ones((2, 32))
    >>> variables = model.init(jax.random.key(0), x)
    >>> rules = [tdjax.Rule(path="layers_0", method="svd", rank=3)]
    >>> plan = tdjax.make_plan(model, variables, rules, x)
    >>> params = tdjax.factorize_params(variables["params"], plan)
    >>> dense = tdjax.reconstruct_params(params, plan)
    >>> kernel = dense["layers_0"]["kernel"]
    >>> kernel.shape, int(jnp.linalg.matrix_rank(kernel))
    ((32, 16), 3)

    Arguments:
        params: as `factorize_params` gives them, parameters or all variables; so is the result.
        plan: the plan that they were factorised by.

    Raises KeyError where factors are missing, or the indices of sparse corrections, ValueError for
    factors of another plan: other ones, or of other shapes.
    """
    if of_leaves(plan):
        own = tree_of_plan(params, plan)
        return own.filled(dense_tree(own.mapping, plan), plan)
    check_mapping("reconstruct_params", params)
    params, variables = unpacked(params, plan)
    tree = dense_tree(params, plan)
    if variables is None:
        return tree
    return without_indices({**variables, "params": tree}, plan)


def dense_tree(params: Params, plan: Plan) -> dict[str, Any]:
    """`reconstruct_params` of what `factor_tree` gave."""
    params = in_full(params, plan)
    result = copied(params)
    for entry in plan.factorised:
        path, own = entry.layer.path, layer_params(params, entry.layer.path)
        names = [stage.name for stage in entry.stages]
        problem = next(factor_problems(own, entry), None)
        if entry.shares is not None:
            lent = layer_params(params, entry.shares)
            own = {**own, **{name: lent[name] for name in (INPUT,) if name in lent}}
            names = [stage.name for stage in entry.chain.stages]
        missing = [name for name in names if name not in own]
        if missing:
            raise KeyError(f"layer {path!r} has no factors {', '.join(missing)}")
        stored = [own[name]["kernel"] for name in names]
        factors = dict(zip(names, map(unboxed, stored), strict=True))
        if entry.nonzeros:
            factors |= _correction(own.get(CORRECTION, {}), path)
            names.append(CORRECTION)
        if problem is not None:
            raise ValueError(
                f"layer {path!r}{problem}: pass the plan that the parameters were factorised by"
            )
        array = box_whole(stored, reconstruct_array(factors, entry), entry)
        put(result, path, {entry.layer.storage.name: array})
        for name in names:
            if entry.shares is None or name != INPUT:
                remove(result, join_path(path, name))
    return with_members(result, plan)


def _correction(own: Params, path: str) -> Factors:
    """Values and indices of a layer's sparse correction from what it has of that name."""
    if VALUES not in own:
        raise KeyError(f"layer {path!r} has no values of its sparse correction")
    if INDICES not in own:
        raise KeyError(
            f"layer {path!r} has values of its sparse correction, but no indices: give all "
            "variables, with the collection that factorize_params made"
        )
    return {VALUES: unboxed(own[VALUES]), INDICES: unboxed(own[INDICES])}


def replace_kernel(params: Params, path: str, kernel: Float[Array, "*_"]) -> dict[str, Any]:
    """The same parameters with the kernel of one layer replaced."""
    result = copied(params)
    # It need not be there: callers may keep the rest alone.
    before: Any = layer_params(params, path)
    own, name = before.get(LEAF, before.get("kernel")), "kernel"
    if LEAF in before:
        *front, name = split_path(path)
        path = join_path(*front)
    put(result, path, {name: own.replace_boxed(kernel) if is_boxed(own) else kernel})
    return result


def weight_name(own: Params) -> str | None:
    """The name of the array that a layer holds: a kernel, an embedding, or its only weight."""
    weights = weight_names(own)
    named = [name for name in ("kernel", "embedding", LEAF) if name in own]
    return next(iter(named or (weights if len(weights) == 1 else [])), None)


def weight_names(own: Params) -> list[str]:
    """The names of the arrays among a module's parameters that are weights."""
    return [str(name) for name, leaf in own.items() if _is_weight(str(name), leaf)]


def _is_weight(name: str, leaf: Any) -> bool:
    return not isinstance(leaf, Mapping) and is_weight(name, getattr(unboxed(leaf), "shape", ()))


class DenseLayer(NamedTuple):
    """A factorised layer multiplied out again.

    Arguments:
        array: in place of the one that held its kernel.
        shift: see `FactorisedLayer`.
    """

    array: Array
    shift: Array | None


def with_dense(params: Params, plan: Plan, layers: Mapping[str, DenseLayer]) -> dict[str, Any]:
    """Parameters with some layers of a plan, by path, as they became."""
    result = copied(params)
    for path, (array, shift) in layers.items():
        own = {plan[path].layer.storage.name: array}
        if shift is not None:
            own["bias"] = shifted(layer_params(params, path)["bias"], shift)
        put(result, path, own)
    return with_members(result, plan)


def check_kernels(params: Params, plan: Plan, key: Array | None) -> None:
    """Refuse parameters that do not fit a plan, or a missing key; see `factorize_params`."""
    for entry in plan.factorised:
        _check_kernel(params, entry)
    if key is None and any(entry.method == "cp" for entry in plan.factorised):
        raise ValueError("factorize_params: CP starts from random factors, pass key=")


def _check_kernel(params: Params, entry: PlannedLayer) -> None:
    path, storage = entry.layer.path, entry.layer.storage
    own = layer_params(params, path)
    if storage.name not in own:
        raise KeyError(f"layer {path!r} has no {storage.name}; it has {', '.join(own)}")
    array = unboxed(own[storage.name])
    if tuple(array.shape) != storage.whole_shape:
        raise ValueError(
            f"layer {path!r}: {storage.name} of shape {tuple(array.shape)}, but the plan was made "
            f"for {storage.whole_shape}"
        )
    obstacle = numbers_obstacle(storage.name, array.dtype)
    if obstacle is not None:
        raise ValueError(
            f"layer {path!r}: {obstacle}; only real numbers of 16 bits or more are decomposed"
        )
    check_storable(own[storage.name], entry)
    if not isinstance(array, jax.core.Tracer) and not is_finite(array):
        raise ValueError(f"layer {path!r}: the {storage.name} holds NaN or Inf")
