"""Calls that cannot be meant, and what they are answered with: the thing, then the remedy."""

import ast
import inspect
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from plain_models import MLP, normal, random_variables

import tdjax
from tdjax import Plan, Rule, dispatch
from tdjax.dispatch.models import KINDS, signature_of

X = normal(1, 40, 6)
MODEL = MLP((60, 40))
VARIABLES = random_variables(MODEL, X)
PARAMS = VARIABLES["params"]
RULE = Rule(path="dense0", method="svd", rank=1)
PLAN = tdjax.make_plan(MODEL, VARIABLES, [RULE], X)
FACTORS = tdjax.factorize_params(PARAMS, PLAN)
STATE = TrainState.create(apply_fn=MODEL.apply, params=PARAMS, tx=optax.sgd(0.1))
KERNELS = normal(2, 3, 60, 40)
LABELS = jnp.zeros(40, jnp.int32)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.dense0, self.dense1 = nnx.Linear(6, 60, rngs=rngs), nnx.Linear(60, 40, rngs=rngs)
        self.norm = nnx.BatchNorm(40, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense1(nnx.tanh(self.dense0(x))))


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(MLP((60, 40))(x))


NNX = Network(nnx.Rngs(0))
NNX.eval()
NNX_PLAN = tdjax.make_plan(NNX, [RULE], X)
NNX_FACTORS = tdjax.factorize(NNX, NNX_PLAN)


def first(outputs, batch):
    del batch
    return outputs[:, 0]


MOMENTS = {
    f"dense{k}": tdjax.LayerMoments(
        jnp.eye(size)[None], jnp.zeros((1, size)), jnp.eye(out)[None], jnp.ones(()), jnp.ones(())
    )
    for k, (size, out) in enumerate([(6, 60), (60, 40)])
}

# Arguments behind the model, in the order of Linen; those of NNX are the same without variables.
CALLS = {
    "make_plan": {"variables": VARIABLES, "rules": [RULE], "sample": X},
    "layer_table": {"variables": VARIABLES, "sample": X},
    "shared_inputs": {"variables": VARIABLES, "sample": X},
    "paired_layers": {"variables": VARIABLES, "sample": X},
    "allocate": {
        "variables": VARIABLES, "sample": X, "budget": 0.7, "methods": ("svd",), "rules": [],
    },
    "budget_curve": {
        "variables": VARIABLES, "sample": X, "budgets": [0.7], "moments": MOMENTS,
    },
    "compress": {
        "variables": VARIABLES, "batches": [X], "budget": {"params": 0.7}, "progress": False,
    },
    "collect_moments": {"variables": VARIABLES, "batches": [X], "loss_fn": first},
    "factorize": {"plan": PLAN},
    "factorize_sequentially": {"variables": VARIABLES, "plan": PLAN, "batches": [X]},
    "reestimate_batch_stats": {"variables": VARIABLES, "batches": [X]},
    "refine": {
        "variables": VARIABLES, "factors": FACTORS, "plan": PLAN, "batches": [X], "epochs": 1,
        "learning_rate": 0.01, "progress": False,
    },
    "remove_dead": {"variables": VARIABLES, "sample": X},
    "feature_errors": {"variables": VARIABLES, "plan_or_params": PLAN, "batches": [X]},
    "candidate_feature_errors": {
        "variables": VARIABLES, "path": "dense1", "kernels": KERNELS, "batches": [X],
    },
    "evaluate_candidates": {
        "variables": VARIABLES, "path": "dense1", "kernels": KERNELS, "batches": [X],
        "metric_fn": first,
    },
}  # fmt: skip

