"""Every kind of Linen layer: exact at full rank, and the reconstructed kernel at any rank."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_models import Scanned, normal, random_variables

import tdjax
from tdjax import Plan, Rule
from tdjax.plan.decide import plan_layer
from tdjax.plan.ranks import full_ranks

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 24, (2, 5)))


class Tied(nn.Module):
    """Embedding that is looked up and attended to."""

    dtype: object = None

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(24, 12, dtype=self.dtype, name="embed")
        return embed.attend(jnp.tanh(embed(tokens)))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, qkv_features=8, name="attention")(x, x)


class Recurrent(nn.Module):
    cell: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.RNN(self.cell, name="rnn")(x)


SEQUENCE, IMAGE = normal(1, 2, 5, 12), normal(1, 2, 6, 5, 4)
# Name, model, input, paths of its layers.
KINDS = {
    "dense": (nn.Dense(8), SEQUENCE, [""]),
    "dense_general": (nn.DenseGeneral((2, 4)), SEQUENCE, [""]),
    "dense_general_axes": (nn.DenseGeneral((2, 4), axis=(1, -1)), IMAGE, [""]),
    "dense_general_first": (nn.DenseGeneral(6, axis=(-1, 1), use_bias=False), IMAGE, [""]),
    "einsum": (nn.Einsum((12, 2, 4), "abc,cde->abde"), SEQUENCE, [""]),
    "einsum_ellipsis": (nn.Einsum((4, 6, 8), "...dk,jkd->...j"), normal(1, 2, 3, 8, 6), [""]),
    "einsum_scattered": (nn.Einsum((3, 5, 12), "bsd,hsd->bh", use_bias=False), SEQUENCE, [""]),
    "einsum_turned": (nn.Einsum((4, 12, 2), "bsd,hdk->hbks"), SEQUENCE, [""]),
    "embed": (nn.Embed(24, 12), TOKENS, [""]),
    "tied": (Tied(), TOKENS, ["embed"]),
    "attention": (
        Attention(),
        SEQUENCE,
        ["attention/query", "attention/key", "attention/value", "attention/out"],
    ),
    "lstm": (Recurrent(nn.LSTMCell(8)), SEQUENCE, None),
    "scanned": (Scanned(), normal(1, 2, 8), ["stack/dense", "head"]),
    "conv1d": (nn.Conv(6, (3,), strides=2, padding="CIRCULAR"), SEQUENCE, [""]),
    "conv_depthwise": (nn.Conv(8, (3, 3), feature_group_count=4), IMAGE, [""]),
    "transpose": (nn.ConvTranspose(6, (3, 2), strides=(2, 3)), IMAGE, [""]),
    "transpose_valid": (
        nn.ConvTranspose(6, (2, 3), strides=(3, 1), padding="VALID", kernel_dilation=(1, 2)),
        IMAGE,
        [""],
    ),
    "transpose_flipped": (
        nn.ConvTranspose(
            6, (3, 3), strides=(2, 2), padding=((1, 2), (0, 1)), transpose_kernel=True
        ),
        IMAGE,
        [""],
    ),
    "transpose_1d": (nn.ConvTranspose(6, (4,), strides=(2,)), SEQUENCE, [""]),
}


def exact_plan(model, variables, sample, **rule):
    """A plan at the ranks asked for, even where they save nothing."""
    table = tdjax.layer_table(model, variables, sample)
    entries = [plan_layer(layer, Rule(path=".*", **rule)) for layer in table]
    return Plan(tuple(entries))


def full_rank(model, variables, sample, method):
    entries = []
    for layer in tdjax.layer_table(model, variables, sample):
        found = plan_layer(layer, Rule(path=".*", method=method, rank=1)).method
        ranks = full_ranks(found, layer.group_shape)
        entries.append(plan_layer(layer, Rule(path=".*", method=method, rank=ranks)))
    return Plan(tuple(entries))


def close(found, expected, tolerance):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
def test_full_rank_reproduces_the_layer(kind):
    model, sample, paths = KINDS[kind]
    variables = random_variables(model, sample)
    plan = full_rank(model, variables, sample, "tt")
    if paths is not None:
        assert [entry.layer.path for entry in plan.factorised] == paths
    params = tdjax.factorize_params(variables["params"], plan)
    small = tdjax.factorize(model, plan)

    @jax.jit
    def both(params, own):
        outputs = small.apply({"params": params}, sample), model.apply({"params": own}, sample)
        return *outputs, tdjax.reconstruct_params(params, plan)

    found, expected, dense = both(params, variables["params"])
    close(found, expected, 1e-4)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), dense, variables["params"])


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (kind, method)
        for kind, (model, _, _) in KINDS.items()
        # A matrix has one format beside the TT-matrix of the test above.
        for method in (("cp", "tucker") if hasattr(model, "kernel_size") else ("svd",))
    ],
)
def test_chain_equals_the_reconstructed_kernel(kind, method):
    model, sample, _ = KINDS[kind]
    shapes = jax.eval_shape(model.init, jax.random.key(0), sample)["params"]
    plan = exact_plan(
        model, {"params": shapes}, sample, method=method, rank=1 if "depth" in kind else 2
    )
    small = tdjax.factorize(model, plan)
    params = random_variables(small, sample)["params"]
    # Initialisation makes exactly the factors.
    made = jax.eval_shape(
        lambda p: tdjax.factorize_params(p, plan, key=jax.random.key(0), max_iters=1), shapes
    )
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, made)
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == plan.size + sum(
        entry.layer.other for entry in plan.layers
    )

    @jax.jit
    def both(params):
        def energy(params):
            outputs = small.apply({"params": params}, sample)
            return jnp.sum(outputs**2), outputs

        slopes, found = jax.grad(energy, has_aux=True)(params)
        dense = tdjax.reconstruct_params(params, plan)
        return found, model.apply({"params": dense}, sample), dense, slopes

    found, expected, dense, slopes = both(params)
    assert jax.tree.map(jnp.shape, dense) == jax.tree.map(jnp.shape, shapes)
    close(found, expected, 1e-4)
    for slope in jax.tree.leaves(slopes):
        assert np.isfinite(slope).all()
        assert np.abs(slope).max() > 0
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("method", ["svd", "tt", "cp"])
@pytest.mark.parametrize(
    "kind",
    ["dense", "dense_general_axes", "einsum_ellipsis", "embed", "tied", "attention", "conv1d"],
)
def test_macs_are_those_of_the_traced_program(kind, method, count_macs):
    model, sample, _ = KINDS[kind]
    variables = jax.eval_shape(model.init, jax.random.key(0), sample)
    plan = exact_plan(model, variables, sample, method=method, rank=2)
    small = tdjax.factorize(model, plan)
    params = jax.eval_shape(small.init, jax.random.key(1), sample)["params"]
    batch = len(sample)
    attended = 2 * batch * 2 * 5 * 5 * 4 if kind == "attention" else 0

    def macs(model, params):
        return count_macs(lambda p: model.apply({"params": p}, sample), params) - attended

    assert macs(model, variables["params"]) == batch * plan.macs_before
    assert macs(small, params) == batch * plan.macs


def test_transposed_convolution_counts_no_zeros():
    model, sample, _ = KINDS["transpose"]
    variables = jax.eval_shape(model.init, jax.random.key(0), sample)
    (layer,) = tdjax.layer_table(model, variables, sample)
    assert layer.macs == 6 * 5 * 3 * 2 * 4 * 6
    plan = exact_plan(model, variables, sample, method="tucker", rank=2)
    assert plan.macs == 30 * 4 * 2 + 30 * 3 * 2 * 2 * 2 + (12 * 15) * 2 * 6


def test_stack_is_decomposed_layer_by_layer():
    model, x, _ = KINDS["scanned"]
    variables = random_variables(model, x)
    stack, head = tdjax.layer_table(model, variables, x)
    assert (stack.copies, stack.size, stack.macs) == (3, 3 * 64, 3 * 64)
    assert (head.copies, head.macs) == (1, 32)
    plan = exact_plan(model, variables, x, method="svd", rank=2)
    params = tdjax.factorize_params(variables["params"], plan)
    kernels = variables["params"]["stack"]["dense"]["kernel"]
    factors = params["stack"]["dense"]
    for k in range(3):
        expected = tdjax.truncated_svd(kernels[k], 2).to_tensor()
        found = factors["input"]["kernel"][k] @ factors["output"]["kernel"][k]
        close(found, expected, 1e-5)
    assert "3 * 8x8" in str(plan)


def test_layers_that_no_chain_can_take():
    cases = [
        (nn.DenseGeneral(4, axis=-1, batch_dims=(0,)), IMAGE, "it has batch dimensions"),
        (nn.Einsum((5, 12, 4), "bsd,sdf->bsf"), SEQUENCE, "is more than a matrix product"),
        (nn.Einsum((5, 12), "bsd,sd->b"), SEQUENCE, "has no axis to compress"),
        (nn.Einsum((12, 4), "bsd,df->bf"), SEQUENCE, "sums its inputs"),
        (nn.ConvTranspose(3, (3,), padding="CIRCULAR"), SEQUENCE, "it wraps its output around"),
    ]
    for model, sample, reason in cases:
        variables = random_variables(model, sample)
        (layer,) = tdjax.layer_table(model, variables, sample)
        assert reason in layer.obstacle
        plan = tdjax.make_plan(model, variables, [Rule(path=".*", method="svd", rank=1)], sample)
        assert plan.factorised == ()
        assert plan.size == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("method", ["svd", "tt"])
def test_half_precision_is_kept(method):
    model = nn.Sequential(
        [nn.Dense(8, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16), nn.Dense(6, dtype=jnp.float16)]
    )
    x = normal(1, 3, 12)
    variables = model.init(jax.random.key(0), x)
    plan = exact_plan(model, variables, x, method=method, rank=2)
    params = tdjax.factorize_params(variables["params"], plan)
    for old, new in zip(*(p.values() for p in (variables["params"], params)), strict=True):
        assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {old["kernel"].dtype}
    small = tdjax.factorize(model, plan)
    assert small.apply({"params": params}, x).dtype == jnp.float16
    tied = Tied(dtype=jnp.bfloat16)
    variables = random_variables(tied, TOKENS)
    plan = exact_plan(tied, variables, TOKENS, method=method, rank=2)
    params = tdjax.factorize_params(variables["params"], plan)
    assert tdjax.factorize(tied, plan).apply({"params": params}, TOKENS).dtype == jnp.bfloat16


# ---------------------------------------------------------------- partitioning metadata


def partitioned(names):
    return nn.with_partitioning(nn.initializers.lecun_normal(), names)


class Sharded(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(12, kernel_init=partitioned(("data", "model")), name="dense")(x)
        x = nn.DenseGeneral((4, 2), kernel_init=partitioned((None, "model", None)), name="heads")(x)
        x = nn.DenseGeneral(
            12, axis=(-2, -1), kernel_init=partitioned(("model", None, "data")), name="out"
        )(x)
        return nn.Conv(6, (3,), kernel_init=partitioned((None, "data", "model")), name="conv")(x)


class ShardedStack(nn.Module):
    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                init = partitioned(("data", "model"))
                return nn.Dense(x.shape[-1], kernel_init=init, name="dense")(x), None

        stack = nn.scan(
            Block,
            variable_axes={"params": 1},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(name="stack")(x, None)[0]


class NamedAttention(nn.Module):
    """Two names around kernels of three axes, as Flax's own example of a language model has."""

    @nn.compact
    def __call__(self, x):
        init = nn.with_logical_partitioning(nn.initializers.xavier_uniform(), ("embed", "kv"))
        return nn.MultiHeadDotProductAttention(2, kernel_init=init, name="attention")(x)


