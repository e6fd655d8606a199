"""Linen models that are made for training are told of, others are not."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from plain_models import normal

import tdjax
from tdjax.linen import training_fields, trains

X = normal(0, 40, 6)


class Net(nn.Module):
    """Drops at a rate where it is in training; `held` comes in front."""

    training: bool = True
    rate: float = 0.5
    held: Any = None

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="last")(x if self.held is None else self.held(x))
        return nn.Dropout(self.rate, deterministic=not self.training)(x)


HELD = nn.Sequential([nn.Dense(6), nn.Dropout(0.5, deterministic=False)])
DENSE = {"kernel": jnp.ones((6, 6)), "bias": jnp.zeros(6)}
VARIABLES = {"params": {"last": DENSE, "held": {"layers_0": DENSE}}}


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (Net(), {"training": True}),
        (Net(training=False, held=HELD), {"held.layers[1].deterministic": False}),
    ],
)
def test_fields_that_train_are_named(model, fields):
    assert training_fields(model) == fields
    given = ", ".join(f"{path}={value}" for path, value in fields.items())
    message = rf"training mode: it is made with {given}: pass one that is made for use"
    for batches, loss in (([X], None), ([(X, X)], lambda y, batch: y[:, 0] - batch[1][:, 0])):
        with pytest.raises(UserWarning, match=message.replace("[", r"\[")):
            tdjax.collect_moments(model, VARIABLES, batches, loss_fn=loss)


def test_fields_that_change_nothing_are_no_matter():
    shared = nn.Dense(6)
    for model in (Net(rate=0.0), Net(training=False), Net(False, held=nn.Sequential([shared] * 2))):
        assert not trains(model, VARIABLES, jax.eval_shape(lambda: X))
    # Of what it cannot be called with others tell.
    assert not trains(Net(), VARIABLES, X[:, :5])
