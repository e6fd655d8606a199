"""A model traced once: its program with marks at the layers, and what each call says of one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tdjax.plan.layers import Layer, of_all_calls
from tdjax.trace.call import Call
from tdjax.trace.survey import Survey, survey_of


@dataclass(frozen=True, eq=False)
class TracedCall:
    """One call of a layer.

    Arguments:
        layer: what it says of the layer, with the positions and lookups of this call alone.
        call: module and arrays; None where the layer cannot be factorised anyway, and has no marks.
    """

    layer: Layer
    call: Call | None = None


@dataclass(frozen=True, eq=False)
class Trace:
    """A traced model.

    Arguments:
        jaxpr: the program, with a mark of the call's number at both ends of every call.
        calls: by number. Those that the trace threw away are in no program.
        outputs: what the model returns, as shapes.
        batch: number of examples.
    """

    jaxpr: Any
    calls: Mapping[int, TracedCall]
    outputs: Any
    batch: int

    @cached_property
    def survey(self) -> Survey:
        """How often the calls run."""
        return survey_of(self.jaxpr)

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The entries of the layer table by path, in the order of the calls."""
        by_path: dict[str, list[tuple[Layer, int]]] = defaultdict(list)
        for number, made in sorted(self.calls.items()):
            runs = self.survey.runs[number] if made.call is not None else 1
            by_path[made.layer.path].append((made.layer, runs))
        return {path: of_all_calls(calls, self.batch) for path, calls in by_path.items()}
