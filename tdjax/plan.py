"""Which layer gets which format at which rank: rules in, a plan out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tdjax import chain, ranks
from tdjax.decompose.inputs import check_ranks
from tdjax.decompose.tt import clip_ranks
from tdjax.layers import MATRICES, Layer, Storage
from tdjax.printing import Table, as_html, as_text
from tdjax.profile import Profile, profile_calls

PLAN_VERSION = 1
# In a rule: the method with the least error.
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What to do with the layers whose path matches.

    Arguments:
        path: regular expression that must match the whole '/'-joined module path.
        method: "cp", "tucker", "tt", "svd", or "auto" for the one whose weight error is the
            least at this compression. Between matrices "tt" is a TT-matrix, and stands for "svd"
            where their sizes have no factors; "cp" and "tucker" always do.
        compression: share of the weight parameters that goes away, in (0, 1).
        rank: in place of it, the rank: one int, or for Tucker (r_C, r_T), for TT the interior
            ranks over (C, *spatial, T). A single int stands for all of them, for TT as far as the
            kernel admits it.
        spatial: "merged" makes CP treat the spatial axes as one mode: three thin layers in place
            of four, and a better fit at equal size.

    Raises ValueError for a pattern that does not compile, an unknown method, both or neither of
    `compression` and `rank`, and values out of range.
    """

    path: str
    method: str
    compression: float | None = None
    rank: int | tuple[int, ...] | None = None
    spatial: str = "separate"

    def __post_init__(self) -> None:
        """Refuse a rule that cannot mean anything, before it meets a model."""
        try:
            re.compile(self.path)
        except re.error as error:
            raise ValueError(
                f"{self}: the path is not a valid regular expression: {error}"
            ) from None
        if self.method not in (*chain.METHODS, AUTO):
            known = ", ".join((*chain.METHODS, AUTO))
            raise ValueError(f"{self}: unknown method; known are {known}")
        if self.spatial not in chain.SPATIAL:
            raise ValueError(f"{self}: spatial must be one of {', '.join(chain.SPATIAL)}")
        if self.spatial == "merged" and self.method != "cp":
            raise ValueError(f"{self}: only method 'cp' knows spatial='merged'")
        if (self.compression is None) == (self.rank is None):
            raise ValueError(f"{self}: give exactly one of compression and rank")
        if self.method == AUTO and self.compression is None:
            raise ValueError(f"{self}: methods are compared at equal size, give compression")
        if self.compression is not None and not 0 < self.compression < 1:
            raise ValueError(f"{self}: compression must lie between 0 and 1")
        if isinstance(self.rank, list):
            object.__setattr__(self, "rank", tuple(self.rank))

    def __str__(self) -> str:
        """The rule as messages name it."""
        return f"Rule {self.path!r} ({self.method})"


