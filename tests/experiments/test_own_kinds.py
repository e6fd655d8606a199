"""Networks of every kind, losses, metrics and labels of one's own, in the experiments."""

import itertools
import json
import re
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

import tdjax
from experiments import compress, compressibility, data_aware, error_study
from experiments.compress.settings import SCHEMA
from experiments.compressibility.layers import layers_of
from experiments.compressibility.measure import tuned
from experiments.data import prepare_arrays
from experiments.error_study.candidates import decompose_runs, kernel_of
from experiments.error_study.choices import plan_study
from experiments.error_study.measure import compressed_records, finetune_records
from experiments.network.baseline import train_baseline
from experiments.network.forward import Variables
from experiments.network.judge import Judge, judge_of
from experiments.network.network import configured, given
from experiments.workdir.fields import read_fields
from experiments.workdir.journal import read_journal

pytest.importorskip("matplotlib")

pytestmark = pytest.mark.usefixtures("cache")

WIDTHS = (12, 16, 16, 3)
OWN = {
    "data": {"name": "mine"},
    "model": {"name": "mine"},
    "train": {"epochs": 1, "batch_size": 32},
}
CALIBRATION = {"calibration": {"images": [200], "subsets": 1}}
HERE = "test_own_kinds"


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for place, width in enumerate(WIDTHS[1:]):
            x = nn.Dense(width, use_bias=False, name=f"layers_{place}")(nn.relu(x))
        return x


class Nnx(nnx.Module):
    def __init__(self, rngs):
        for place, (n, m) in enumerate(itertools.pairwise(WIDTHS)):
            setattr(self, f"layers_{place}", nnx.Linear(n, m, use_bias=False, rngs=rngs))
        self.norm = nnx.BatchNorm(WIDTHS[0], use_scale=False, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(self.norm(x))
        for place in range(len(WIDTHS) - 1):
            x = getattr(self, f"layers_{place}")(nnx.relu(x))
        return x


def function(params, x, train=False, key=None):
    """Weights the other way round; in training its outputs are doubled."""
    for weight in params["layers"]:
        x = jax.nn.relu(x) @ weight.T
    return x * (1 + train)


def kernels():
    rng = np.random.default_rng(0)
    shapes = itertools.pairwise(WIDTHS)
    return [(rng.normal(size=(n, m)) / np.sqrt(n / 2)).astype(np.float32) for n, m in shapes]


def transposed():
    return {"layers": [jnp.asarray(kernel.T) for kernel in kernels()]}


def made(seed):
    return Nnx(nnx.Rngs(seed))


def classed(count=400):
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(count, WIDTHS[0])).astype(np.float32)
    labels = expected(inputs).argmax(axis=1)
    parts = {"train": slice(30, None), "test": slice(30)}
    found = {f"{part}_inputs": inputs[own] for part, own in parts.items()}
    return {**found, **{f"{part}_labels": labels[own] for part, own in parts.items()}}


def expected(x, changed=None):
    """The outputs, in NumPy."""
    for kernel in kernels() if changed is None else changed:
        x = np.maximum(x, 0) @ kernel
    return x


def network(kind, settings, splits=None):
    splits = prepare_arrays(classed()) if splits is None else splits
    if kind == "function":
        return given(settings, function, transposed(), splits)
    named = {f"layers_{place}": {"kernel": kernel} for place, kernel in enumerate(kernels())}
    if kind == "linen":
        return given(settings, Linen(), {"params": named}, splits)
    model = made(0)
    for name, own in named.items():
        getattr(model, name).kernel[...] = own["kernel"]
    # So that in its inference mode it does nothing.
    model.norm.var[...] = jnp.full(WIDTHS[0], 1 - model.norm.epsilon)
    return given(settings, model, None, splits)