# What is handed to every function that has an argument of the name, and the answer.
SLIPS = {
    "variables": [
        (PARAMS, ValueError, r"has no 'params', but dense0, dense1: pass \{'params': params\}"),
        (STATE, TypeError, r"is a TrainState: pass \{'params': state.params\}"),
        (PLAN, TypeError, "is a Plan: pass what model.init returned"),
        ([RULE], TypeError, "is a list of Rule: pass what model.init returned"),
        (X, TypeError, r"is an array float32\[40, 6\]: pass what model.init returned"),
        (MODEL, TypeError, r"is a Linen model \(MLP\)"),
    ],
    "rules": [
        (RULE, TypeError, r"is one Rule: pass a sequence, \(rule,\)"),
        ({"a": RULE}, TypeError, r"is a dict of rules: pass tuple\(rules.values\(\)\)"),
        ({"path": "a"}, TypeError, "is a dict with the keys path: pass a list or tuple of tdjax"),
        (PLAN, TypeError, "is a Plan, which is made of rules already: pass it to tdjax.factorize"),
        (X, TypeError, r"is an array float32\[40, 6\]: pass a list or tuple of tdjax.Rule"),
        ("svd", TypeError, "is a str: pass a list or tuple of tdjax.Rule"),
        ((rule for rule in [RULE]), TypeError, "is a generator: pass a list or tuple"),
        ([{"path": "a"}], TypeError, "holds a dict with the keys path at 0: every entry is a tdj"),
        ((RULE, "svd"), TypeError, "holds a str at 1"),
    ],
    "sample": [
        ((2, 6), TypeError, r"is a shape \(2, 6\), and a shape is no sample: pass an array, or j"),
        ([2, 6], TypeError, r"a shape is no sample: .*ShapeDtypeStruct\(\(2, 6\), jnp.float32\)"),
        ([RULE], TypeError, "is rules: pass one batch as the model takes it"),
        (PLAN, TypeError, "is a Plan: pass one batch"),
        ([[0.5]], TypeError, "holds no array, it is a list of list"),
        (NNX, TypeError, r"is an NNX model \(Network\): pass one batch"),
        (X[0, :5], ValueError, r"the model cannot be called with float32\[5\], of which the first"),
        (X[:, :5], ValueError, r"cannot be called with float32\[40, 5\].*shape|contract"),
        # The remedy before the words of the model's own call.
        (
            (X, X),
            ValueError,
            r"called with float32\[40, 6\], float32\[40, 6\].*input alone.*takes? .*argument",
        ),
    ],
    "plan": [
        ([RULE], TypeError, "holds rules: pass the plan that tdjax.make_plan makes of them"),
        (RULE, TypeError, "holds rules: pass the plan"),
        (VARIABLES, TypeError, "is a dict with the keys params: pass the plan that tdjax.make"),
        (PLAN.to_json(), TypeError, r"is a str: pass tdjax.Plan.from_json\(text\)"),
    ],
    "plan_or_params": [
        ([RULE], TypeError, "holds rules: pass the plan that tdjax.make_plan makes of them"),
        (STATE, TypeError, "is a TrainState: pass state.params"),
        (X, TypeError, "is an array .*: pass a plan, or approximated dense parameters"),
    ],
    "batches": [
        (X, TypeError, r"is an array float32\[40, 6\]: pass a list of batches, \[x\]"),
        ({"x": X}, TypeError, r"keys x, which is one batch: pass a list, \[batch\]"),
        ((X, LABELS), TypeError, r"is one batch, .*: pass a list, \[\(x, y\)\]"),
        (({"x": X}, LABELS), TypeError, r"is one batch, .*: pass a list, \[\(x, y\)\]"),
        (PLAN, TypeError, "is a Plan: pass a list of batches"),
        (3, TypeError, "is an int: pass a list of batches"),
        ([(40, 6)], TypeError, r"holds a shape \(40, 6\): every batch holds an array"),
        ([X[:, :5]], ValueError, r"cannot be called with float32\[40, 5\]"),
        ([{"x": X, "y": LABELS}], ValueError, r"'y'.* write \(inputs, rest\)[:,] the dict without"),
    ],
    "loss_fn": [
        ("mse", TypeError, r"is a str: pass a function of \(outputs, batch\)"),
        (lambda y: y, TypeError, r"takes \(y\): it is called as loss_fn\(outputs, batch\)"),
        (lambda y, b: b["y"], TypeError, r"called as loss_fn\(outputs, batch\), here with outputs"),
        (lambda y, b: None, TypeError, r"loss_fn returned a NoneType: .*shape \(40,\), or their"),
        (lambda y, b: {"a": y}, TypeError, "loss_fn returned a dict with the keys a"),
        (lambda y, b: y, ValueError, r"loss_fn returned an array float32\[40, 40\]: .*\(40,\)"),
        (lambda y, b: y.argmax(1), TypeError, r"loss_fn returned an array int32\[40\]: .*floats"),
    ],
    "metric_fn": [
        (None, TypeError, r"is a NoneType: pass a function of \(outputs, batch\)"),
        (lambda y: y, TypeError, r"takes \(y\): it is called as metric_fn\(outputs, batch\)"),
        (lambda y, b: None, TypeError, "metric_fn returned a NoneType: return one value for each"),
        (lambda y, b: "a", TypeError, "metric_fn returned a str"),
        (lambda y, b: {"a": y.mean()}, ValueError, r"an array float32\[\]: .*shape \(40,\)"),
        (lambda y, b: y.sum(axis=1)[:9], ValueError, r"an array float32\[9\]: return one value"),
    ],
    "methods": [
        ("svd", TypeError, r"methods is a str: pass a sequence, \('svd',\)"),
        (None, TypeError, "methods is a NoneType: pass a sequence"),
        (("svd", "tuker"), ValueError, "'tuker': known are cp, .*; did you mean 'tucker'"),
    ],
    "path": [
        (3, TypeError, "path is an int: pass the '/'-joined path"),
        ("dens1", KeyError, r"dens1.*; did you mean 'dense1'"),
    ],
}  # fmt: skip
# Besides those that a whole table of slips is for.
MORE = {
    "allocate": {
        "strategy": [("enery", ValueError, "strategy 'enery': known are .*mean 'energy'")],
        "cost": [
            ("param", ValueError, "known are params, macs, bytes, time; did you mean 'params'")
        ],
        "budget": [
            (50, ValueError, "budget 50 is no share between 0 and 1: for 50 % pass 0.5"),
            ("0.5", TypeError, "budget is a str: pass a share, as 0.5"),
            (True, TypeError, "budget is True: pass a share"),
            ({"macs": 50}, ValueError, "budget of 'macs' 50 is no share .*: for 50 % pass 0.5"),
            ({"ms": 5}, ValueError, "budget names 'ms': known are params, .*; limits are shares"),
            (2e5, ValueError, "pass 200000 over that of the dense network, .*size_before, macs_b"),
            ({}, ValueError, "budget names no limit: pass shares by name"),
        ],
        "target": [(0.1, TypeError, r"target is a float: pass tdjax.LossRise\(0.1\)")],
        "multiple_of": [(8.0, TypeError, "multiple_of is 8.0: pass a whole number")],
        "seed": [
            (2.5, TypeError, "seed is 2.5: pass a whole number"),
            (-1, ValueError, "seed must be at least 0, got -1"),
            (2**70, ValueError, r"pass a whole number below 2\*\*63"),
        ],
        "splits": [
            (2, TypeError, r"splits is 2: pass a list of whole numbers"),
            ([2.5], TypeError, "splits holds a number that is 2.5: pass a whole number"),
            ([0], ValueError, "splits holds a number that must be at least 1, got 0"),
        ],
        "moments": [
            ("moments.npz", TypeError, r"is a str: pass tdjax.load_moments\(path\)"),
            (["a"], TypeError, "is a list of str: pass what tdjax.collect_moments returned"),
            ({"dense0": X}, TypeError, "holds an array .* at 'dense0': pass what tdjax.collect"),
        ],
    },
    "budget_curve": {
        "budgets": [
            (0.5, TypeError, r"budgets is 0.5: pass a list of budgets, as \(0.3, 0.5, 0.7\)"),
            ([0.5, 50], ValueError, "budgets holds a budget that 50 is no share between 0 and 1"),
        ],
    },
    "compress": {
        "progress": [("all", TypeError, "progress is a str: pass True, False, or a function")],
    },
    "factorize_sequentially": {
        "key": [(3, TypeError, r"key is an int: pass jax.random.key\(3\)")],
        "max_iters": [(2.5, TypeError, "max_iters is 2.5: pass a whole number")],
        "tol": [
            (math.nan, ValueError, "tol is nan: pass a number of 0 or more"),
            ("a", TypeError, "tol is a str: pass a number"),
        ],
        "moments": [("moments.npz", TypeError, r"is a str: pass tdjax.load_moments\(path\)")],
    },
    "refine": {
        "factors": [(PLAN, TypeError, "factors is a Plan, which comes behind them")],
        "loss": [(3, TypeError, 'loss is an int: pass "mse", "kl", or a function of the outputs')],
        "temperature": [(0, ValueError, "temperature is 0: pass a number above 0")],
        "features": [({"dense1": -1}, ValueError, "features is -1: pass a number above 0")],
        "trained": [("factors", TypeError, r"trained is a str: pass a sequence, \('factors',\)")],
        "optimizer": [
            (first, TypeError, "optimizer is a function: pass a transformation of optax")
        ],
        "epochs": [(0, ValueError, "no epochs: pass at least 1, or blocks")],
        "held_out": [
            (1.5, ValueError, "held_out is 1.5: pass a share from 0 on, below 1"),
            (X, TypeError, "held_out is an array .*: pass a share, as 0.1, or a list of batches"),
        ],
        "augment": [(lambda x: x, TypeError, r"augment takes \(x\): it is called as augment\(key")],
        "blocks": [("[", ValueError, r"blocks holds '\[', which is no pattern")],
    },
    "collect_moments": {
        "paths": [("dens0", ValueError, "matches 'dens0'; did you mean 'dense0'")],
        "memory": [(0, ValueError, "memory must be at least 1, got 0")],
    },
}