def names(params):
    boxed = lambda leaf: isinstance(leaf, nn.Partitioned)  # noqa: E731
    flat = jax.tree_util.tree_leaves_with_path(params, is_leaf=boxed)
    return {"/".join(key.key for key in path): leaf.names for path, leaf in flat if boxed(leaf)}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            Sharded(),
            {
                "dense/input/kernel": ("data", None),
                "dense/output/kernel": (None, "model"),
                "heads/input/kernel": (None, None),
                "heads/output/kernel": (None, "model"),
                "out/input/kernel": ("model", None),
                "out/output/kernel": (None, "data"),
                "conv/input/kernel": (None, "data", None),
                "conv/output/kernel": (None, None, "model"),
            },
        ),
        (
            ShardedStack(),
            {
                "stack/dense/input/kernel": ("data", "layers", None),
                "stack/dense/output/kernel": (None, "layers", "model"),
            },
        ),
    ],
)
def test_partitioning_is_carried_over(model, expected):
    variables = model.init(jax.random.key(0), SEQUENCE)
    plan = exact_plan(model, variables, SEQUENCE, method="svd", rank=2)
    params = tdjax.factorize_params(variables["params"], plan)
    assert names(params) == expected
    small = tdjax.factorize(model, plan)
    fresh = small.init(jax.random.key(0), SEQUENCE)
    assert names(fresh["params"]) == expected
    dense = tdjax.reconstruct_params(params, plan)
    assert names(dense) == names(variables["params"])
    outputs = [m.apply({"params": p}, SEQUENCE) for m, p in ((small, params), (model, dense))]
    close(*outputs, 1e-4)
    # A plan needs shapes alone, with their boxes or without.
    shapes = jax.eval_shape(model.init, jax.random.key(0), SEQUENCE)
    table = tdjax.layer_table(model, shapes, SEQUENCE)
    assert table == tdjax.layer_table(model, nn.meta.unbox(variables), SEQUENCE)


def test_names_of_fewer_axes_than_a_kernel_has():
    model = NamedAttention()
    variables = model.init(jax.random.key(0), SEQUENCE)
    plan = exact_plan(model, variables, SEQUENCE, method="svd", rank=2)
    params = tdjax.factorize_params(variables["params"], plan)
    own = params["attention"]["query"]
    assert own["input"]["kernel"].names == ("embed", None)
    assert own["output"]["kernel"].names == (None, "kv")
    small = tdjax.factorize(model, plan)
    fresh = small.init(jax.random.key(0), SEQUENCE)["params"]
    assert jax.tree.structure(fresh) == jax.tree.structure(params)
    dense = tdjax.reconstruct_params(params, plan)
    assert dense["attention"]["query"]["kernel"].names == ("embed", "kv", None)
    found, expected = (
        small.apply({"params": params}, SEQUENCE),
        model.apply({"params": dense}, SEQUENCE),
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
