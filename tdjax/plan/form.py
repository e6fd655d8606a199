"""A form: how one layer's kernel is decomposed, whatever the layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

METHODS = ("cp", "tucker", "tt", "svd")
# Of layers between which fewer numbers pass, see `tdjax.plan.pair`: what some put out, another
# reads. Units are kept as they are, the outputs of each head are mixed; those of scores, of which
# the second layer puts something out too, meet in a product for each head.
UNITS, HEADS = ("units_out", "units_in"), ("heads_out", "heads_in")
SCORES = ("scores_out", "scores_in")
PAIRED = (*UNITS, *HEADS, *SCORES)
SPATIAL = ("separate", "merged")
# Of a window (kh, kw): (kh kw C | T), (kh C | kw T), (kw C | kh T), (C | kh kw T).
FOLDS = ("channel", "rows", "columns", "window")


@dataclass(frozen=True)
class Form:
    """How one layer's kernel is decomposed.

    Between matrices, "svd" is a product of two of them and "tt" a TT-matrix; there are no others.

    >>> import tdjax
    >>> str(tdjax.Form("svd", (8,), splits=4))
    'svd /4'

    Arguments:
        method: one of `METHODS`; one of `PAIRED` in plans of `Plan.with_pairs` alone.
        ranks: as `tdjax.plan.ranks.ranks_for` orders them; () until they are chosen.
        spatial, splits, fold: see `tdjax.Rule`.
        nonzeros: of the sparse correction that is added to the decomposition, for each layer of a
            stack; 0 for none.

    Raises ValueError for what no layer could have.
    """

    method: str
    ranks: tuple[int, ...] = ()
    spatial: str = "separate"
    splits: int = 1
    fold: str = "channel"
    nonzeros: int = 0

    def __post_init__(self) -> None:
        """Refuse a form that cannot mean anything, before it meets a layer."""
        if self.method not in (*METHODS, *PAIRED):
            raise ValueError(f"method {self.method!r}: known are {', '.join(METHODS)}")
        check_variant(self.method, self.spatial, self.splits, self.fold)
        if self.nonzeros and self.method in PAIRED:
            raise ValueError("layers of a pair take no sparse correction")

    def __str__(self) -> str:
        """The form in words, without its ranks: its method, and how it differs from the plain."""
        return (
            self.method.replace("_", " ")
            + (" merged" if self.spatial == "merged" else "")
            + (f" {self.fold}" if self.fold != "channel" else "")
            + (f" /{self.splits}" if self.splits > 1 else "")
            + (" + sparse" if self.nonzeros else "")
        )


def spatial_of(window: Sequence[int], method: str) -> tuple[str, ...]:
    """How a method can take the axes of a window, of `SPATIAL`, where that differs."""
    apart = method == "cp" and sum(size > 1 for size in window) > 1
    return SPATIAL if apart else (Form.spatial,)


def check_variant(method: str, spatial: str, splits: int, fold: str) -> None:
    """Raise ValueError for a variant of a method that there is not."""
    if spatial not in SPATIAL:
        raise ValueError(f"spatial must be one of {', '.join(SPATIAL)}")
    if spatial == "merged" and method != "cp":
        raise ValueError("only method 'cp' knows spatial='merged'")
    if splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    if fold not in FOLDS:
        raise ValueError(f"fold must be one of {', '.join(FOLDS)}")
    if splits > 1 and fold == "channel" and method in (*HEADS, *SCORES):
        return
    if (splits, fold) != (1, "channel") and method != "svd":
        raise ValueError("only method 'svd' knows splits and fold")