@dataclass(frozen=True)
class PlannedLayer:
    """A layer and what becomes of it.

    Arguments:
        layer: the entry of the layer table.
        method: the format, or None where the layer stays dense.
        ranks: as `tdjax.ranks.ranks_for` orders them; () where it stays dense.
        spatial: see `Rule`.
        reason: why the layer stays dense.
    """

    layer: Layer
    method: str | None = None
    ranks: tuple[int, ...] = ()
    spatial: str = "separate"
    reason: str | None = None

    @property
    def stages(self) -> tuple[chain.Stage, ...]:
        """The chain of thin layers that replaces it; empty where it stays dense."""
        if self.method is None:
            return ()
        return chain.stages(
            self.layer.kernel_shape, self.layer.groups, self.method, self.ranks, self.spatial
        )

    @property
    def size(self) -> int:
        """Weight parameters afterwards, without the bias."""
        if self.method is None:
            return self.layer.size
        return self.layer.copies * sum(stage.size for stage in self.stages)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one example afterwards."""
        if self.method is None:
            return self.layer.macs
        layer = self.layer
        return layer.copies * chain.macs(
            self.stages,
            layer.in_spatial,
            layer.out_spatial,
            layer.positions,
            layer.lookups,
            transposed=layer.kind in ("conv_transpose", "embed"),
        )

    @property
    def kept(self) -> float:
        """Share of the weight parameters that is left."""
        return self.size / self.layer.size


@dataclass(frozen=True)
class Plan:
    """What becomes of every layer of a model; hashable, and saved as JSON beside checkpoints.

    Arguments:
        layers: in the order in which the model calls them.
        other: parameters of the model that belong to no weight array: biases, normalisation.
        measured: what `profile` found; not part of what makes plans equal.
    """

    layers: tuple[PlannedLayer, ...]
    other: int = 0
    measured: Profile | None = field(default=None, compare=False)

    @property
    def factorised(self) -> tuple[PlannedLayer, ...]:
        """The layers that do not stay dense."""
        return tuple(entry for entry in self.layers if entry.method is not None)

    @property
    def size_before(self) -> int:
        """Parameters of the whole model as it was."""
        return self.other + sum(entry.layer.size for entry in self.layers)

    @property
    def size(self) -> int:
        """Parameters of the whole factorised model."""
        return self.other + sum(entry.size for entry in self.layers)

    @property
    def macs_before(self) -> int:
        """Multiply-accumulates for one example, dense."""
        return sum(entry.layer.macs for entry in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one example, factorised."""
        return sum(entry.macs for entry in self.layers)

    def profile(
        self, dense: Callable[[], Any], factorised: Callable[[], Any], rounds: int = 10
    ) -> Plan:
        """The plan with the measured speed-up, which it then prints below its table.

        Fewer multiply-accumulates need not mean less time; this tells.

            plan = plan.profile(lambda: apply(variables, x), lambda: small_apply(smaller, x))

        Arguments and errors as `tdjax.profile.profile_calls`.
        """
        return replace(self, measured=profile_calls(dense, factorised, rounds))

    def __getitem__(self, path: str) -> PlannedLayer:
        """The entry of one layer. Raises KeyError that lists the paths there are."""
        for entry in self.layers:
            if entry.layer.path == path:
                return entry
        raise KeyError(f"no layer {path!r}; layers are: {_paths(e.layer for e in self.layers)}")

    def __str__(self) -> str:
        """A table: layer, format, ranks, parameters and MACs before and after."""
        return as_text(self._table())

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        return as_html(self._table())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The table in an interactive session of IPython."""
        printer.text(str(self))

    def _table(self) -> Table:
        header = ("layer", "kernel", "format", "ranks", "parameters", "", "MACs", "")
        parameters = _change(self.size_before, self.size)
        total = ("total", "", "", "", *parameters, *_change(self.macs_before, self.macs))
        rows = [_row(entry) for entry in self.layers]
        return Table(header, rows, total, self._notes(), numbers=(4, 5, 6, 7))

    def _notes(self) -> list[str]:
        reasons = [
            f"{entry.layer.path or '(model)'} stays dense: {entry.reason}"
            for entry in self.layers
            if entry.reason
        ]
        return reasons if self.measured is None else [str(self.measured), *reasons]

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives an equal plan back."""
        layers = [asdict(entry) for entry in self.layers]
        raw = {"version": PLAN_VERSION, "other": self.other, "layers": layers}
        if self.measured is not None:
            raw["measured"] = self.measured
        return json.dumps(raw)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote. Raises ValueError that says what is wrong with the text."""
        try:
            raw = json.loads(text)
            if raw["version"] != PLAN_VERSION:
                raise ValueError(f"version {raw['version']!r}, this library reads {PLAN_VERSION}")
            layers = tuple(_planned_from_dict(entry) for entry in raw["layers"])
            if not isinstance(raw["other"], int):
                raise ValueError(f"other {raw['other']!r} is not a number of parameters")
            measured = Profile(*raw["measured"]) if "measured" in raw else None
            return cls(layers, raw["other"], measured)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a plan: {error!r}") from error


Choose = Callable[[Layer, Rule], PlannedLayer]


def plan_layers(
    table: Sequence[Layer], rules: Sequence[Rule], other: int = 0, choose: Choose | None = None
) -> Plan:
    """Apply the rules to a layer table; the first that matches a layer decides.

    A layer that the method cannot take, or that would not get smaller, stays dense with the
    reason; so does one that no rule matches.

    Arguments:
        table: the layers.
        rules: see `Rule`.
        other: parameters of the model that belong to no weight array.
        choose: plans a layer for a rule with method "auto".

    Raises ValueError for a rule that matches no layer and for ranks out of range; the message
    names the rule, the layer and the remedy.
    """
    for rule in rules:
        if not any(re.fullmatch(rule.path, layer.path) for layer in table):
            raise ValueError(f"{rule}: matches no layer; layers are: {_paths(table)}")
    return Plan(tuple(_decide(layer, rules, choose) for layer in table), other)


def plan_layer(layer: Layer, rule: Rule) -> PlannedLayer:
    """A layer at exactly the ranks that a rule asks for, even where that saves nothing.

    Raises ValueError for a layer that cannot be factorised and for ranks out of range.
    """
    if layer.obstacle is not None:
        raise ValueError(f"{rule}: layer {layer.path!r}: {layer.obstacle}")
    method = rule.method
    if layer.kind in MATRICES:
        # Between two modes every format but a TT-matrix is a product of two matrices.
        train = method == "tt" and len(ranks.tt_order(layer.kernel_shape)) > 1
        method = "tt" if train else "svd"
    if rule.compression is not None:
        found = ranks.ranks_for(method, _rank_shape(layer, rule.spatial), 1 - rule.compression)
    else:
        found = _given_ranks(layer, rule, method)
    return PlannedLayer(layer, method, found, rule.spatial if method == "cp" else "separate")


def _rank_shape(layer: Layer, spatial: str) -> tuple[int, ...]:
    """The shape of one group's kernel as the method takes it."""
    *window, c, t = layer.group_shape
    return (math.prod(window), c, t) if spatial == "merged" and window else (*window, c, t)


