import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from plain_models import normal

from tdjax.trace.marks import INPUT, mark
from tdjax.trace.programs import How, bind, calls_of, run_calls, walk
from tdjax.trace.survey import survey_of

X, W = normal(1, 3), normal(2, 4, 3, 3)


@jax.custom_jvp
def doubled(x):
    return 2 * x


doubled.defjvps(lambda tangent, result, x: 2 * tangent)


@jax.custom_vjp
def tripled(x):
    return 3 * x


tripled.defvjp(lambda x: (3 * x, None), lambda _, gradient: (3 * gradient,))


def scanned(x, w):
    def turn(carry, kernel):
        number, x = carry
        x = jnp.tanh(x @ kernel) + number
        return (number + 1, x), {"sum": x.sum(), "row": x * w[0, 0]}

    return lax.scan(turn, (0.0, x), w, reverse=True)


def repeated(x, w):
    limit, kernel = w[0].sum() + 20, 1.1 * jnp.eye(3)
    return lax.while_loop(
        lambda state: (state[1] ** 2).sum() < limit,
        lambda state: (state[0] + 1, state[1] @ kernel + w[1, 0]),
        (0, x),
    )


def branched(x, w):
    return lax.switch(1, [jnp.sin, lambda x: x @ w[0], lambda x: x + w[1, 1]], x)


def solved(x, w):
    matrix = w[0] @ w[0].T + jnp.eye(3)
    return lax.custom_linear_solve(
        lambda y: matrix @ y, x, lambda _, b: jnp.linalg.inv(matrix) @ b, symmetric=True
    )


IN_PLACE = {
    "jit": (jax.jit(jnp.sin), False),
    "checkpoint": (jax.checkpoint(jnp.sin), True),
    "custom_jvp": (doubled, True),
    "custom_vjp": (tripled, True),
}
FUNCTIONS = {
    **{name: lambda x, w, f=f: f(x) @ w[0] for name, (f, _) in IN_PLACE.items()},
    "scan": scanned,
    "while": repeated,
    "cond": branched,
    "unknown": solved,
    "nested": lambda x, w: jax.jit(jax.checkpoint(scanned))(doubled(branched(x, w)), w),
    "vmap": lambda x, w: jax.vmap(scanned, in_axes=(0, None))(jnp.stack([x, 2 * x]), w),
}


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def found_in(function, *args):
    """The calls of the equations of a function, those of plain arithmetic left out."""
    calls = [calls_of(eqn) for eqn in jax.make_jaxpr(function)(*args).eqns]
    return [found for found in calls if found is not None]


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_program_in_place(name):
    function, ruled = IN_PLACE[name]
    (calls,) = found_in(function, X)
    assert (calls.how, calls.times, calls.ruled, calls.rebuilds) == (How.IN_PLACE, 1, ruled, True)
    (called,) = calls.programs
    assert called.arguments(["x"]) == ["x"]


def test_loops_and_conditions():
    (scan,) = (c for c in found_in(scanned, X, W) if c.how is How.SCAN)
    assert scan.times == 4
    (body,) = scan.programs
    assert len(body.carried) == 2
    assert [body.program.jaxpr.invars[k].aval.shape for k in body.sliced] == [(3, 3)]

    (loop,) = (c for c in found_in(repeated, X, W) if c.how is How.WHILE)
    assert loop.times is None
    assert not loop.rebuilds

    (branches,) = (c for c in found_in(branched, X, W) if c.how is How.COND)
    assert len(branches.programs) == 3
    assert branches.programs[2].arguments(["index", "a", "b"]) == ["a", "b"]


def test_an_equation_that_is_not_known():
    (calls,) = (c for c in found_in(solved, X, W) if c.how is How.UNKNOWN)
    assert calls.times is None
    assert not calls.rebuilds
    assert len(calls.programs) > 1
    for called in calls.programs:
        count = len(called.program.jaxpr.invars)
        assert called.arguments([], "unknown") == ["unknown"] * count


def in_python(program, arguments):
    """Run a program with Python's own loops and conditions, from what `calls_of` says of them."""

    def equation(eqn, reads):
        calls = calls_of(eqn)
        if calls is None or calls.how is How.UNKNOWN:
            return bind(eqn, reads)
        if calls.how is How.COND:
            called = calls.programs[int(reads[0])]
            return in_python(called.program, called.arguments(reads))
        if calls.how is How.IN_PLACE:
            (called,) = calls.programs
            return in_python(called.program, called.arguments(reads))
        if calls.how is How.WHILE:
            condition, body = calls.programs
            carry = [body.arguments(reads)[place] for place in body.carried]
            while in_python(condition.program, with_carry(condition, reads, carry))[0]:
                carry = in_python(body.program, with_carry(body, reads, carry))
            return carry
        return scan_in_python(eqn, calls, reads)

    return walk(program, arguments, equation, lambda value: value)