def cases():
    for name, given in CALLS.items():
        slips = {argument: SLIPS[argument] for argument in given if argument in SLIPS}
        for argument, tried in {**slips, **MORE.get(name, {})}.items():
            for number, slip in enumerate(tried):
                for kind in ("linen", "nnx"):
                    if kind == "linen" or argument != "variables":
                        yield pytest.param(
                            name, kind, argument, *slip, id=f"{name}-{kind}-{argument}-{number}"
                        )


def call(name, kind, given):
    if kind == "nnx":
        held = {id(PLAN): NNX_PLAN, id(FACTORS): NNX_FACTORS}
        given = {k: held.get(id(value), value) for k, value in given.items()}
        given.pop("variables", None)
        return getattr(dispatch, name)(model=NNX, **given)
    if name == "reestimate_batch_stats":
        own = random_variables(Normalised(), X)
        given = {k: own if value is VARIABLES else value for k, value in given.items()}
        return dispatch.reestimate_batch_stats(Normalised(), **given)
    return getattr(dispatch, name)(model=MODEL, **given)


@pytest.mark.filterwarnings("ignore:too few rows")
@pytest.mark.parametrize("kind", ["linen", "nnx"])
@pytest.mark.parametrize("name", CALLS)
def test_right_calls_by_name(name, kind):
    call(name, kind, CALLS[name])


