"""Dense against factorised inference: `python -m benchmarks.inference`.

ResNet-18 at 32x32 and its 3x3 layers one by one, each alone in a model of its own, on the same
random images, both sides in turns. MACs beside seconds show where fewer of the ones do not mean
fewer of the others.
"""

import flax.linen as nn
import jax
from absl import app, flags

import tdjax
from benchmarks.timing import describe_machine
from experiments.models import ResNet18
from experiments.models.convolution import convolve

BATCH = flags.DEFINE_integer("batch", 32, "Images at once.")
METHOD = flags.DEFINE_string("method", "tucker", "cp, tucker, tt, svd or auto.")
KEEP = flags.DEFINE_list("keep", ["0.1", "0.25", "0.5"], "Shares of the parameters kept.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed rounds of both sides.")
LAYERS = flags.DEFINE_bool("layers", True, "Each shape of layer too, not the network alone.")


def row(name: str, model: nn.Module, x: jax.Array, keep: float, path: str) -> str:
    """Time a model against itself with the layers at `path` factorised."""
    variables = jax.jit(model.init)(jax.random.key(0), x)
    rules = [tdjax.Rule(path=path, method=METHOD.value, compression=1 - keep)]
    plan = tdjax.make_plan(model, variables, rules, x)
    small = tdjax.factorize(model, plan)
    factors = tdjax.factorize_params(variables["params"], plan, key=jax.random.key(1), max_iters=1)
    smaller = {**variables, "params": factors}
    dense_call, small_call = jax.jit(model.apply), jax.jit(small.apply)
    found = plan.profile(
        lambda: dense_call(variables, x), lambda: small_call(smaller, x), ROUNDS.value
    ).measured
    assert found is not None
    fewer = plan.macs_before / plan.macs
    return (
        f"| {name} | {keep:.0%} | {1e3 * found.before:.3g} | {1e3 * found.after:.3g} "
        f"| {found.speedup:.2f} [{found.least:.2f}, {found.most:.2f}] | {fewer:.2f} |"
    )


def main(_: list[str]) -> None:
    """Print a row for the network and for each shape of layer, at each size."""
    print(describe_machine())
    print(f"batch {BATCH.value}, {METHOD.value}; median [least, most] of {ROUNDS.value} rounds\n")
    print("| what | kept | dense ms | factorised ms | times as fast | times fewer MACs |")
    print("|---|---:|---:|---:|---:|---:|")
    network = ResNet18()
    x = jax.random.normal(jax.random.key(2), (BATCH.value, 32, 32, 3))
    for keep in map(float, KEEP.value):
        print(row("ResNet-18", network, x, keep, r"layer.*/conv\d"), flush=True)
    if not LAYERS.value:
        return
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    table = tdjax.layer_table(network, variables, x)
    shapes = {
        (layer.in_spatial, layer.out_spatial, layer.kernel_shape): layer
        for layer in table
        if layer.path.startswith("layer") and layer.kernel_shape[0] == 3
    }
    for layer in shapes.values():
        stride = layer.in_spatial[0] // layer.out_spatial[0]
        inputs, outputs = layer.kernel_shape[2:]
        alone = nn.Conv(
            outputs,
            (3, 3),
            strides=stride,
            padding=1,
            use_bias=False,
            conv_general_dilated=convolve,
        )
        x = jax.random.normal(jax.random.key(3), (BATCH.value, *layer.in_spatial, inputs))
        for keep in map(float, KEEP.value):
            print(row(layer.path, alone, x, keep, ""), flush=True)


if __name__ == "__main__":
    app.run(main)
