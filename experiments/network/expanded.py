"""Networks whose parameters are computed from those that are trained, such as factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array

from experiments.data import Inputs
from experiments.network.forward import Apply


@dataclass(frozen=True)
class Expanded(ABC):
    """A network of which `whole` makes the parameters; an `Apply`.

    Training computes the gradient of `apply` by one program, whatever its parameters are made of,
    and takes it back to these by another, small one: many compressed networks compile the network
    once.
    """

    apply: Apply

    @abstractmethod
    def whole(self, params: Any) -> Any:
        """The parameters of `apply`, of those that are trained."""

    def __call__(
        self, params: Any, state: Any, images: Inputs, key: Array | None
    ) -> tuple[Array, Any]:
        """Logits of a batch of images, and the collections after it."""
        return self.apply(self.whole(params), state, images, key)