@pytest.mark.filterwarnings("ignore:too few rows")
@pytest.mark.parametrize(("name", "kind", "argument", "value", "error", "message"), list(cases()))
def test_slip(name, kind, argument, value, error, message):
    with pytest.raises(error, match=message) as caught:
        call(name, kind, {**CALLS[name], argument: value})
    assert caught.type is error


@pytest.mark.parametrize("name", [name for name in CALLS if "batches" in CALLS[name]])
def test_models_in_training_mode_are_told_of_at_once(name):
    model = nnx.clone(NNX)
    model.drops, model.drops_nothing = (nnx.Dropout(rate, rngs=nnx.Rngs(0)) for rate in (0.5, 0.0))
    model.norm.use_running_average = False
    # Whose statistics are estimated may be in any mode.
    norm = (
        "" if name == "reestimate_batch_stats" else r", 'norm' \(BatchNorm, use_running_.*=False\)"
    )
    message = rf"mode: 'drops' \(Dropout, deterministic=False\){norm}: call model.eval\(\) first"
    given = {own: value for own, value in CALLS[name].items() if own != "variables"}
    with pytest.raises(UserWarning, match=message):
        getattr(dispatch, name)(model=model, **given)


def test_names_and_places_mean_the_same():
    by_name = tdjax.make_plan(model=MODEL, variables=VARIABLES, rules=[RULE], sample=X)
    assert by_name == tdjax.make_plan(MODEL, VARIABLES, sample=X, rules=[RULE]) == PLAN
    assert tdjax.make_plan(NNX, sample=X, rules=[RULE]) == NNX_PLAN
    assert tdjax.layer_table(sample=X, model=NNX) == tdjax.layer_table(NNX, X)


