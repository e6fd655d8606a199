"""The ways to compute a factorised convolution, in turns: `python -m benchmarks.ways`.

One 3x3 layer, alone in a model of its own, dense and in each form, its factors multiplied in each
way that it can be computed in, all on the same random images, in one process. Beside what was
measured stands what the rule of `tdjax.compute.rule` chooses, stage by stage, and predicts: where
that is not the fastest, its constants are to be looked at.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from absl import app, flags

import tdjax
from benchmarks.timing import Timing, describe_machine, interleaved, ratio
from tdjax.compute.rule import chain_cost, dense_cost, differing_ways, is_reconstructed
from tdjax.plan.decide import plan_layer
from tdjax.plan.ways import RECONSTRUCT, WAYS

SHAPES = flags.DEFINE_list(
    "shapes",
    ["16x32x8", "32x16x32", "64x8x32", "64x56x1", "64x56x16", "128x28x1", "256x14x1", "512x7x1"],
    "Layers as channels x size of the map x batch.",
)
FORMS = flags.DEFINE_list("forms", ["tucker", "svd", "rows", "cp", "tt", "splits"], "See FORM.")
KEEP = flags.DEFINE_list("keep", ["0.25", "0.5"], "Shares of the parameters kept.")
ROUNDS = flags.DEFINE_integer("rounds", 20, "Timed rounds of all ways.")

# A layer in the ways of the rule, stage by stage.
RULE = "rule"
FORM: dict[str, dict[str, Any]] = {
    "tucker": {"method": "tucker"},
    "svd": {"method": "svd"},
    "rows": {"method": "svd", "fold": "rows"},
    "cp": {"method": "cp"},
    "merged": {"method": "cp", "spatial": "merged"},
    "tt": {"method": "tt"},
    "splits": {"method": "svd", "splits": 4},
}


def timings(
    layer: tdjax.Layer, form: str, keep: float, x: jax.Array
) -> tuple[tdjax.PlannedLayer, dict[str, Timing]]:
    """The entry of the layer in a form, and what each way takes, the dense layer's first."""
    rule = tdjax.Rule(path="", compression=1 - keep, **FORM[form])
    entry = plan_layer(layer, rule)
    plan, model = tdjax.Plan((entry,)), dense_model(layer.kernel_shape[-1])
    variables = jax.jit(model.init)(jax.random.key(0), x)
    factors = jax.jit(tdjax.factorize(model, plan).init)(jax.random.key(1), x)
    dense = jax.jit(model.apply)
    calls: dict[str, Callable[[], Any]] = {"dense": partial(dense, variables, x)}
    for way in differing_ways(entry):
        small = jax.jit(tdjax.factorize(model, plan.with_ways(way)).apply)
        calls[way] = partial(small, factors, x)
    small = jax.jit(tdjax.factorize(model, plan).apply)
    calls[RULE] = partial(small, factors, x)
    return entry, dict(zip(calls, interleaved(list(calls.values()), ROUNDS.value), strict=True))


def dense_model(width: int) -> nn.Module:
    """The layer alone."""
    return nn.Conv(width, (3, 3), use_bias=False)


def row(shape: str, form: str, keep: float) -> str:
    """What was measured of one layer in one form, with the rule beside it."""
    width, size, batch = map(int, shape.split("x"))
    x = jax.random.normal(jax.random.key(2), (batch, size, size, width))
    variables = jax.eval_shape(dense_model(width).init, jax.random.key(0), x)
    (layer,) = tdjax.layer_table(dense_model(width), variables, x)
    entry, found = timings(layer, form, keep, x)
    dense, ruled = found.pop("dense"), found.pop(RULE)
    cells = [f"{1e3 * dense.median:.3g}"]
    for way in WAYS:
        cells.append(_times(ratio(dense, found[way]), found[way]) if way in found else "")
    fastest = max(found, key=lambda way: ratio(dense, found[way]).median)
    # On whatever machine this runs, what the rule says of a CPU.
    chosen = RECONSTRUCT if is_reconstructed(entry, x.shape, "cpu") else "chain"
    predicted = dense_cost(entry, batch) / chain_cost(entry, batch)
    fewer = float(entry.layer.macs / entry.macs)
    cells += [fastest, f"{chosen} ({predicted:.2f})", _times(ratio(dense, ruled), ruled)]
    cells.append(f"{fewer:.2f}")
    ranks = ",".join(map(str, entry.ranks))
    return f"| {shape} | {form} {ranks} | {keep:.0%} | {' | '.join(cells)} |"


def _times(faster: Timing, own: Timing) -> str:
    return f"{1e3 * own.median:.3g}: {faster}"


def main(_: list[str]) -> None:
    """Print a row for each layer, form and size."""
    print(describe_machine())
    print(
        f"3x3 layers as channels x map x batch; ms: times as fast as the dense layer, median "
        f"[least, most] of {ROUNDS.value} rounds; the rule's choice, and how many times faster it "
        "takes the chain to be than the dense kernel, multiplied out\n"
    )
    header = [
        "layer", "form", "kept", "dense ms", *WAYS, "fastest", "rule", "by the rule",
        "times fewer MACs",
    ]  # fmt: skip
    print(f"| {' | '.join(header)} |")
    print(f"|{'---|' * len(header)}")
    for shape in SHAPES.value:
        for keep in map(float, KEEP.value):
            for form in FORMS.value:
                print(row(shape, form, keep), flush=True)


if __name__ == "__main__":
    app.run(main)