def records(folder, kind):
    """Those of a kind, without when they were written."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    found = [one for one in map(json.loads, lines) if one["kind"] == kind]
    return [{name: value for name, value in one.items() if name != "at"} for one in found]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", ["nnx", "function"])
def test_all_kinds_of_a_network_are_compressed_alike(kind, tmp_path):
    asked = {"strategies": ["loss"], "budgets": [0.6], "methods": ["svd"], "timed_images": 5}
    settings = read_fields(compress.Compress, {**OWN, **CALIBRATION, **asked})
    own = network(kind, settings)
    compress.run(own, settings, tmp_path / "run")
    (whole,) = records(tmp_path / "run", "baseline")
    (small,) = records(tmp_path / "run", "network")
    assert (whole["test"]["accuracy"], whole["params"]) == (1.0, sum(k.size for k in kernels()))
    (folder,) = (tmp_path / "run" / "compressed").iterdir()
    inputs = own.splits.test.images
    if kind == "nnx":
        found, plan = tdjax.load_factorised(folder, like=made(1))
        found.eval()
        outputs = found(inputs)
    else:
        found, plan = tdjax.load_factorised(folder, like=transposed())
        outputs = tdjax.factorize(function, plan)(found, inputs)
    right = np.mean(np.argmax(outputs, axis=1) == own.splits.test.labels)
    assert small["test"]["accuracy"] == pytest.approx(float(right))
    # The same formats at the same ranks, whatever holds the kernels.
    assert [entry.ranks for entry in plan.layers] == [(2,), (6,), ()]
    assert len(records(tmp_path / "run", "timed")) == 1


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", ["nnx", "function"])
def test_a_network_is_refined_without_its_labels(kind, tmp_path):
    asked = {"strategies": ["uniform"], "budgets": [0.6], "methods": ["svd"]}
    asked |= {"norms": ["frobenius"], "refine": {"epochs": 4}}
    settings = read_fields(compress.Compress, {**OWN, **CALIBRATION, **asked})
    splits = prepare_arrays(classed())
    page = compress.run(network(kind, settings, splits), settings, tmp_path / "run")
    text = page.read_text("utf-8")
    assert "Side by side: accuracy, %" in text
    assert "on the 200 images of its calibration" in text
    assert "10 % are held out to choose the epoch: 4 epochs, mse of the outputs" in text
    (found,) = records(tmp_path / "run", "refined")
    losses = [found["curve"]["start"], *found["curve"]["validation_loss"]]
    assert (len(losses), len(found["curve"]["train_loss"])) == (5, 4)
    assert losses[found["epoch"]] == min(losses) < losses[0]
    # Other labels make no other network.
    labels = np.random.default_rng(2).permutation(splits.train.labels)
    blind = replace(splits, train=replace(splits.train, labels=labels))
    compress.run(network(kind, settings, blind), settings, tmp_path / "blind")
    assert records(tmp_path / "blind", "refined") == [found]
    # What is kept is what was measured, and nearer to what the network was, on its own images.
    (folder,) = (tmp_path / "run" / "compressed").iterdir()
    like = made(1) if kind == "nnx" else transposed()
    call, plan = tdjax.load_factorised(folder, like=like)
    if kind == "nnx":
        call.eval()
    else:
        call = partial(tdjax.factorize(function, plan), call)
    outputs, truth = np.asarray(call(splits.test.images), np.float64), splits.test.labels
    assert found["test"]["accuracy"] == pytest.approx(np.mean(outputs.argmax(axis=1) == truth))
    likely = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    loss = -np.log(likely[np.arange(len(truth)), truth]).mean()
    assert found["test"]["cross_entropy"] == pytest.approx(loss, rel=1e-5)
    cut = [truncated(*own) for own in zip(kernels(), plan.layers, strict=True)]
    inputs = splits.train.images
    near, far = (
        np.mean((own - expected(inputs)) ** 2) for own in (call(inputs), expected(inputs, cut))
    )
    assert near < 0.8 * far


def truncated(kernel, entry):
    if not entry.ranks:
        return kernel
    u, s, v = np.linalg.svd(kernel)
    (rank,) = entry.ranks
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def test_the_study_takes_arrays_that_hold_a_kernel_the_other_way_round():
    asked = {"layers": ["layers/1"], "methods": ["svd"], "compressions": [0.5], "runs": 1}
    asked |= {"finetune": {"epochs": 1}, "measure": {"feature_images": 40}}
    settings = read_fields(error_study.Protocol, {**OWN, **asked})
    own = network("function", settings)
    study = plan_study(own, settings)
    ((choice, plan),) = study.plans.items()
    key = choice, 0
    factors = decompose_runs(
        kernel_of(own.start, plan.layer),
        study.plans,
        settings.runs_of,
        settings.decompose,
        jax.random.key(0),
    )
    record = compressed_records(study, own.start, "layers/1", study.plans, factors, None)[key]
    (rank,) = record["ranks"]
    u, s, v = np.linalg.svd(kernels()[1])
    assert record["errors"]["weights/absolute"] == pytest.approx(
        np.sqrt((s[rank:] ** 2).sum()), rel=1e-4
    )
    cut = [*kernels()[:1], (u[:, :rank] * s[:rank]) @ v[:rank], *kernels()[2:]]
    test = own.splits.test
    right = np.mean(expected(test.images, cut).argmax(axis=1) == test.labels)
    assert record["test"]["accuracy"] == pytest.approx(float(right))
    tuned = finetune_records(study, own.start, choice, plan, factors, [factors[key]])[key]
    assert tuned["epoch"] == 1


@pytest.mark.parametrize("kind", ["nnx", "function"])
def test_what_goes_through_the_layers_is_seen(kind):
    settings = read_fields(compressibility.Compressibility, {**OWN, **CALIBRATION, "runs": 1})
    own = network(kind, settings)
    x = own.splits.test.images
    layers = layers_of(own, own.start, [x[:10], x[10:]])
    for place in range(3):
        into = np.maximum(expected(x, kernels()[:place]), 0)
        out = into @ kernels()[place]
        name = f"layers/{place}" if kind == "function" else f"layers_{place}"
        bound, scale = (found[name] for found in (layers.bounds, layers.scales))
        assert bound == pytest.approx(into.max(), rel=1e-5)
        assert scale == pytest.approx(np.sqrt(np.mean(out**2)), rel=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_a_function_is_pruned_as_a_module_is(tmp_path):
    asked = {"runs": 1, "methods": ["magnitude layer"], "shares": [0.5], "qs": [0.5]}
    asked |= {**OWN, **CALIBRATION, "layer_steps": 3}
    settings = read_fields(compressibility.Compressibility, asked)
    found = {}
    for kind in ("linen", "function"):
        page = compressibility.run(network(kind, settings), settings, tmp_path / kind)
        found[kind] = {name: records(tmp_path / kind, name) for name in ("layer", "pruned")}
        (whole,) = records(tmp_path / kind, "baseline")
        assert (
            ("removes_dead" in whole) == ("not looked for" in page.read_text()) == (kind != "linen")
        )
    for ours, theirs in zip(found["linen"]["layer"], found["function"]["layer"], strict=True):
        assert ours["reached"] == theirs["reached"]
        for one, other in zip(ours["by_q"], theirs["by_q"], strict=True):
            for index in ("sparsity_index", "effective_number"):
                assert one[index] == pytest.approx(other[index], rel=1e-5)
            assert one["looseness"]["bound"] == pytest.approx(other["looseness"]["bound"], rel=1e-3)
    for ours, theirs in zip(found["linen"]["pruned"], found["function"]["pruned"], strict=True):
        assert (ours["test"]["accuracy"], ours["pruned"]) == (
            theirs["test"]["accuracy"],
            theirs["pruned"],
        )
    # Zeros stay in training, whichever way round a kernel lies.
    params = jax.tree.map(lambda own: own.at[:, 0].set(0), transposed())
    longer = {**asked, "finetune": {"epochs": 1}}
    own = network("function", read_fields(compressibility.Compressibility, longer))
    _, best = tuned(own, Variables(params, {}), "some")
    for before, after in zip(params["layers"], best.params["layers"], strict=True):
        np.testing.assert_array_equal(after == 0, before == 0)


@pytest.mark.parametrize("kind", ["nnx", "function"])
def test_networks_that_come_with_arrays_are_trained_or_read(kind, tmp_path, monkeypatch):
    name = f"{HERE}:made" if kind == "nnx" else f"{HERE}:pair"
    raw = {**OWN, **CALIBRATION, "model": {"name": name}, "data": {"name": f"{HERE}:classed"}}
    settings = read_fields(compress.Compress, {**raw, "seed": 3})
    own = configured(settings)
    assert not own.is_trained
    journal = read_journal(tmp_path / "metrics.jsonl", SCHEMA)
    fit = train_baseline(own, tmp_path / "checkpoints", journal)
    changed = jax.tree.map(lambda a, b: bool((a != b[0]).any()), own.start, fit.model)
    # Statistics and counters of random numbers too, but no keys.
    assert sum(jax.tree.leaves(changed)) == (6 if kind == "nnx" else 3)
    # As it is where nothing is to be trained.
    as_it_is = read_fields(compress.Compress, {**raw, "train": {"epochs": 0}})
    assert configured(as_it_is).is_trained
    if kind == "nnx":
        arrays = nnx.to_pure_dict(nnx.state(made(7), (nnx.Param, nnx.BatchStat)))
        arrays = flatten_dict(arrays, sep="/")
    else:
        arrays = {f"layers/{k}": leaf for k, leaf in enumerate(transposed()["layers"])}
    np.savez(tmp_path / "own.npz", **arrays)
    name = next(name for name in arrays if name.startswith("layers"))
    others = {own: leaf for own, leaf in arrays.items() if own != name}
    np.savez(tmp_path / "renamed.npz", **others, **{f"{name}s": arrays[name]})
    renamed = read_fields(compress.Compress, {**raw, "weights": str(tmp_path / "renamed.npz")})
    with pytest.raises(ValueError, match=f"renamed.npz: lacks {name}; it holds {name}s in their"):
        configured(renamed)
    read = configured(read_fields(compress.Compress, {**raw, "weights": str(tmp_path / "own.npz")}))
    wanted = made(7).layers_1.kernel[...] if kind == "nnx" else transposed()["layers"][1]
    params = read.start.params
    found = params["layers_1"]["kernel"] if kind == "nnx" else params["layers"][1]
    assert read.is_trained
    np.testing.assert_array_equal(found, wanted)


def pair():
    return function, transposed()


def stacked():
    first, middle, last = kernels()

    def apply(params, x):
        x, _ = jax.lax.scan(
            lambda x, own: (jax.nn.relu(x @ own), None), x @ first, params["middle"]
        )
        return x @ params["last"]

    return apply, {"middle": jnp.stack([middle, middle]), "last": last}


def counted():
    return function, {**transposed(), "step": jnp.zeros((), jnp.int32)}


def halved(outputs, labels):
    return jnp.zeros(len(labels) // 2)


@pytest.mark.parametrize(
    ("package", "fields", "problem"),
    [
        ("data_aware", {"correct_bias": [True]}, "'correct_bias' has True: of a function's arrays"),
        (
            "compressibility",
            {"runs": 1},
            "'methods' has 'abp-l', .* of a function that is not known",
        ),
        (
            "compressibility",
            {"runs": 1, "model": {"name": f"{HERE}:stacked"}},
            "layer 'middle' is one of a stack or in a loop",
        ),
        ("compress", {"reestimate": True}, "has no batch statistics"),
        (
            "compress",
            {"refine": {"epochs": 1, "features": ["layers"]}},
            r"'refine.features' is \('layers',\): a function has no modules",
        ),
        (
            "compress",
            {"refine": {"epochs": 1}, "train": {"epochs": 0, "augment": True}},
            "'train.augment' is True: no such thing for data of your own",
        ),
        ("compress", {"model": {"name": f"{HERE}:counted"}}, "parameter 'step' is int32"),
        ("compress", {"loss": f"{HERE}:halved"}, f"'metric' is None: a loss .*'{HERE}:halved'"),
        ("compress", {"loss": "squared_error"}, r"'loss' fails: outputs of shape \(1, 3\) for"),
        ("compress", {"loss": f"{HERE}:halved", "metric": "accuracy"}, r"'loss' gives shape \(0,"),
        ("compress", {"metric": f"{HERE}:absent"}, f"'{HERE}' has no 'absent'"),
    ],
)
def test_what_an_experiment_cannot_take_is_told_before_any_work(package, fields, problem, tmp_path):
    package, cls = {
        "data_aware": (data_aware, data_aware.DataAware),
        "compressibility": (compressibility, compressibility.Compressibility),
        "compress": (compress, compress.Compress),
    }[package]
    raw = {**OWN, **CALIBRATION, "data": {"name": f"{HERE}:classed"}}
    settings = read_fields(cls, {**raw, "model": {"name": f"{HERE}:pair"}, **fields})
    with pytest.raises(ValueError, match=problem):
        package.run(configured(settings), settings, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_losses_and_metrics_are_those_of_their_names():
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(6, 2)), rng.normal(size=(6, 2))
    metric, loss = judge_of("squared_error", None, labels)(jnp.array(outputs), jnp.array(labels))
    squared = ((outputs - labels) ** 2).mean(axis=1)
    np.testing.assert_allclose(loss, squared, rtol=1e-5)
    variance = labels.var(axis=0).mean()
    np.testing.assert_allclose(metric, 1 - squared / variance, rtol=1e-4, atol=1e-5)
    signs = (labels > 0).astype(np.int32)
    metric, loss = judge_of("binary_cross_entropy", None, signs)(
        jnp.array(outputs), jnp.array(signs)
    )
    likely = np.where(signs, 1, -1) * outputs
    np.testing.assert_allclose(loss, np.log1p(np.exp(-likely)).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(metric, (likely > 0).mean(axis=1))
    judge = judge_of("squared_error", None, labels)
    broken, _ = judge(jnp.array(outputs).at[0].set(jnp.nan), jnp.array(labels))
    np.testing.assert_array_equal(judge.bounded(np.array([broken.mean(), 0.25])), [0, 0.25])
    with pytest.raises(ValueError, match="a share from 0 to 1"):
        Judge(metric=halved).bounded(np.array([2.0]))


def undated(page):
    """A page without when, and for how long, it was measured."""
    return re.sub(r"<dt>(measured|duration)</dt><dd>[^<]*</dd>", "", page)


def test_labels_may_be_numbers_and_a_validation_set_may_come_along(tmp_path):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, WIDTHS[0])).astype(np.float16)
    # With a residual, of which the gradient is one.
    outputs = expected(inputs.astype(np.float32))
    outputs += 0.3 * rng.normal(size=outputs.shape).astype(np.float32)
    names = ("train", "validation", "test")
    parts = dict(zip(names, np.split(np.arange(300), [200, 240]), strict=True))
    arrays = {f"{part}_inputs": inputs[own] for part, own in parts.items()}
    arrays |= {f"{part}_labels": outputs[own] for part, own in parts.items()}
    splits = prepare_arrays(arrays, classes=False)
    for part, own in parts.items():
        np.testing.assert_array_equal(getattr(splits, part).labels, outputs[own])
    alone = {name: own for name, own in arrays.items() if "validation" not in name}
    split = prepare_arrays(alone, 0.2, classes=False)
    assert (len(split.train.labels), len(split.validation.labels)) == (160, 40)
    with pytest.raises(ValueError, match="validation_labels are needed, or neither"):
        prepare_arrays({**alone, "validation_inputs": inputs}, classes=False)
    asked = {"methods": ["svd"], "keeps": [0.75], "norms": ["kronecker"], "loss": "squared_error"}
    raw = {**OWN, **asked, "calibration": {"images": [200], "subsets": 1}}
    raw |= {"refine": {"epochs": 4, "features": ["layers_1"]}}
    settings = read_fields(data_aware.DataAware, raw)
    own = network("linen", settings, splits)
    for name, field, problem in (
        ("loss", "kl", "'refine.loss' is 'kl', which compares probabilities of classes, and"),
        (
            "features",
            ("layer_1",),
            r"'refine.features' is .*: matches no module; did you mean 'layers_1'",
        ),
        ("features", ("layer(",), r"'refine.features' is .*: missing \), unterminated subpattern"),
        ("augment", True, r"'refine.augment' is True, but the inputs are no images; use False"),
    ):
        asked = replace(settings, refine=replace(settings.refine, **{name: field}))
        if name == "augment":
            asked = replace(asked, train=replace(settings.train, augment=True))
        with pytest.raises(ValueError, match=problem):
            data_aware.run(network("linen", asked, splits), asked, tmp_path / "none")
        assert not (tmp_path / "none").exists()
    page = data_aware.run(own, settings, tmp_path / "run")
    (whole,) = records(tmp_path / "run", "baseline")
    (small,) = records(tmp_path / "run", "network")
    variance = outputs[parts["train"]].var(axis=0).mean()
    test = splits.test
    error = np.mean((expected(test.images) - test.labels) ** 2)
    assert whole["test"]["accuracy"] == pytest.approx(1 - error / variance, rel=1e-4)
    assert 0 < small["test"]["accuracy"] < whole["test"]["accuracy"]
    assert small["test"]["accuracy"] == pytest.approx(
        1 - small["test"]["cross_entropy"] / variance, rel=1e-4
    )
    text = page.read_text("utf-8")
    # Refined anew, it is the same to the last digit.
    (better,) = records(tmp_path / "run", "refined")
    assert small["test"]["accuracy"] < better["test"]["accuracy"] < whole["test"]["accuracy"]
    journal = tmp_path / "run" / "metrics.jsonl"
    lines = journal.read_text("utf-8").splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"refined"' not in line), "utf-8")
    again = data_aware.run(own, settings, tmp_path / "run").read_text("utf-8")
    assert undated(again) == undated(text)
    assert records(tmp_path / "run", "refined") == [better]
    assert "Whole network, without fine-tuning: explained variance, %" in text
    assert "accuracy, %" not in text