LINEN = "a Linen model holds no arrays and comes with its variables; the call is "
HELD = "an NNX model holds its variables and comes alone; the call is "


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: tdjax.make_plan(MODEL, [RULE], X),
            LINEN + r"make_plan\(model, variables, rules, s",
        ),
        (lambda: tdjax.make_plan(NNX, {}, [RULE], X), HELD + r"make_plan\(model, rules, sample\)"),
        (
            lambda: tdjax.make_plan(NNX, variables={}, rules=[RULE], sample=X),
            "'variables': " + HELD,
        ),
        (lambda: tdjax.collect_moments(MODEL, [X]), "'batches': " + LINEN),
        (lambda: tdjax.collect_moments(NNX, {}, [X]), "too many positional arguments: " + HELD),
        (lambda: tdjax.layer_table(MODEL, X), "'sample': " + LINEN),
        (lambda: tdjax.allocate(MODEL, X, budget=0.5), "'sample': " + LINEN),
        (lambda: tdjax.allocate(NNX, X), "missing a required argument: 'budget'"),
        (lambda: tdjax.remove_dead(NNX, {}, X), HELD),
        (lambda: tdjax.factorize_sequentially(MODEL, PLAN, [X]), "'batches': " + LINEN),
        (lambda: tdjax.reestimate_batch_stats(NNX, {}, [X]), HELD),
        (lambda: tdjax.feature_errors(MODEL, PLAN, [X]), "'batches': " + LINEN),
        (lambda: tdjax.feature_errors(NNX, {}, NNX_PLAN, [X]), HELD),
        (lambda: tdjax.evaluate_candidates(NNX, {}, "dense1", KERNELS, [X], first), HELD),
        (
            lambda: tdjax.factorize(MODEL, PLAN, key=jax.random.key(0)),
            r"key belongs to tdjax.factorize_params\(params, plan, key=...\); the call is factor",
        ),
        (
            lambda: tdjax.factorize(MODEL, PLAN, norm="covariance"),
            "norm belongs to tdjax.factorize_p",
        ),
        (
            lambda: tdjax.factorize(NNX, NNX_PLAN, moment={}),
            "there is no moment; did you mean 'mom",
        ),
        (
            lambda: tdjax.make_plan(MODEL, VARIABLES, [RULE], X, ratio=0.5),
            "there is no ratio; its arguments are model, variables, rules, sample, method; the",
        ),
        (lambda: tdjax.factorize(PLAN, MODEL), "got a Plan"),
        (lambda: tdjax.factorize(MODEL, PARAMS, PLAN), "but those of tdjax.factorize_params"),
        (
            lambda: tdjax.make_plan(VARIABLES, MODEL, [RULE], X),
            "keys params: the model comes first",
        ),
        (lambda: tdjax.make_plan(MLP, VARIABLES, [RULE], X), r"the class MLP: make .* MLP\(...\)"),
        (lambda: tdjax.make_plan(Network, [RULE], X), "the class Network: make an instance"),
        (lambda: tdjax.make_plan(), "the model is missing; the call is make_plan"),
        # Swapped: each is told what it is not.
        (
            lambda: tdjax.make_plan(MODEL, VARIABLES, X, [RULE]),
            r"rules is an array float32\[40, 6\]",
        ),
        (lambda: tdjax.make_plan(MODEL, [RULE], VARIABLES, X), "variables is a list of Rule"),
        (lambda: tdjax.make_plan(NNX, X, [RULE]), r"rules is an array"),
        (lambda: tdjax.factorize_sequentially(MODEL, PLAN, VARIABLES, [X]), "variables is a Plan"),
        (lambda: tdjax.feature_errors(MODEL, PLAN, VARIABLES, [X]), "variables is a Plan"),
        (lambda: tdjax.feature_errors(NNX, [X], NNX_PLAN), "plan_or_params is a list of "),
        (lambda: tdjax.collect_moments(MODEL, [X], VARIABLES), "variables is a list of "),
    ],
)
def test_calls_of_another_kind_of_model(wrong, message):
    with pytest.raises(TypeError, match=message):
        wrong()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: tdjax.factorize_params(NNX, PLAN),
            "params is an NNX model .*: call tdjax.factori",
        ),
        (
            lambda: tdjax.factorize_params(MODEL, PLAN),
            "is a Linen model .*, which holds no parameter",
        ),
        (lambda: tdjax.factorize_params(STATE, PLAN), "params is a TrainState: pass state.params"),
        (lambda: tdjax.factorize_params(PLAN, PARAMS), "params is a Plan: pass variables"),
        (lambda: tdjax.factorize_params(PARAMS, [RULE]), "plan holds rules: pass the plan"),
        (
            lambda: tdjax.factorize_params(PARAMS, PLAN, key=0),
            r"key is an int: pass jax.random.key",
        ),
        (lambda: tdjax.factorize_params(PARAMS, PLAN, moments="a"), r"pass tdjax.load_moments"),
        (lambda: tdjax.reconstruct_params(NNX, PLAN), "params is an NNX model"),
        (lambda: tdjax.reconstruct_params(PARAMS, RULE), "plan holds rules"),
        (lambda: tdjax.save_factorised("folder", STATE, PLAN), "params is a TrainState"),
        (lambda: tdjax.save_factorised("folder", PLAN, PARAMS), "params is a Plan"),
    ],
)
def test_calls_on_parameters(wrong, message):
    with pytest.raises(TypeError, match=message):
        wrong()