def _given_ranks(layer: Layer, rule: Rule, method: str) -> tuple[int, ...]:
    shape, where = _rank_shape(layer, rule.spatial), f"{rule}: layer {layer.path!r}"
    full = ranks.full_ranks(method, shape)
    assert rule.rank is not None
    if isinstance(rule.rank, tuple):
        found = check_ranks(rule.rank, full, where)
    elif method == "tt":
        found = check_ranks((rule.rank,), (max(full),), where) * len(full)
    else:
        found = check_ranks((rule.rank,) * len(full), full, where)
    # TT-SVD reaches no more than the rank before times the mode between.
    return clip_ranks(ranks.tt_order(shape), found) if method == "tt" else found


def _decide(layer: Layer, rules: Sequence[Rule], choose: Choose | None) -> PlannedLayer:
    rule = next((rule for rule in rules if re.fullmatch(rule.path, layer.path)), None)
    if layer.obstacle is not None:
        return PlannedLayer(layer, reason=layer.obstacle)
    if rule is None:
        return PlannedLayer(layer, reason="no rule matches it")
    if rule.method == AUTO:
        if choose is None:
            raise ValueError(f"{rule}: needs the kernels, not their shapes alone")
        planned = choose(layer, rule)
    else:
        planned = plan_layer(layer, rule)
    if planned.size >= layer.size:
        return PlannedLayer(
            layer,
            reason=f"{planned.method} at rank {_ranks_text(planned.ranks)} would hold "
            f"{planned.size:,} parameters, no fewer than its {layer.size:,}",
        )
    return planned


def _planned_from_dict(raw: dict[str, Any]) -> PlannedLayer:
    """Read one entry; raises whatever a wrong one leads to."""
    fields = _tuples(raw["layer"])
    if fields.get("stored") is not None:
        fields["stored"] = Storage(**_tuples(fields["stored"]))
    layer = Layer(**fields)
    entry = PlannedLayer(**{**raw, "layer": layer, "ranks": tuple(raw["ranks"])})
    if entry.method is not None:
        full = ranks.full_ranks(entry.method, _rank_shape(layer, entry.spatial))
        check_ranks(entry.ranks, full, f"layer {layer.path!r}")
    if not (entry.size >= 0 and entry.macs >= 0):
        raise ValueError(f"layer {layer.path!r} has a negative size")
    return entry


def _tuples(raw: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}


def _row(entry: PlannedLayer) -> tuple[str, ...]:
    layer = entry.layer
    kernel = (
        (f"{layer.copies} * " if layer.copies > 1 else "")
        + "x".join(map(str, layer.kernel_shape))
        + (f" /{layer.groups}" if layer.groups > 1 else "")
    )
    form = (entry.method or "dense") + (" merged" if entry.spatial == "merged" else "")
    return (
        layer.path or "(model)",
        kernel,
        form,
        _ranks_text(entry.ranks),
        *_change(layer.size, entry.size),
        *_change(layer.macs, entry.macs),
    )


def _change(before: int, after: int) -> tuple[str, str]:
    if after == before:
        return f"{before:,}", ""
    share = f"{100 * after / before:.1f} %" if before else ""
    return f"{before:,} -> {after:,}", share


def _ranks_text(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _paths(layers: Iterable[Layer]) -> str:
    return ", ".join(layer.path or "(model)" for layer in layers)
