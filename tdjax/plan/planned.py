"""What becomes of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tdjax.plan.chain import chain_of
from tdjax.plan.dtypes import FLOAT_BYTES, dtype_problem, stored_bytes
from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.pair import feeding_problem
from tdjax.plan.shared import form_problem, sharing_problem
from tdjax.plan.stage import CORRECTION, Chain, Stage, whole
from tdjax.plan.ways import ways_problem
from tdjax.plan.work import Count, exact

# Indices are int32.
INDEX_BITS = 32


@dataclass(frozen=True)
class PlannedLayer:
    """A layer and what becomes of it.

    >>> import tdjax
    >>> layer = tdjax.Layer("conv", "conv", (3, 3, 16, 32), in_spatial=(8, 8), out_spatial=(8, 8))
    >>> entry = tdjax.PlannedLayer(layer, tdjax.Form("tucker", (8, 16)))
    >>> entry.size, [stage.kernel_shape for stage in entry.stages]
    (1792, [(1, 1, 16, 8), (3, 3, 8, 16), (1, 1, 16, 32)])

    Arguments:
        layer: the entry of the layer table.
        form: how its kernel is decomposed, or None where the layer is kept dense.
        reason: why the layer is kept dense.
        ways: by which of several exact programs it is computed, see `Plan.with_ways`; () where a
            rule chooses when the model is traced.
        dtype: how its factors, or its kernel, are stored, of `tdjax.plan.dtypes.DTYPES`; None for
            the numbers of the kernel as they are. See `Plan.with_dtypes`.
        shares: the path of the layer whose input factor it reads, having none of its own; see
            `Plan.with_shared`.
        feeds: of a pair's layer that puts something out the path of the one that reads it; see
            `Plan.with_pairs`.

    Raises ValueError for ways that the layer cannot be computed in, for a dtype that it cannot be
    stored in, for one that shares what it cannot, and for one that is half a producer of a pair.
    """

    layer: Layer
    form: Form | None = None
    reason: str | None = None
    ways: tuple[str, ...] = ()
    dtype: str | None = None
    shares: str | None = None
    feeds: str | None = None

    def __post_init__(self) -> None:
        """Refuse ways and numbers that are none."""
        if self.shares is not None:
            wrong = sharing_problem(self.layer) or form_problem(self.form)
            if wrong is not None:
                raise ValueError(f"layer {self.layer.path!r}: {wrong}")
        problem = feeding_problem(self.form, self.feeds)
        if problem is None and self.ways:
            problem = ways_problem(self.layer, self.stages, self.ways)
        if problem is None and self.dtype is not None:
            problem = dtype_problem(
                self.layer, self.dtype, dense=self.form is None, nonzeros=self.nonzeros
            )
        if problem is not None:
            raise ValueError(f"layer {self.layer.path!r}: {problem}")

    @property
    def method(self) -> str | None:
        """The method of its form; None where it is kept dense."""
        return None if self.form is None else self.form.method

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its form; () where it is kept dense."""
        return () if self.form is None else self.form.ranks

    @property
    def nonzeros(self) -> int:
        """Nonzeros of its sparse correction, for each layer of a stack; 0 for none."""
        return 0 if self.form is None else self.form.nonzeros

    @property
    def format(self) -> str:
        """The form in words: its method, and how it differs from the plain one."""
        form = "dense" if self.form is None else str(self.form)
        return form if self.shares is None else f"{form} shared"

    @cached_property
    def chain(self) -> Chain:
        """What computes it. Raises ValueError where it is kept dense."""
        if self.form is None:
            raise ValueError(f"layer {self.layer.path!r} is kept dense: it has no chain")
        return chain_of(self.layer, self.form)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The thin layers that it has in its place; empty where it is kept dense.

        Those of its chain, but for an input factor that is another layer's.
        """
        if self.form is None:
            return ()
        return self.chain.stages if self.shares is None else self.chain.stages[1:]

    @property
    def correction(self) -> Stage | None:
        """The layer that the sparse correction is, beside the chain; None where there is none.

        It has the whole kernel's shape, of which its nonzeros alone are stored.
        """
        if not self.nonzeros:
            return None
        return whole(self.layer, CORRECTION)

    @property
    def size(self) -> int:
        """Weight parameters afterwards, without the bias; of a sparse correction its nonzeros."""
        if self.form is None:
            return self.layer.size
        return self.layer.copies * (sum(stage.size for stage in self.stages) + self.nonzeros)

    @property
    def bytes(self) -> int:
        """Bytes of its weights afterwards, the scales of integers and indices included.

        Numbers whose dtype the plan does not say count as float32.
        """
        if self.dtype is None:
            return FLOAT_BYTES * self.size + self.index_bits // 8
        shapes = [stage.kernel_shape for stage in self.stages] or [self.layer.storage.shape]
        return self.layer.copies * sum(stored_bytes(shape, self.dtype) for shape in shapes)

    @property
    def index_bits(self) -> int:
        """Bits that say where the nonzeros of the sparse correction lie; not part of `size`."""
        return self.layer.copies * self.nonzeros * INDEX_BITS

    @property
    def macs(self) -> Count:
        """Multiply-accumulates for one example afterwards.

        Of a sparse correction those of its nonzeros, though a dense layer computes it. The product
        with a shared input factor is counted with the layer that has it.
        """
        layer = self.layer
        if self.form is None:
            return layer.macs
        if self.shares is not None:
            return exact(layer.positions * self.size)
        sparse = exact(layer.macs * layer.copies * self.nonzeros, max(layer.size, 1))
        return exact(sparse + layer.copies * self.chain.macs)

    @property
    def kept(self) -> float:
        """Share of the weight parameters that is left."""
        return self.size / self.layer.size
