import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables

import tdjax

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")


class Layers(nn.Module):
    """A strided convolution in groups, and a dense layer that is called twice."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(3, name="dense")
        x = nn.Conv(6, (3,), strides=2, feature_group_count=2, padding="SAME", name="conv")(x)
        x = nn.tanh(x).reshape(len(x), -1, 3)
        return dense(nn.tanh(dense(x)))


class Unrolled(nn.Module):
    """The dense layers of `Stacked` one by one."""

    @nn.compact
    def __call__(self, x):
        for k in range(2):
            x = nn.tanh(nn.Dense(4, name=f"dense{k}")(x))
        return x


class Stacked(nn.Module):
    """Two dense layers in a scan over their kernels."""

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.tanh(nn.Dense(4, name="dense")(x)), None

        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return blocks(name="blocks")(x, None)[0]


def loss(outputs, batch):
    rest = batch[1] if isinstance(batch, tuple) else 0.0
    return ((jnp.abs(outputs - 0.3) ** 3) * (1 + rest)).reshape(len(outputs), -1).sum(axis=1)


def rows_of(variables, x, rest):
    """By path the rows of both ends in float64, (n, groups, ...), and the examples of the rows."""
    rows = {"conv": [], "dense": []}
    for one, own in zip(x, rest, strict=True):
        shifts = {"conv": jnp.zeros((1, 5, 6)), "first": jnp.zeros((1, 10, 3))}
        shifts["second"] = jnp.zeros((1, 10, 3))
        seen = {}

        def run(shifts, one=one, own=own, seen=seen):
            params = variables["params"]
            padded = jnp.pad(one[None], ((0, 0), (1, 1), (0, 0)))[:, -11:]
            seen["conv"] = jnp.stack([padded[:, 2 * p : 2 * p + 3] for p in range(5)], axis=1)
            kernel, bias = params["conv"]["kernel"], params["conv"]["bias"]
            y = jnp.einsum(
                "npkgc,kcgt->npgt", seen["conv"].reshape(1, 5, 3, 2, 2), kernel.reshape(3, 2, 2, 3)
            ).reshape(1, 5, 6)
            y = jnp.tanh(y + bias + shifts["conv"]).reshape(1, 10, 3)
            for name in ("first", "second"):
                seen[name] = y
                y = y @ params["dense"]["kernel"] + params["dense"]["bias"] + shifts[name]
                y = jnp.tanh(y) if name == "first" else y
            return loss(y, (None, own)).sum()

        gradients = jax.grad(run)(shifts)
        run(shifts)
        x_conv = np.asarray(seen["conv"]).reshape(5, 3, 2, 2).transpose(0, 2, 1, 3)
        rows["conv"].append((x_conv.reshape(5, 2, 6), gradients["conv"].reshape(5, 2, 3)))
        for name in ("first", "second"):
            ends = seen[name].reshape(10, 1, 3), gradients[name].reshape(10, 1, 3)
            rows["dense"].append(ends)
    return {
        path: [np.concatenate([own[end] for own in many]).astype(np.float64) for end in (0, 1)]
        for path, many in rows.items()
    }


def fisher(x, g, weights=None):
    """E[(x x^T) (x) (g g^T)] as a matrix (D^2, T^2)."""
    weights = np.ones(len(x)) if weights is None else weights
    outer = np.einsum("nd,ne,nt,nu->ndetu", x, x, g, g)
    d, t = x.shape[1], g.shape[1]
    return np.tensordot(weights, outer, 1).reshape(d * d, t * t) / weights.sum()


@pytest.fixture(scope="module")
def network():
    x, rest = normal(0, 8, 10, 4), np.abs(normal(1, 8, 1, 1))
    return random_variables(Layers(), x), x, rest


def test_many_iterations_give_the_best_product_there_is(network):
    variables, x, rest = network
    found = tdjax.collect_moments(
        Layers(), variables, [(x[:4], rest[:4]), (x[4:], rest[4:])], loss_fn=loss,
        kronecker="nearest", iterations=6,
    )  # fmt: skip
    for path, (inputs, gradients) in rows_of(variables, x, rest).items():
        own = found[path]
        assert own.kronecker == "nearest"
        for group in range(inputs.shape[1]):
            f = fisher(inputs[:, group], gradients[:, group])
            u, s, v = np.linalg.svd(f)
            best = s[0] * np.outer(u[:, 0], v[0])
            made = np.outer(own.inputs[group], own.outputs[group])
            np.testing.assert_allclose(made, best, atol=1e-3 * abs(best).max(), err_msg=path)
            # Far from what independence makes of it.
            independent = np.outer(
                np.einsum("nd,ne->de", inputs[:, group], inputs[:, group]) / len(inputs),
                np.einsum("nd,ne->de", gradients[:, group], gradients[:, group]) / len(inputs),
            )
            assert np.linalg.norm(f - made) < 0.95 * np.linalg.norm(f - independent)


@pytest.mark.parametrize("iterations", [1, 2])
def test_each_iteration_is_a_moment_of_weighed_rows(network, iterations):
    variables, x, rest = network
    mask = np.tile(np.arange(10) < 7, (8, 1)).astype(np.float32)
    mask[3] = 0
    found = tdjax.collect_moments(
        Layers(), variables, [(x, rest)], loss_fn=loss, kronecker="nearest",
        iterations=iterations, paths="dense", row_weights=lambda batch: mask,
    )["dense"]  # fmt: skip
    inputs, gradients = (rows[:, 0] for rows in rows_of(variables, x, rest)["dense"])
    # First and second call of each example.
    weights = np.repeat(mask[:, None], 2, axis=1).reshape(-1).astype(np.float64)
    f = fisher(inputs, gradients, weights)
    b = np.einsum("n,nt,nu->tu", weights, gradients, gradients) / weights.sum()
    own = weights * np.einsum("nt,tu,nu->n", gradients, b, gradients)
    a = f @ b.reshape(-1) / (b**2).sum()
    if iterations == 2:
        b = (a @ f / (a**2).sum()).reshape(3, 3)
    made, best = np.outer(found.inputs[0], found.outputs[0]), np.outer(a, b)
    np.testing.assert_allclose(made, best, atol=1e-4 * abs(best).max())
    # Weights of mean one.
    mean = own @ inputs / own.sum()
    np.testing.assert_allclose(found.mean[0], mean, atol=1e-4)
    expected = np.einsum("n,nd,ne->de", own, inputs, inputs) / own.sum()
    np.testing.assert_allclose(found.inputs[0], expected, atol=1e-4 * abs(expected).max())


def test_layers_of_a_stack_have_what_they_have_alone():
    x = normal(3, 12, 5, 4)
    variables = random_variables(Stacked(), x)
    params = variables["params"]["blocks"]["dense"]
    alone = {"params": {f"dense{k}": jax.tree.map(lambda a, k=k: a[k], params) for k in (0, 1)}}
    options = {"loss_fn": loss, "kronecker": "nearest"}
    (stacked,) = tdjax.collect_moments(Stacked(), variables, [x], **options).values()
    single = tdjax.collect_moments(Unrolled(), alone, [x], **options)
    for k in (0, 1):
        for name in ("inputs", "mean", "outputs"):
            one, other = getattr(stacked, name)[k], getattr(single[f"dense{k}"], name)
            np.testing.assert_allclose(one, other, atol=1e-5 * abs(other).max())


def test_a_gradient_that_is_zero_leaves_what_is_there():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    x = normal(4, 50, 4)
    nothing = {"loss_fn": lambda y, batch: 0 * y.sum(axis=1)}
    found = tdjax.collect_moments(model, [x], **nothing, kronecker="nearest")[""]
    plain = tdjax.collect_moments(model, [x], **nothing)[""]
    np.testing.assert_array_equal(found.inputs, plain.inputs)
    np.testing.assert_array_equal(found.outputs, plain.outputs)


def test_what_is_refused():
    model, x = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), normal(4, 50, 4)
    with pytest.raises(ValueError, match="needs the gradient of a loss: pass a loss_fn"):
        tdjax.collect_moments(model, [x], kronecker="nearest")
    with pytest.raises(ValueError, match=r"'nearst'.*did you mean 'nearest'"):
        tdjax.collect_moments(model, [x], loss_fn=loss, kronecker="nearst")
    with pytest.raises(ValueError, match="more than once: pass a list"):
        tdjax.collect_moments(model, iter([x]), loss_fn=loss, kronecker="nearest")
