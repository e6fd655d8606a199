"""What layers take: a cost that was measured, beside those that are counted."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.listing import ranks_text
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.predicted import LayerSeconds, Predicted
from tdjax.timings.timings import LayerTimings, Timings

# Time is counted in parts of the dense network's as it is, rounded up, so that costs are whole
# numbers.
PARTS = 10**6
# Of a quotient of two times, in parts: 0.3 / 1e-6 is more than 300,000 in floating point.
SLACK = 1e-6
# A format is no faster unless it spares this share of a layer's time: timings are no nearer.
LEAST_GAIN = 0.05
# Why a layer is kept dense.
NO_FASTER = "no format is faster on this device"
NOT_TIMED = "no format of it was timed"


@dataclass(frozen=True, eq=False)
class Clock:
    """The times of a network's layers and of what they may become.

    Arguments:
        timings: of this network, see `clock_of`.
    """

    timings: Timings

    @property
    def rest(self) -> int:
        """Parts of what belongs to no timed layer."""
        return int(self._parts(np.array([self.timings.rest]))[0])

    @property
    def _rest_seconds(self) -> float:
        """The same in seconds, but for what is rounding alone."""
        return self.timings.rest if self.rest else 0.0

    def dense(self, path: str) -> int:
        """Parts of a layer as it is; 0 for one whose time belongs to the rest."""
        own = self.timings.layers.get(path)
        return 0 if own is None else int(self._parts(np.array([own.dense]))[0])

    def knows(self, path: str, form: Form) -> bool:
        """Whether a layer was timed in a form, at whatever ranks."""
        return replace(form, ranks=(), nonzeros=0) in self._of(path).by_form

    def parts(self, path: str, form: Form, ranks: Int[np.ndarray, "n r"]) -> Int[np.ndarray, " n"]:
        """Parts of a layer in a form that it was timed in."""
        return self._parts(self._of(path).seconds(form, ranks))

    def spent(self, entry: PlannedLayer) -> int:
        """Parts of a layer as it is planned."""
        if entry.form is None:
            return self.dense(entry.layer.path)
        ranks = np.array([entry.ranks])
        return int(self.parts(entry.layer.path, entry.form, ranks)[0])

    def fastest(self, entry: PlannedLayer) -> PlannedLayer:
        """A layer in the ways that were found to be the fastest for its form."""
        if entry.form is None:
            return entry
        ways = self._of(entry.layer.path).ways_of(entry.form, entry.ranks)
        return replace(entry, ways=ways)

    def check(self, entry: PlannedLayer, rule: object) -> None:
        """Refuse, with a ValueError, a form that a rule asks for and that was not timed."""
        if entry.form is not None:
            check_timed(entry, self._of(entry.layer.path).by_form, rule)

    def is_timed(self, path: str) -> bool:
        """Whether a layer was timed in any form."""
        return bool(self._of(path).forms)

    def predicted(self, entries: Iterable[PlannedLayer]) -> Predicted:
        """What a plan of such entries is predicted to take."""
        layers = []
        for entry in entries:
            path, form = entry.layer.path, entry.form
            if path in self.timings.layers:
                before = after = self._of(path).dense
                if form is not None:
                    after = float(self._of(path).seconds(form, np.array([form.ranks]))[0])
                layers.append(LayerSeconds(path, before, after))
        own = self.timings
        return Predicted(own.device, own.batch, own.network, self._rest_seconds, tuple(layers))

    def _of(self, path: str) -> LayerTimings:
        return self.timings.layers[path]

    def _parts(self, seconds: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        return np.ceil(seconds * (PARTS / self.timings.network) - SLACK).astype(np.int64)


def check_timed(entry: PlannedLayer, forms: Container[Form], rule: object) -> None:
    """Refuse, with a ValueError, what a rule makes of a layer where that is not timed.

    Arguments:
        entry: factorised.
        forms: those that are, without ranks.
    """
    assert entry.form is not None
    if replace(entry.form, ranks=(), nonzeros=0) not in forms:
        raise ValueError(
            f"allocate: {rule}: layer {entry.layer.path!r}: {entry.format} at rank "
            f"{ranks_text(entry.ranks)} is not timed, so that what it takes is not known: pass "
            "timings of it, or ask for another format"
        )


def faster(dense: int) -> int:
    """The parts that a layer takes at most where it is faster than dense."""
    return math.floor((1 - LEAST_GAIN) * dense)


def clock_of(timings: Timings, layers: Iterable[Layer]) -> Clock:
    """The clock of a network. Raises ValueError for the timings of another one.

    Arguments:
        layers: of the network.
    """
    known = {layer.path: layer for layer in layers}
    remedy = "take those of the model that you pass, tdjax.time_layers(...)"
    for path in timings.layers:
        if path not in known:
            raise ValueError(f"allocate: timings: {path!r} is no layer of this network: {remedy}")
    for path, layer in known.items():
        own = timings.layers.get(path)
        if own is None and layer.obstacle is None:
            raise ValueError(f"allocate: timings: none of layer {path!r}: {remedy}")
        if own is not None and own.shape != layer.group_shape:
            raise ValueError(
                f"allocate: timings: layer {path!r} has a kernel of shape {layer.group_shape}, "
                f"timed was one of {own.shape}: {remedy}"
            )
    return Clock(timings)
