"""A function read as a model: which arrays of its parameters are layers, and how they are called.

The function is traced once. Then its program is run twice with shapes: to see what every array
goes into, and with marks at those that are layers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from tdjax.arguments.called import calling_the_model, check_switches
from tdjax.functions.chains import Whole
from tdjax.functions.held import Held
from tdjax.functions.place import Product
from tdjax.functions.program import Apply, Program, program_of
from tdjax.plan.layers import LEAF, VECTORS, Layer, Storage, is_weight, numbers_obstacle
from tdjax.trace.call import batch_size, call_arguments, split_arrays
from tdjax.trace.marks import INPUT, OUTPUT, inside_call, mark
from tdjax.trace.programs import bind
from tdjax.trace.trace import Trace, TracedCall


@dataclass(frozen=True, eq=False)
class Read:
    """A function on one batch.

    Arguments:
        trace: with marks at the layers.
        others: the entries of arrays that are no layers, with the obstacle.
    """

    trace: Trace
    others: tuple[Layer, ...]


def read(apply: Apply, params: Any, sample: Any) -> Read:
    """Read a function on one batch.

    Arguments:
        params: pytree of arrays or shapes; what else is in it, is static.
        sample: one batch as `tdjax.make_plan` takes it; arrays or shapes.

    Raises ValueError for a sample that the function cannot be called with.
    """
    args, kwargs = call_arguments(sample)
    inputs, _ = split_arrays((args, kwargs))
    _check_keys(inputs)
    with calling_the_model(sample):
        check_switches(functools.partial(apply, params), args, kwargs)
        program = program_of(apply, params, args, kwargs)
    known = known_layers(program)
    taken = {path: own for path, own in known.items() if own.obstacle is None}
    marks = Marks(taken, itertools.count().__next__)
    marked = jax.make_jaxpr(program.with_views(marks, taken))(*program.jaxpr.in_avals)
    return Read(
        Trace(marked, marks.calls, program.outputs, batch_size(inputs), held=len(program.arrays)),
        tuple(layer for layer in known.values() if layer.obstacle is not None),
    )


def known_layers(program: Program) -> dict[str, Layer]:
    """What all arrays of parameters are that are no vectors, with the obstacle or without."""
    shapes = dict(zip(program.arrays, program.jaxpr.in_avals, strict=False))
    known = {
        path: _known(path, aval) for path, aval in shapes.items() if is_weight(LEAF, aval.shape)
    }
    seen = _Seen({path for path, layer in known.items() if layer.obstacle is None})
    jax.eval_shape(program.with_views(seen, seen.paths), *program.jaxpr.in_avals)
    known |= {path: seen.layer(known[path]) for path in seen.paths}
    return {path: layer for path, layer in known.items() if path not in seen.vectors}


def _check_keys(inputs: Sequence[Any]) -> None:
    """Refuse a raw key of random numbers, which looks like two examples."""
    first = next((x for x in inputs if x.shape), None)
    if first is not None and len(inputs) > 1 and (first.shape, first.dtype) == ((2,), jnp.uint32):
        raise ValueError(
            "the first input is uint32[2], which is read as two examples: for a key of random "
            "numbers pass jax.random.key(0), or None where the function takes that"
        )


def _known(path: str, aval: Any) -> Layer:
    """The entry of an array of which nothing but its shape is known."""
    shape = tuple(aval.shape)
    stored = Storage(LEAF, shape, tuple(range(len(shape))))
    return Layer(path, "array", shape, obstacle=numbers_obstacle(LEAF, aval.dtype), stored=stored)


class _Dense:
    """What both policies share: no rule for derivatives is kept, and what reads no view stays."""

    def plain(self, eqn: JaxprEqn, results: Sequence[Any]) -> Sequence[Any]:
        """See `Policy.plain`."""
        return results

    def ruled(self, eqn: JaxprEqn, run: Callable[..., Any], reads: Sequence[Any]) -> list[Any]:
        """See `Policy.ruled`."""
        return run(*reads)


class _Seen(_Dense):
    """Notes what each array goes into.

    Arguments:
        paths: of the arrays.
    """

    def __init__(self, paths: Collection[str]) -> None:
        self.paths = paths
        self._forms: dict[str, set[Layer]] = {path: set() for path in paths}
        self._readers: dict[str, str] = {}
        # Arrays that are read as matrices, or more.
        self._wide: set[str] = set()

    @property
    def vectors(self) -> set[str]:
        """Paths of arrays that are no weights: vectors, of which a stack has one for each layer."""

        def is_vector(path: str) -> bool:
            return path not in self._wide or path.rpartition("/")[2] in VECTORS

        return {path for path in self._readers if not self._forms[path] and is_vector(path)}

    def product(self, held: Held, product: Product, eqn: JaxprEqn, reads: Sequence[Any]) -> Any:
        """See `Policy.product`."""
        self._forms[held.path].add(form_of(product.layer))
        return bind(eqn, [x.content if isinstance(x, Held) else x for x in reads])[0]

    def released(self, held: Held, reader: str) -> Array:
        """See `Policy.released`."""
        self._readers.setdefault(held.path, reader)
        if is_weight(LEAF, held.content.shape):
            self._wide.add(held.path)
        return held.content

    def layer(self, known: Layer) -> Layer:
        """What an array turned out to be."""
        forms, reader = self._forms[known.path], self._readers.get(known.path)
        table = next((form for form in forms if form.kind == "embed"), None)
        if reader is not None:
            also = "elsewhere too" if forms else "otherwise than by a product"
            obstacle = f"it is read {also}, {reader}"
        elif len(forms) == 1 or (table is not None and all(_attends(x, table) for x in forms)):
            return replace(table or next(iter(forms)), path=known.path)
        else:
            obstacle = "it is multiplied in several ways" if forms else "nothing reads it"
        return replace(known, obstacle=obstacle)


class Marks(_Dense):
    """Marks the calls of layers.

    Arguments:
        layers: by path.
        number: gives each call one.
        arrays: by path, of which the marks are to be seen to be, in place of the views.

    Attributes:
        calls: by number.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        number: Callable[[], int],
        arrays: Mapping[str, Any] | None = None,
    ) -> None:
        """No call is known yet."""
        self.layers = layers
        self._number, self._arrays = number, arrays or {}
        self.calls: dict[int, TracedCall] = {}

    def product(self, held: Held, product: Product, eqn: JaxprEqn, reads: Sequence[Any]) -> Any:
        """See `Policy.product`."""
        number, layer = self._number(), self.layers[held.path]
        attends = is_attending(layer, product)
        rows, kernel = product.rows(reads), product.kernel(held.content)
        at, stack = product.batch, layer.storage.stack
        slot = None if stack is None else held.numbers.get(stack)

        def marked(x: Array, kernel: Array, end: str) -> Array:
            if slot is None:
                # Where a product meets all of a stack each mark is that of one, as its kernel is.
                seen = self._arrays.get(held.path, kernel) if at is None else kernel
                return mark(x, seen, number, end)
            return _marked_slot(x, slot, layer.copies, number, end)

        def call(rows: Array, kernel: Array) -> Array:
            x = marked(rows, kernel, INPUT)
            with inside_call(number):
                y = product.multiply(Whole(layer), [kernel], x, attends=False)
            self.calls[number] = TracedCall(
                _of_call(layer, product.layer, attends),
                product.call(attends, shape_of(x), shape_of(y)),
                indexed=slot is not None,
                product=product,
            )
            return marked(y, kernel, OUTPUT)

        over = call if at is None else jax.vmap(call, in_axes=(at, 0), out_axes=at)
        return product.result(over(rows, kernel))

    def released(self, held: Held, reader: str) -> Array:
        """See `Policy.released`."""
        raise AssertionError(f"layer {held.path!r} is read {reader}")