def with_carry(called, reads, carry):
    arguments = called.arguments(reads)
    for place, value in zip(called.carried, carry, strict=True):
        arguments[place] = value
    return arguments


def scan_in_python(eqn, calls, reads):
    (body,) = calls.programs
    carry = [reads[place] for place in body.carried]
    turns = list(range(calls.times))[:: -1 if eqn.params["reverse"] else 1]
    rows = {}
    for turn in turns:
        arguments = with_carry(body, reads, carry)
        for place in body.sliced:
            arguments[place] = arguments[place][turn]
        results = in_python(body.program, arguments)
        carry, rows[turn] = results[: len(carry)], results[len(carry) :]
    return [
        *carry,
        *(jnp.stack(each) for each in zip(*(rows[k] for k in sorted(rows)), strict=True)),
    ]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_said_of_a_call_is_enough_to_run_it(name):
    program, shapes = jax.make_jaxpr(FUNCTIONS[name], return_shape=True)(X, W)
    found = jax.tree.unflatten(jax.tree.structure(shapes), in_python(program, [X, W]))
    expected = FUNCTIONS[name](X, W)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


def rebuilt(program, arguments, given):
    """Run a program, its calls anew, and keep the sines, by the number given."""
    kept = {}

    def equation(eqn, reads):
        calls = calls_of(eqn)
        if eqn.primitive.name == "sin":
            kept[len(kept)] = given["factor"] * reads[0]
        if calls is None or not calls.rebuilds:
            return bind(eqn, reads)
        results, found = run_calls(eqn, calls, reads, rebuilt, given, {})
        kept.update(found)
        return results

    return walk(program, arguments, equation, lambda value: value), kept


@pytest.mark.parametrize("name", FUNCTIONS)
def test_calls_run_anew(name):
    function = FUNCTIONS[name]
    program, shapes = jax.make_jaxpr(function, return_shape=True)(X, W)

    def again(x, w):
        results, _ = rebuilt(program, [x, w], {"factor": 1.0})
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    jax.tree.map(close, again(X, W), function(X, W))
    if name != "while":
        total = [lambda *args, f=f: sum(map(jnp.sum, jax.tree.leaves(f(*args))))
                 for f in (again, function)]  # fmt: skip
        close(jax.grad(total[0])(X, W), jax.grad(total[1])(X, W))


def test_what_a_scan_and_a_condition_keep():
    def function(x, rows):
        return lax.scan(lambda carry, row: (carry + jnp.sin(row), None), x, rows)[0]

    program = jax.make_jaxpr(function)(X, W[0])
    _, kept = rebuilt(program, [X, W[0]], {"factor": 2.0})
    np.testing.assert_allclose(kept[0], 2 * W[0])

    def chosen(which, x):
        return lax.cond(which, jnp.sin, jnp.cos, x)

    program = jax.make_jaxpr(chosen)(True, X)
    np.testing.assert_allclose(rebuilt(program, [True, X], {"factor": 2.0})[1][0], 2 * X)
    np.testing.assert_allclose(rebuilt(program, [False, X], {"factor": 2.0})[1][0], 0 * X)


def test_turns_of_a_scan_get_their_own_slices():
    def function(x, rows):
        return lax.scan(lambda carry, row: (carry + row, None), x, rows)[0]

    (eqn,) = jax.make_jaxpr(function)(X, W[0]).eqns

    def run(program, arguments, given):
        results = walk(program, arguments, bind, lambda value: value)
        return results, {"own": given["own"] * given["shared"]}

    own, calls = jnp.arange(3.0), calls_of(eqn)
    results, kept = run_calls(eqn, calls, [X, W[0]], run, {"shared": 10.0}, {"own": own})
    np.testing.assert_allclose(results[0], X + W[0].sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(kept["own"], 10 * own)


def test_marks_out_of_which_nothing_can_be_carried():
    numbers = itertools.count()

    def marked(x):
        return mark(x, W[0], next(numbers), INPUT)

    def function(x):
        x = lax.while_loop(lambda x: x.sum() < 5, lambda x: marked(x) + 1, marked(x))
        return lax.custom_linear_solve(lambda y: 2 * marked(y), x, lambda _, b: b / 2)

    survey = survey_of(jax.make_jaxpr(function)(jnp.ones(3)))
    assert set(survey.hidden.values()) == {"while", "custom_linear_solve"}
    # The one in front of the loop, traced first or not, is in the open.
    assert len(survey.runs.keys() - survey.hidden.keys()) == 1
