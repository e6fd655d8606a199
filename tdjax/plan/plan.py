"""A plan: what becomes of each layer of a model, at what size."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tdjax.hints import did_you_mean
from tdjax.plan.dtypes import FLOAT_BYTES
from tdjax.plan.layers import CONVOLUTIONS
from tdjax.plan.listing import change, paths_text, table_of
from tdjax.plan.pair import Pair, check_pairs
from tdjax.plan.pairing import pairing_problems, with_pairs
from tdjax.plan.planned import PlannedLayer
from tdjax.plan.predicted import Predicted
from tdjax.plan.printing import Table, as_html, as_text, terminal_width
from tdjax.plan.reading import (
    SECOND_VERSION,
    THIRD_VERSION,
    read_plan,
    version_of,
)
from tdjax.plan.sharing import Group, sharing_problems, with_shared
from tdjax.plan.timing import Profile, profile_calls
from tdjax.plan.ways import check_way, ways_from
from tdjax.plan.work import Count, Use, Work, exact
from tdjax.plan.writing import planned_to_dict


@dataclass(frozen=True)
class Plan:
    """What becomes of every layer of a model; hashable, and saved as JSON beside checkpoints.

    >>> import jax.numpy as jnp, tdjax
    >>> from flax import nnx
    >>> model = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
    >>> rules = [tdjax.Rule(path="", method="svd", rank=8)]
    >>> plan = tdjax.make_plan(model, rules, jnp.ones((2, 64)))
    >>> plan.size_before, plan.size, tdjax.Plan.from_json(plan.to_json()) == plan
    (4160, 1088, True)

    Arguments:
        layers: in the order in which the model calls them.
        other: parameters of the model that belong to no weight array: biases, normalisation.
        measured: what `profile` found; not part of what makes plans equal.
        other_macs: multiply-accumulates for one example of products that belong to no layer:
            attention's queries and keys, an einsum on the model's own arrays, gradients that the
            model itself takes (those of the dense layers, before and afterwards).
        work: what one example runs of a model with conditions, of whose branches the costliest
            counts in the totals; None where all layers run.
        predicted: seconds that timings of its layers add up to, see `tdjax.allocate`; None without.
            Not part of what makes plans equal.

    Raises ValueError for a layer that reads the input factor of one that has no such, or that is
    not in front of it, and for half a pair.
    """

    layers: tuple[PlannedLayer, ...]
    other: int = 0
    measured: Profile | None = field(default=None, compare=False)
    other_macs: Count = 0
    work: Work | None = None
    predicted: Predicted | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse shared input factors that are not there, and pairs of which a layer is not."""
        problems = {**sharing_problems(self.layers), **pairing_problems(self.layers)}
        for path, problem in problems.items():
            raise ValueError(f"layer {path!r}: {problem}")

    @property
    def factorised(self) -> tuple[PlannedLayer, ...]:
        """The layers that are not kept dense."""
        return tuple(entry for entry in self.layers if entry.form is not None)

    @property
    def size_before(self) -> int:
        """Parameters of the whole model as it was."""
        return self.other + sum(entry.layer.size for entry in self.layers)

    @property
    def size(self) -> int:
        """Parameters of the whole factorised model."""
        return self.other + sum(entry.size for entry in self.layers)

    @property
    def bytes_before(self) -> int:
        """Bytes of the whole model as it was, in float32."""
        return FLOAT_BYTES * self.size_before

    @property
    def bytes(self) -> int:
        """Bytes of the whole factorised model, as the plan stores it; all else in float32."""
        return FLOAT_BYTES * self.other + sum(entry.bytes for entry in self.layers)

    @property
    def index_bits(self) -> int:
        """Bits that say where the nonzeros of all sparse corrections lie; not part of `size`."""
        return sum(entry.index_bits for entry in self.layers)

    @property
    def macs_before(self) -> Count:
        """Multiply-accumulates of the whole model for one example, dense."""
        return self._macs(lambda entry: entry.layer.macs)

    @property
    def macs(self) -> Count:
        """Multiply-accumulates of the whole factorised model for one example."""
        return self._macs(lambda entry: entry.macs)

    def _macs(self, macs_of: Callable[[PlannedLayer], Count]) -> Count:
        if self.work is None:
            return exact(self.other_macs + sum(map(macs_of, self.layers)))
        entries = {entry.layer.path: entry for entry in self.layers}

        def of_use(use: Use) -> Count:
            entry = entries[use.path]
            layer = replace(entry.layer, positions=use.positions, lookups=use.lookups)
            return macs_of(replace(entry, layer=layer))

        return self.work.macs(of_use)

    @property
    def seconds_before(self) -> float | None:
        """Predicted seconds of one call of the dense model; None where no timings were at hand."""
        return None if self.predicted is None else self.predicted.before

    @property
    def seconds(self) -> float | None:
        """Predicted seconds of one call of the factorised model; None without timings."""
        return None if self.predicted is None else self.predicted.after

    def profile(
        self, dense: Callable[[], Any], factorised: Callable[[], Any], rounds: int = 10
    ) -> Plan:
        """The plan with the measured speed-up, which it then prints below its table.

        Fewer multiply-accumulates need not mean less time; this tells.

            plan = plan.profile(lambda: apply(variables, x), lambda: small_apply(smaller, x))

        Arguments and errors as `tdjax.plan.timing.profile_calls`.
        """
        return replace(self, measured=profile_calls(dense, factorised, rounds))

    def with_ways(self, ways: str | Mapping[str, str | Sequence[str]]) -> Plan:
        """The plan with ways to compute its layers, in place of those that a rule would choose.

        All ways give equal results up to rounding; which is fastest depends on the machine, the
        sizes of the maps and the batch. "xla" is XLA's own convolution for every stage; "shifted"
        computes depthwise stages as multiply-adds of the shifted map; "split" those with feature
        groups as a convolution for each group; "product" as the product of all patches with the
        kernel. "reconstruct" multiplies the dense kernel out in each call, for one dense
        convolution. The multiply-accumulates of the plan stay those of the factors.

            >>> import tdjax
            >>> layer = tdjax.Layer("conv", "conv", (3, 3, 9, 9), 1, (8, 8), (8, 8))
            >>> plan = tdjax.Plan((tdjax.PlannedLayer(layer, tdjax.Form("cp", (4,))),))
            >>> plan.with_ways("shifted")["conv"].ways
            ('xla', 'shifted', 'shifted', 'xla')
            >>> plan.with_ways({"conv": "reconstruct"})["conv"].ways
            ('reconstruct',)

        Arguments:
            ways: for all factorised convolutions, or by the path of a layer: one way, in which
                every stage is computed that can be; a sequence with one for each stage; () for the
                rule.

        Raises KeyError for a path that is no layer's, ValueError for a way that there is not, or
        in which a layer cannot be computed.
        """
        if isinstance(ways, str):
            check_way(ways)
            found = [e for e in self.factorised if e.layer.kind in CONVOLUTIONS]
            ways = {entry.layer.path: ways for entry in found}
        made: dict[str, PlannedLayer] = {}
        for path, own in ways.items():
            entry = self[path]
            made[path] = replace(entry, ways=ways_from(entry.stages, own))
        layers = tuple(made.get(entry.layer.path, entry) for entry in self.layers)
        # What was predicted is for other ways.
        return replace(self, layers=layers, predicted=None)

    def with_dtypes(self, dtypes: str | Mapping[str, str | None] | None) -> Plan:
        """The plan with other numbers in which its layers are stored.

        "float32" is as trained, "bfloat16" half of it, "int8" and "int4" are integers with one
        float32 scale for each output of an array. `tdjax.factorize_params` stores them so, and the
        factorised model computes with what they stand for: memory and checkpoints are smaller, the
        products are those of float32. `tdjax.dequantize` gives the floats back.

            >>> import tdjax
            >>> layer = tdjax.Layer("dense", "dense", (64, 64))
            >>> plan = tdjax.Plan((tdjax.PlannedLayer(layer, tdjax.Form("svd", (8,))),))
            >>> small = plan.with_dtypes("int8")
            >>> plan.bytes_before, plan.bytes, small.bytes
            (16384, 4096, 1312)

        Arguments:
            dtypes: for all factorised layers, or by the path of a layer, which may be one that is
                kept dense: "float32", "bfloat16", "int8" or "int4"; None for the numbers as they
                are. The same for all layers that share an input factor, and all of a pair.

        Raises KeyError for a path that is no layer's, ValueError for a dtype that there is not, or
        in which a layer cannot be stored, and for such layers in several.
        """
        if dtypes is None:
            dtypes = {entry.layer.path: None for entry in self.layers}
        elif isinstance(dtypes, str):
            dtypes = {entry.layer.path: dtypes for entry in self.factorised}
        made = {path: replace(self[path], dtype=own) for path, own in dtypes.items()}
        layers = tuple(made.get(entry.layer.path, entry) for entry in self.layers)
        return replace(self, layers=layers)

    def with_shared(self, groups: Sequence[Group], *, rank: int | None = None) -> Plan:
        """The plan with one input factor for all layers of a group, which read the same input.

        Such are query, key and value of one attention, gate and up of an MLP;
        `tdjax.shared_inputs` finds them. Of their kernels side by side, [K_1 | K_2 | ...], one
        decomposition A [B_1 | B_2 | ...] is made, in the norm of the input's moment and of each
        output's own: the layers compute (x A) B_i. The first has A, which all of them read: it is
        stored and trained once, and compiled programs multiply by it once.

            >>> import tdjax
            >>> layers = [tdjax.Layer(name, "dense", (64, 64)) for name in ("query", "key")]
            >>> form = tdjax.Form("svd", (12,))
            >>> plan = tdjax.Plan(tuple(tdjax.PlannedLayer(layer, form) for layer in layers))
            >>> small = plan.with_shared([("query", "key")])
            >>> plan.size, small.size, small["key"].ranks, small["key"].shares
            (3072, 3072, (16,), 'query')

        Arguments:
            groups: paths of layers, each group's in any order, all planned as "svd" without splits
                or sparse corrections, and stored in the same numbers.
            rank: of each group; None for the largest at which it holds no more parameters than
                its layers with factors of their own.

        Raises KeyError for a path that is no layer's, ValueError for layers that do not read the
        same input, as far as shapes tell, or have no plain factors, and for a rank out of range.
        """
        for path in (path for group in groups for path in group):
            self[path]  # Raises KeyError that lists the paths there are.
        made = with_shared({entry.layer.path: entry for entry in self.layers}, groups, rank)
        layers = tuple(made.get(entry.layer.path, entry) for entry in self.layers)
        # What was predicted is for other factors.
        return replace(self, layers=layers, predicted=None)

    def with_pairs(self, pairs: Sequence[Pair], *, rank: int | None = None) -> Plan:
        """The plan with pairs of layers between which fewer numbers pass.

        Such are up (and gate) and down of an MLP, value and output of an attention, its query and
        key; `tdjax.paired_layers` finds them. Of an MLP some hidden units are kept, and down is
        what makes most of these; of each head fewer numbers pass, mixed from those that did
        (Lin et al. 2024, arXiv 2408.09632). The layers that put something out compute what is kept
        alone and fill up with zeros, the one that reads it reads that alone: all between them
        stays as it is. `tdjax.factorize_params` needs moments for it.

            >>> import tdjax
            >>> up, down = (tdjax.Layer(n, "dense", s) for n, s in (("up", (8, 32)),
            ...                                                     ("down", (32, 8))))
            >>> plan = tdjax.Plan((tdjax.PlannedLayer(up), tdjax.PlannedLayer(down)))
            >>> small = plan.with_pairs([tdjax.Pair(("up",), "down")], rank=12)
            >>> plan.size, small.size, small["up"].format, small["up"].feeds
            (512, 192, 'units out', 'down')

        Arguments:
            pairs: of layers that share no input factor, each pair's stored in the same numbers.
            rank: units of each pair that are kept, or numbers of each head; None for the largest at
                which it holds no more parameters than its layers as they are planned.

        Raises KeyError for a path that is no layer's, ValueError for layers that are no pair, as
        far as shapes tell, or in two, and for a rank out of range; TypeError for other things
        than pairs.
        """
        check_pairs(pairs)
        for path in (path for pair in pairs for path in pair.paths):
            self[path]  # Raises KeyError that lists the paths there are.
        made = with_pairs({entry.layer.path: entry for entry in self.layers}, pairs, rank)
        layers = tuple(made.get(entry.layer.path, entry) for entry in self.layers)
        # What was predicted is for other factors.
        return replace(self, layers=layers, predicted=None)

    def __getitem__(self, path: str) -> PlannedLayer:
        """The entry of one layer. Raises KeyError that lists the paths there are."""
        for entry in self.layers:
            if entry.layer.path == path:
                return entry
        layers = [entry.layer for entry in self.layers]
        near = did_you_mean(path, (layer.path for layer in layers))
        raise KeyError(f"no layer {path!r}; layers are: {paths_text(layers)}{near}")

    def __repr__(self) -> str:
        """What it is, in a line; `print` shows the layers."""
        parameters = ", ".join(change(self.size_before, self.size))
        return (
            f"<Plan of {len(self.layers)} layers, {len(self.factorised)} factorised, "
            f"parameters {parameters}>"
        )

    def __str__(self) -> str:
        """A table: layer, format, ranks, parameters, MACs and predicted time before and after.

        As wide as the terminal where it goes to one; folded where it is large, see `to_text`.
        """
        return self.to_text(width=terminal_width())

    def to_text(self, *, fold: bool | None = None, width: int | None = None) -> str:
        """The table that `print` shows, in full if asked.

            >>> import tdjax
            >>> layer = tdjax.Layer("head", "dense", (32, 24))
            >>> plan = tdjax.Plan((tdjax.PlannedLayer(layer, tdjax.Form("svd", (4,))),))
            >>> print(plan.to_text(width=60))
            layer  kernel  format  ranks  parameters
            ------------------------------------------------
            head   32x24   svd     4      768 -> 224  29.2 %
            ------------------------------------------------
            total                         768 -> 224  29.2 %

        Arguments:
            fold: factorised layers that differ in the numbers in their paths alone, as those of
                repeated blocks do, share a row, and so do all that are kept dense; None for that
                in plans of more than 40 layers.
            width: characters of a line; None for as many as the table takes. Where they are too
                few, paths lose their middle and columns are left out, the MACs first.
        """
        return as_text(self._table(fold), width)

    def _repr_html_(self) -> str:
        """The table in a notebook; a folded one has all layers below, to be opened."""
        table, whole = self._table(None), self._table(fold=False)
        return as_html(table, None if len(table.rows) == len(whole.rows) else whole)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The table in an interactive session of IPython."""
        printer.text(str(self))

    def _table(self, fold: bool | None) -> Table:
        parameters = change(self.size_before, self.size)
        total = ("total", "", "", "", *parameters, *change(self.macs_before, self.macs))
        given = (total, self.other_macs, self.predicted, self._notes())
        stored = change(self.bytes_before, self.bytes)
        return table_of(self.layers, *given, stored=stored, fold=fold)

    def _notes(self) -> list[str]:
        notes = [str(own) for own in (self.predicted, self.measured) if own is not None]
        if self.work is not None:
            notes.append("of the branches of a condition, the costliest counts in total MACs")
        if self.index_bits:
            notes.append(
                f"indices of nonzeros take {self.index_bits:,} bits, beside the parameters; sparse "
                "corrections are computed by dense layers, whatever their MACs"
            )
        return notes

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives an equal plan back."""
        version = version_of(self.layers, self.other_macs, self.work)
        layers = [planned_to_dict(entry, version) for entry in self.layers]
        raw: dict[str, Any] = {"version": version, "other": self.other, "layers": layers}
        if version >= SECOND_VERSION:
            raw["other_macs"] = self.other_macs
        if version >= THIRD_VERSION:
            raw["work"] = None if self.work is None else asdict(self.work)
        if self.measured is not None:
            raw["measured"] = self.measured
        if self.predicted is not None:
            raw["predicted"] = asdict(self.predicted)
        # Of fractions the text.
        return json.dumps(raw, default=str)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote, and nothing else.

        Raises ValueError that names the field which is unknown, missing, of another type, out of
        range, or not what other fields make of it.
        """
        found = read_plan(text)
        layers = tuple(PlannedLayer(*entry) for entry in found.entries)
        for path, problem in sharing_problems(layers).items():
            raise ValueError(f"not a plan: layer {path!r}: field 'shares': {problem}")
        for path, problem in pairing_problems(layers).items():
            raise ValueError(f"not a plan: layer {path!r}: {problem}")
        return cls(
            layers, found.other, found.measured, found.other_macs, found.work, found.predicted
        )
