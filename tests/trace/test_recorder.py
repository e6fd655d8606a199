from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from plain_models import normal

from tdjax.trace import matrices
from tdjax.trace.marks import INPUT
from tdjax.trace.recorder import CalledLayer, Recorder, trace_model
from tdjax.trace.visit import run

# A network of plain functions: the recorder asks for no module system.
STATE = {"wide": normal(1, 4, 6), "stack": normal(2, 3, 6, 6), "bias": normal(3, 6)}
X = normal(4, 5, 2, 4)


def described(call):
    return matrices.dense(call, call.module.features)


def layer(path, shape, **obstacle):
    module, shapes = SimpleNamespace(features=6), {"kernel": shape, "bias": (6,)}
    return CalledLayer(path, module, "kernel", shapes, described, **obstacle)


def traced(**obstacle):
    """A dense layer twice, once with its input by name, then a scan over a stack of three."""
    recorder = Recorder()
    wide, stack = layer("wide", (4, 6)), layer("stack", (3, 6, 6), **obstacle)

    def call(which, kernel, *args, **kwargs):
        def answer(inputs):
            return inputs @ kernel

        return recorder.call(which, kernel, "__call__", answer, args, kwargs)

    def model(state, args, kwargs):
        assert not kwargs
        (x,) = args
        first = call(wide, state["wide"], x)
        second = call(wide, state["wide"], inputs=2 * x[:, :1])

        def turn(x, kernel):
            return jnp.tanh(call(stack, kernel, x)), None

        x = 0.5 * first + second + state["bias"]
        return jax.lax.scan(turn, x, state["stack"])[0]

    return trace_model(recorder, model, STATE, X)


def test_layers():
    layers = traced().layers
    assert list(layers) == ["wide", "stack"]
    wide, stack = layers["wide"], layers["stack"]
    assert (wide.kernel_shape, wide.positions, wide.other) == ((4, 6), 3, 6)
    assert (stack.kernel_shape, stack.copies, stack.positions) == ((6, 6), 3, 2)
    assert stack.storage.stack == 0
    assert traced(obstacle="it is shared").layers["stack"].obstacle == "it is shared"


def test_the_program_computes_what_the_network_does_and_shows_what_goes_in():
    trace = traced()
    assert trace.batch == 5

    def visit(mark, x, _):
        return x, x if mark.end == INPUT else None

    leaves = [*jax.tree.leaves(STATE), X]
    (found,), seen = run(trace.jaxpr, trace.survey, visit, leaves, {})
    x = 0.5 * (X @ STATE["wide"]) + 2 * X[:, :1] @ STATE["wide"] + STATE["bias"]
    inputs = []
    for kernel in STATE["stack"]:
        inputs.append(x)
        x = np.tanh(x @ kernel)
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(seen[0], X)
    np.testing.assert_allclose(seen[1], 2 * X[:, :1])
    np.testing.assert_allclose(seen[2], np.stack(inputs), rtol=1e-5, atol=1e-5)
