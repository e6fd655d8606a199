"""What is known of the marks of a program before it runs: how often each is passed, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import ClosedJaxpr, JaxprEqn

from tdjax.trace.marks import INPUT, mark_p, runs_of
from tdjax.trace.programs import Calls, How, calls_of, walk

# The scans over whose slices a value runs, by the id of their equation; and DATA of what depends on
# what the model is called with.
Scans = frozenset[int]
DATA = -1


@dataclass
class Survey:
    """What is known of the marks of a program.

    Arguments:
        runs: how often each marked call runs, by its number. The body of a while loop counts
            once; of the branches of a condition, that with most runs.
        stacks: pairs of a scan (the id of its equation) and a number where the scan runs over the
            layers of a stack: each turn has a kernel of its own.
        looped: numbers of the marks inside scans.
        hidden: numbers of the marks out of whose programs nothing can be carried, and the name of
            the equation that calls those.
        called_with_data: numbers of the calls whose input depends on what the model is called with:
            not those of a table of positions.
    """

    runs: Counter[int] = field(default_factory=Counter)
    stacks: set[tuple[int, int]] = field(default_factory=set)
    looped: set[int] = field(default_factory=set)
    hidden: dict[int, str] = field(default_factory=dict)
    called_with_data: set[int] = field(default_factory=set)


def survey_of(program: ClosedJaxpr, arrays: int = 0) -> Survey:
    """Walk through a program, and note its marks.

    Arguments:
        arrays: how many of its arguments, the first ones, are the model's own arrays.
    """
    survey, number = Survey(), len(program.jaxpr.invars)
    scans = [frozenset[int]()] * arrays + [frozenset({DATA})] * (number - arrays)
    survey.runs = _runs(survey, program, scans)
    return survey


def _runs(survey: Survey, program: ClosedJaxpr, scans: Sequence[Scans]) -> Counter[int]:
    """How often the marks of a program are passed in one run of it.

    Arguments:
        scans: of each argument.
    """
    runs: Counter[int] = Counter()

    def equation(eqn: Any, reads: list[Scans]) -> list[Scans]:
        calls = calls_of(eqn)
        if eqn.primitive is mark_p:
            number = eqn.params["number"]
            if eqn.params["end"] == INPUT:
                runs[number] += runs_of(eqn)
                if DATA in reads[0]:
                    survey.called_with_data.add(number)
            survey.stacks.update((scan, number) for scan in reads[1] - {DATA})
        elif calls is not None:
            runs.update(_runs_inside(survey, eqn, calls, reads))
        return [frozenset().union(*reads)] * len(eqn.outvars)

    walk(program, scans, equation, lambda _: frozenset())
    return runs


def _runs_inside(
    survey: Survey, eqn: JaxprEqn, calls: Calls, reads: Sequence[Scans]
) -> Counter[int]:
    each = []
    for called in calls.programs:
        scans: list[Any] = called.arguments(reads, frozenset())
        if calls.how is How.SCAN:
            for place in called.sliced:
                scans[place] |= {id(eqn)}
        for place in called.carried:
            # From the second turn on.
            scans[place] |= {DATA} & frozenset().union(*reads)
        each.append(_runs(survey, called.program, scans))
    runs: Counter[int] = Counter()
    for one in each:
        runs = runs | one if calls.how is How.COND else runs + one
    if calls.how is How.SCAN:
        survey.looped |= runs.keys()
    if not calls.rebuilds:
        survey.hidden.update(dict.fromkeys(runs, eqn.primitive.name))
    times = 1 if calls.times is None else calls.times
    return Counter({number: times * count for number, count in runs.items()})
