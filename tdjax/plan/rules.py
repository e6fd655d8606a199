"""Rules: what a person asks of the layers of a model."""

from __future__ import annotations

import numbers
import re
from dataclasses import dataclass, fields
from typing import Any

from tdjax.decompose.inputs import check_whole
from tdjax.hints import known_are
from tdjax.plan.form import METHODS, check_variant

# In a rule: the method with the least error.
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What to do with the layers whose path matches.

    >>> import tdjax
    >>> tucker = tdjax.Rule(path="conv[2-5]", method="tucker", compression=0.9)
    >>> heads = tdjax.Rule(path=".*attention/(query|key)", method="svd", rank=32)

    Arguments:
        path: regular expression that must match the whole '/'-joined path of a module, or of an
            array that is a layer by itself; one that Python could try on a path in millions of
            ways is refused where it meets that path.
        method: "cp", "tucker", "tt", "svd", or "auto" for the one whose weight error is the
            least at this compression, CP also with spatial="merged". Between matrices "tt" is a
            TT-matrix, and stands for "svd" where their sizes have no factors; "cp" and "tucker"
            always do.
        compression: share of the weight parameters that goes away, in (0, 1).
        rank: in place of it, the rank: one int, or for Tucker (r_C, r_T), for TT the interior
            ranks over (C, *spatial, T). A single int stands for all of them, for TT as far as the
            kernel admits it.
        spatial: "merged" makes CP treat the spatial axes as one mode: three thin layers in place
            of four, and a better fit at equal size.
        splits: number k of groups of consecutive input channels that "svd" factorises each for
            itself, at one rank for all (ALDS, Liebenwein et al., NeurIPS 2021): the first thin
            layer then has k feature groups. It divides the layer's input channels, or those of
            one of its feature groups.
        fold: how "svd" folds the kernel of a convolution to a matrix. "channel": the whole window
            goes with the inputs, a convolution and then one of 1x1. "window": it goes with the
            outputs, 1x1 first. Of two axes "rows" is kh x 1 and then 1 x kw, "columns" 1 x kw and
            then kh x 1. Between matrices all are the same.
        sparse: share, in (0, 1), of the parameters that the layer keeps that become nonzeros of a
            sparse correction: the kernel is a decomposition plus a sparse array. With compression
            0.9, sparse=0.2 keeps 2 % of the weights as single values, and the decomposition has
            8 %; with `rank`, which fixes the decomposition, a quarter of its size comes on top.
            Where the values lie, 32 bits each, is no parameter and comes on top of them. It saves
            parameters, not time: the correction is computed as a dense layer.

    Raises ValueError for a pattern that does not compile, an unknown method, both or neither of
    `compression` and `rank`, and values out of range, TypeError for values of a wrong kind.
    """

    path: str
    method: str
    compression: float | None = None
    rank: int | tuple[int, ...] | None = None
    spatial: str = "separate"
    splits: int = 1
    fold: str = "channel"
    sparse: float | None = None

    def __new__(cls, *args: Any, **given: Any) -> Rule:
        """Answer arguments that there are not in words."""
        if args:
            raise TypeError(f"Rule: {args[0]!r} has no name: Rule(path=..., method=..., rank=...)")
        for name in given:
            if name not in cls.__dataclass_fields__:
                raise TypeError(f"Rule: no argument {name!r}; {known_are(name, FIELDS)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Refuse a rule that cannot mean anything, before it meets a model."""
        check_pattern(self, self.path)
        for name in ("method", "spatial", "fold"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{self}: {name} {getattr(self, name)!r} is no str")
        check_whole(self.splits, f"{self}: splits")
        if self.method not in (*METHODS, AUTO):
            known = known_are(self.method, (*METHODS, AUTO))
            raise ValueError(f"{self}: unknown method; {known}")
        try:
            check_variant(self.method, self.spatial, int(self.splits), self.fold)
        except ValueError as error:
            raise ValueError(f"{self}: {error}") from None
        if (self.compression is None) == (self.rank is None):
            raise ValueError(f"{self}: give exactly one of compression and rank")
        if self.method == AUTO and self.compression is None:
            raise ValueError(f"{self}: methods are compared at equal size, give compression")
        if self.compression is not None:
            check_share(self, "compression", self.compression, "")
        if self.sparse is not None:
            check_share(self, "sparse", self.sparse, "; leave it out for none")
        if self.rank is not None:
            for rank in self.rank if isinstance(self.rank, (list, tuple)) else (self.rank,):
                check_whole(rank, f"{self}: rank")
        for name in ("rank", "splits", "compression", "sparse"):
            object.__setattr__(self, name, _plain(getattr(self, name)))

    def __str__(self) -> str:
        """The rule as messages name it."""
        return f"Rule {self.path!r} ({self.method})"


FIELDS = tuple(field.name for field in fields(Rule))


def _plain(value: Any) -> Any:
    """Numbers as Python's own, which a plan is written with: NumPy's are taken too."""
    if isinstance(value, (list, tuple)):
        return tuple(map(int, value))
    if value is None or isinstance(value, numbers.Integral):
        return None if value is None else int(value)
    return float(value)


def check_pattern(rule: object, path: object) -> None:
    """Refuse a rule whose path is no pattern."""
    if not isinstance(path, str):
        kind = type(rule).__name__
        raise TypeError(f"{kind} path {path!r} is no pattern; pass a str, as '.*conv.*'")
    try:
        re.compile(path)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{rule}: the path is not a valid regular expression: {error}") from None


def check_share(rule: object, name: str, share: Any, remedy: str) -> None:
    """Refuse a share that is none."""
    if isinstance(share, bool) or not isinstance(share, numbers.Real):
        raise TypeError(f"{rule}: {name} {share!r} is no number; pass a share, as 0.75")
    part = float(share)
    if not 0 < part < 1:
        percent = f"; for {part:g} % pass {part / 100:g}" if 2 <= part < 100 else ""
        raise ValueError(f"{rule}: {name} must lie between 0 and 1, got {share}{percent}{remedy}")