TABLE = tdjax.layer_table(MODEL, VARIABLES, X)
MASK = jax.tree.map(lambda leaf: leaf > 0, PARAMS)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: tdjax.magnitude_prune(STATE, 0.5), TypeError, "is a TrainState: pass state.par"),
        (lambda: tdjax.adaptive_prune(NNX), TypeError, r"pass nnx.state\(model, nnx.Param\) to"),
        (lambda: tdjax.pq_prune(MODEL), TypeError, "pq_prune: params is a Linen model"),
        (lambda: tdjax.tail_prune(X, 0.1), TypeError, r"params is an array float32\[40, 6\]"),
        (lambda: tdjax.magnitude_prune(PARAMS, "0.5"), TypeError, "share is a str: pass a number"),
        (lambda: tdjax.magnitude_prune(PARAMS, True), TypeError, "share is a bool: pass a number"),
        (lambda: tdjax.adaptive_prune(PARAMS, "0.5"), TypeError, "q must be a number, got '0.5'"),
        (lambda: tdjax.tail_prune(PARAMS, None), TypeError, "tolerance must be a number, got None"),
        (
            lambda: jax.jit(lambda share: tdjax.magnitude_prune(PARAMS, share))(0.5),
            TypeError,
            "share is traced: pass a number",
        ),
        (
            lambda: tdjax.magnitude_prune(PARAMS, 0.5, layers=PLAN),
            TypeError,
            r"layers is a Plan: pass \[entry.layer for entry in plan.layers\]",
        ),
        (
            lambda: tdjax.magnitude_prune(PARAMS, 0.5, layers=TABLE[0]),
            TypeError,
            r"layers is one Layer: pass a sequence, \(layer,\)",
        ),
        (
            lambda: tdjax.magnitude_prune(PARAMS, 0.5, layers=["dense0"]),
            TypeError,
            "layers holds a str at 0: pass what tdjax.layer_table returned",
        ),
        (lambda: tdjax.pq_prune(PARAMS, paths=3), TypeError, "paths is an int: pass a pattern"),
        (lambda: tdjax.pq_prune(PARAMS, paths=[3]), TypeError, "paths holds an int: pass patt"),
        (lambda: tdjax.pq_prune(PARAMS, paths="("), ValueError, r"holds '\(', which is no pattern"),
        (
            lambda: tdjax.lasso_prune(PARAMS, {}, 0.1, chain="dense0"),
            TypeError,
            r"chain is a str: pass a sequence of paths, \('dense0',\)",
        ),
        (
            lambda: tdjax.lasso_prune(PARAMS, "moments.npz", 0.1),
            TypeError,
            r"moments is a str: pass tdjax.load_moments\(path\)",
        ),
        (lambda: tdjax.apply_mask(PARAMS, 0.5), TypeError, "mask holds a float: pass arrays, as"),
        (lambda: tdjax.keep_zeros(None), TypeError, "mask holds a NoneType: pass arrays, as"),
        (lambda: tdjax.pruned_share(STATE, MASK), TypeError, "params is a TrainState"),
    ],
)
def test_calls_that_prune(wrong, error, message):
    with pytest.raises(error, match=message) as caught:
        wrong()
    assert caught.type is error