def is_attending(layer: Layer, product: Product) -> bool:
    """Whether a product with a table is one with its rows, none that takes them."""
    return layer.kind == "embed" and product.layer.kind != "embed"


def shape_of(x: Array) -> jax.ShapeDtypeStruct:
    """The shape of an array, which may be traced."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def form_of(layer: Layer) -> Layer:
    """What is the same in all calls of a layer."""
    return replace(layer, path="", in_spatial=(), out_spatial=(), positions=1, lookups=0)


def _attends(form: Layer, table: Layer) -> bool:
    """Whether a product is with the rows of a table, or takes them."""
    order = table.storage.order
    other = replace(form.storage, order=order)
    turned = form.storage.order == (*order[1:], order[0]) and other == table.storage
    return form == table or (form.kind == "dense" and turned)


def _of_call(layer: Layer, own: Layer, attends: bool) -> Layer:
    """A layer with what one call says of it."""
    return replace(
        layer,
        in_spatial=own.in_spatial,
        out_spatial=own.out_spatial,
        positions=own.positions,
        lookups=0 if attends else own.lookups,
    )


def _marked_slot(x: Array, slot: Array, copies: int, number: int, end: str) -> Array:
    """An array, marked as the one of a layer of a stack; those of the others are zero."""
    slots = jnp.zeros((copies, *x.shape), x.dtype).at[slot].set(x)
    marked = jax.vmap(lambda x, kernel: mark(x, kernel, number, end))(slots, jnp.zeros(copies))
    return marked[slot]
