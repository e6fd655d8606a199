"""What a network or its data do not have, refused before any work."""

from __future__ import annotations

import math
from itertools import product

from experiments.compress.reach import ANY, least_share, nearest_share
from experiments.compress.settings import Compress
from experiments.compress.trials import allocated, methods_for
from experiments.network.network import Network
from experiments.workdir.fields import FieldError
from tdjax.allocation.limits import TOLERANCE


def check_reach(network: Network, settings: Compress) -> None:
    """Refuse, before any work, what the network or its data do not have.

    Raises ValueError for budgets that no ranks meet, and for more timed images than there are.
    """
    images = len(network.splits.test.labels)
    if settings.timed_images > images:
        raise FieldError(
            "timed_images",
            f"is {settings.timed_images}, but there are {images} test examples: use fewer",
        )
    others = [strategy for strategy in settings.strategies if strategy != "loss"]
    if network.embeddings and "kronecker" in settings.norms and others:
        raise FieldError(
            "norms",
            f"has 'kronecker', which strategy {others[0]!r} cannot follow for the embedding "
            f"{network.embeddings[0]!r}: only strategy 'loss' keeps it dense; use 'covariance'",
        )
    for strategy, budget in product(settings.strategies, settings.budgets):
        for number in range(1, settings.rounds + 1):
            try:
                _check_budget(network, settings, strategy, budget ** (number / settings.rounds))
            except ValueError as error:
                raise FieldError("budgets", f"has {budget}: {error}") from error


def _check_budget(network: Network, settings: Compress, strategy: str, budget: float) -> None:
    """Raise ValueError where no ranks that a strategy may choose meet a budget."""
    if strategy == "uniform":
        # Needs no weights.
        allocated(network, settings, network.start, strategy, budget)
        return
    # ALDS alone chooses from others, whatever its objective.
    known = strategy.partition(" ")[0] if strategy.startswith("alds") else ANY
    options = (network.dense, settings.cost, methods_for(settings, strategy))
    least = least_share(*options, strategy=known)
    # What rounding may take from the budget.
    if budget < least - 1e-9:
        raise ValueError(
            f"strategy {strategy!r} reaches {_rounded(least)} of the {settings.cost} to 1"
        )
    found = nearest_share(*options, budget, strategy=known)
    if found < budget - TOLERANCE - 1e-9:
        raise ValueError(
            f"strategy {strategy!r} cannot meet it within {TOLERANCE:.1%} of the {settings.cost}: "
            f"the steps between ranks are too large; {_rounded(found)} is within reach"
        )


def _rounded(share: float) -> str:
    """A share in four decimals that is not below it, since less cannot be met."""
    return f"{math.ceil(1e4 * share - 1e-6) / 1e4:g}"