@pytest.mark.filterwarnings("ignore:too few rows")
def test_moments_of_another_network():
    other = MLP((50, 40))
    found = tdjax.collect_moments(other, random_variables(other, X), [X], loss_fn=first)
    named = {"body": found["dense0"]}
    key = {"budget": 0.7, "strategy": "loss", "methods": ("svd",)}
    message = r"layer 'dense0' .*\(1, 50, 50\), expected \(1, 60, 60\).* moments of another network"
    for model in ((MODEL, VARIABLES), (NNX,)):
        with pytest.raises(ValueError, match=message):
            tdjax.allocate(*model, X, moments=found, **key)
        with pytest.raises(ValueError, match="those of body are no layers of this network"):
            tdjax.allocate(*model, X, moments=named, **key)
    for call in (
        lambda moments: tdjax.factorize_params(PARAMS, PLAN, moments=moments),
        lambda moments: tdjax.factorize(NNX, NNX_PLAN, moments=moments),
    ):
        with pytest.raises(ValueError, match="are these the moments of another network"):
            call(found)
        with pytest.raises(KeyError, match="no moments of layer 'dense0'; there are: body"):
            call(named)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"compression": 75}, ValueError, "between 0 and 1, got 75; for 75 % pass 0.75"),
        ({"compression": "0.5"}, TypeError, "compression '0.5' is no number; pass a share"),
        ({"compression": True}, TypeError, "compression True is no number"),
        ({"rank": 8.0}, TypeError, "rank 8.0 is no whole number; pass 8"),
        ({"rank": True}, TypeError, "rank True is no whole number; pass a whole number"),
        ({"rank": (2, 2.5)}, TypeError, "rank 2.5 is no whole number; pass a whole number"),
        ({"rank": "8"}, TypeError, "rank '8' is no whole number"),
        ({"method": "tuker", "rank": 2}, ValueError, "unknown method; .*; did you mean 'tucker'"),
        ({"method": "SVD", "rank": 2}, ValueError, "did you mean 'svd'"),
    ],
)
def test_values_of_rules(values, error, message):
    # Past the annotations, which the tests check and a user's interpreter does not.
    rule = object.__new__(Rule)
    for name, value in {"method": "svd", "path": "a", "compression": None, "rank": None}.items():
        object.__setattr__(rule, name, values.get(name, value))
    with pytest.raises(error, match=message):
        rule.__post_init__()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: tdjax.tucker_als(KERNELS, ranks=2),
            r"tucker_als: ranks is one number, 2: pass one",
        ),
        (lambda: tdjax.hosvd(KERNELS, 2), r"hosvd: ranks is one number, 2: .* as \(2, 2\)"),
        (lambda: tdjax.tt_svd(KERNELS, ranks=2), "tt_svd: ranks is one number"),
        (lambda: tdjax.tt_als(KERNELS, ranks=2), "tt_als: ranks is one number"),
        (lambda: tdjax.tucker_als(KERNELS, (2, 2.0, None)), "rank 2.0 is no whole number; pass 2"),
        (lambda: tdjax.cp_als(KERNELS, 2.0), "cp_als: rank 2.0 is no whole number; pass 2"),
        (lambda: tdjax.truncated_svd(X, 2.5), "truncated_svd: rank 2.5 is no whole number"),
        (lambda: tdjax.grouped_svd(X, True, 2), "grouped_svd: rank True is no whole number"),
    ],
)
def test_ranks_of_decompositions(wrong, message):
    with pytest.raises(TypeError, match=message):
        wrong()


