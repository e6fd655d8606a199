"""From a trained model to a small one in one call: the steps, one by one, give the same."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal

import tdjax
from tdjax.progress import Counted, Steps

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")
IMAGES = normal(0, 40, 6, 6, 3)
BATCHES = [(IMAGES[:20], jnp.ones(20)), (IMAGES[20:], jnp.zeros(20))]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(12, (3, 3))(x))
        return nn.Dense(4)(nn.relu(x).mean(axis=(1, 2)))


def loss_fn(outputs, batch):
    return jnp.sum((outputs - batch[1][:, None]) ** 2, axis=1)


def test_linen_gets_what_the_steps_give():
    model, lines = Net(), []
    variables = model.init(jax.random.key(0), IMAGES)
    rules = [tdjax.BudgetRule(path="Dense_0", dense=True)]
    given = {"budget": {"params": 0.6, "macs": 0.7}, "rules": rules}
    small = tdjax.compress(
        model, variables, BATCHES, loss_fn=loss_fn, progress=lines.append, **given
    )
    moments = tdjax.collect_moments(model, variables, BATCHES, loss_fn=loss_fn)
    plan = tdjax.allocate(
        model, variables, IMAGES, strategy="loss", methods=("svd", "tucker"), moments=moments,
        **given,
    )  # fmt: skip
    assert small.plan == plan
    assert plan["Conv_0"].form is not None
    params = tdjax.factorize_params(variables["params"], plan, moments=moments, correct_bias=True)
    again = tdjax.reestimate_batch_stats(
        tdjax.factorize(model, plan), {**variables, "params": params}, [x for x, _ in BATCHES]
    )
    expected = tdjax.factorize(model, plan).apply(again, IMAGES)
    np.testing.assert_allclose(small.model.apply(small.variables, IMAGES), expected, rtol=1e-5)
    assert [line.split(":")[1].split()[0] for line in lines[::2]] == [
        "moments", "formats", "factors", "batch", "not",
    ]  # fmt: skip
    assert small.refined is None


class Plain(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(16, 24, rngs=nnx.Rngs(0))
        self.last = nnx.Linear(24, 8, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return {"y": self.last(self.first(x)), "number": jnp.int32(3)}


def test_nnx_without_labels_loses_what_its_outputs_change():
    """Of a linear network the prediction is exact but for the chance of the signs."""
    model, x = Plain(), normal(1, 4000, 16)
    small = tdjax.compress(
        model, [{"x": x[:2000]}, {"x": x[2000:]}], target=tdjax.LossRise(0.3),
        rules=[tdjax.BudgetRule(path="last", dense=True)], methods=("svd",), progress=False,
        refine=False,
    )  # fmt: skip
    assert small.variables is None
    assert not hasattr(model.first, "planned")
    change = float(jnp.mean(jnp.sum((small.model(x)["y"] - model(x)["y"]) ** 2, axis=1))) / 2
    (entry,) = small.plan.factorised
    assert entry.layer.path == "first"
    # One rank less would have been too much.
    kernel = np.asarray(model.first.kernel[...] @ model.last.kernel[...], np.float64)
    tails = np.cumsum(np.linalg.svd(kernel, compute_uv=False)[::-1] ** 2)[::-1] / 2
    rank = entry.ranks[0]
    assert tails[rank] < 0.33
    assert tails[rank - 1] > 0.27
    np.testing.assert_allclose(change, tails[rank], rtol=0.1)


def test_factors_are_refined_where_there_are_examples_enough():
    model, x, lines = Plain(), normal(1, 200, 16), []
    weights = jnp.ones(200).at[:50].set(0)
    given = {"budget": {"params": 0.6}, "progress": lines.append}
    given |= {"row_weights": lambda batch: batch[1], "refine": {"epochs": 5}}
    small = tdjax.compress(model, [(x, weights)], **given)
    assert lines[-1].startswith("refine: all layers: ")
    losses = [epoch.held_out for epoch in small.refined.curve]
    assert len(losses) == 6
    assert losses[small.refined.best] == min(losses) <= losses[0]


def test_what_is_not_refined():
    lines = []
    kept = [tdjax.BudgetRule(path="first", dense=True), tdjax.BudgetRule(path="last", dense=True)]
    given = {"progress": lines.append, "target": tdjax.LossRise(1e-9)}
    small = tdjax.compress(Plain(), [normal(1, 1000, 16)], rules=kept, refine={}, **given)
    assert lines[-1] == "compress: not refined: all layers are kept dense"
    assert small.refined is None
    # No arrays.
    size = f"{small.plan.size:,}"
    assert repr(small) == f"Compressed(Plain, {size} -> {size} parameters, not refined)"


def test_what_is_refused_before_any_work():
    given = {"batches": [normal(1, 4, 16)], "budget": 0.5, "progress": False}

    def refused(message, error=ValueError, **options):
        with pytest.raises(error, match=message):
            tdjax.compress(Plain(), **{**given, **options})

    refused("missing a required argument: 'budget'", TypeError, budget=None)
    refused("read more than once: pass a list", TypeError, batches=iter([normal(1, 4, 16)]))
    refused("no batches", batches=[])
    refused(r"out of reach: what can be chosen reaches 0\.\d+ to 1", budget=0.01)
    refused("BudgetRule 'lst': matches no layer", rules=[tdjax.BudgetRule(path="lst")])
    refused("progress is an int: pass True, False", TypeError, progress=1)
    refused("refine is an int: pass True, False or options", TypeError, refine=1)
    refused("refine holds 'epoch': .*; did you mean 'epochs'", TypeError, refine={"epoch": 2})
    refused("epochs must be at least 0, got -1", refine={"epochs": -1})


def test_lines_where_there_is_no_terminal(capsys):
    steps = Steps("work", True)
    for _ in range(2):
        with steps.step("counting", "thing", 2) as tick:
            assert list(Counted("ab", tick)) == ["a", "b"]
    assert not capsys.readouterr().out
    steps.live = True
    with steps.step("counting", "thing", 2) as tick:
        list(Counted("ab", tick))
    text = capsys.readouterr().err
    assert "\r\x1b[Kwork: counting: thing 2 of 2, 0 s\r" in text
    assert text.endswith(" s\n")
    Steps("work", False).tell("nothing")
    for live in (False, True):
        steps.live = live
        with steps.step("counting", after=60.0) as tick:
            tick(1)
    assert not capsys.readouterr().err