def test_names_of_layers():
    wrong = [Rule(path="dens0", method="svd", rank=1)]
    for model in ((MODEL, VARIABLES), (NNX,)):
        with pytest.raises(ValueError, match=r"matches no layer; .*; did you mean 'dense0'"):
            tdjax.make_plan(*model, wrong, X)
    with pytest.raises(KeyError, match=r"no layer 'Dense0'; .*; did you mean 'dense0'"):
        PLAN["Dense0"]
    with pytest.raises(KeyError, match=r"no layer 'dense2'; .*; did you mean 'dense1'"):
        tdjax.factorize(NNX, Plan((tdjax.PlannedLayer(WIDER, tdjax.Form("svd", (1,))),)))


WIDER = tdjax.layer_table(MLP((60, 40, 9)), random_variables(MLP((60, 40, 9)), X), X)[2]


# ---------------------------------------------------------------- signatures


def written_overloads(name):
    """The arguments of a function's overloads, from its text: places, and names alone."""
    module = inspect.getmodule(inspect.unwrap(getattr(dispatch, name)))
    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    defined = [node for node in tree.body if getattr(node, "name", None) == name]
    found = {}
    for node in defined[:-1]:
        assert [ast.unparse(each) for each in node.decorator_list] == ["overload"]
        own = node.args
        assert (own.vararg, own.kwarg) == (None, None)
        base = ast.unparse(own.args[0].annotation)
        found[base] = ([arg.arg for arg in own.args], [arg.arg for arg in own.kwonlyargs])
    return found


@pytest.mark.parametrize("name", CALLS)
def test_overloads_say_what_is_bound(name):
    written = written_overloads(name)
    kinds = [kind for kind in KINDS if name not in kind.lacks]
    bases = [("nn.Module",), ("nnx.Module", "Model"), ("Callable[..., Any]",)]
    assert len(written) == len(kinds)
    whole = inspect.signature(getattr(dispatch, name))
    assert all(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in whole.parameters.values())
    for kind, known, (base, (places, names)) in zip(kinds, bases, written.items(), strict=False):
        assert base in known
        bound = signature_of(name, whole, kind).parameters.values()
        assert [p.name for p in bound if p.kind is p.POSITIONAL_OR_KEYWORD] == places
        assert [p.name for p in bound if p.kind is p.KEYWORD_ONLY] == names
