import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.refinement.records import read_records
from benchmarks.transformers import library_bytes, ours, peers, statistics
from benchmarks.transformers.models import DigitsTransformer, LanguageModel
from benchmarks.transformers.nnx_models import twin_of
from benchmarks.transformers.runs import BYTES, Measured, measure
from benchmarks.transformers.settings import SCHEMA, Settings
from benchmarks.transformers.task import Classified
from benchmarks.transformers.training import trained

SETTINGS = Settings(draws=1, epochs=1, seed=0)
LENGTH = 12


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    for number in range(20):
        text = f"# Line {number:02d} of a module \u00e9\nx = {number:02d} + 1\n" * 12
        (folder / f"m{number:02d}.py").write_text(text, "utf-8")
    return folder


@pytest.fixture(scope="module")
def task(library):
    texts = library_bytes.read_texts(0, library)
    seen = library_bytes.drawn_windows(texts.seen, LENGTH, 48, 0)
    held_out = library_bytes.drawn_windows(texts.held_out, LENGTH, 32, 0)
    model = LanguageModel(width=8, depth=2, heads=2, places=LENGTH)
    variables = model.init(jax.random.key(0), seen[0][:1])
    return Classified(model, variables, seen, held_out, twin_of(model, variables), size=24)


@pytest.fixture(scope="module")
def measured(task):
    return Measured(task, SETTINGS, task.digest, statistics)


def test_texts_that_judge_are_of_other_modules(library):
    texts = library_bytes.read_texts(0, library)
    lines = [{line for line in own.tobytes().split(b"\n") if b"#" in line} for own in texts]
    assert not lines[0] & lines[1]
    assert len(lines[0] | lines[1]) == 20
    assert max(own.max() for own in texts) < 128
    ids, following = library_bytes.drawn_windows(texts.seen, LENGTH, 9, 0)
    np.testing.assert_array_equal(ids[:, 1:], following[:, :-1])
    with pytest.raises(ValueError, match="pieces of 12 are asked for"):
        library_bytes.drawn_windows(texts.seen, LENGTH, 10**4, 0)


def test_both_libraries_of_modules_have_one_network(task):
    inputs = task.held_out[0][:4]
    own = np.asarray(task.program(task.variables, inputs))
    np.testing.assert_allclose(nnx.jit(task.twin)(inputs), own, atol=1e-5)
    # No byte knows what comes after it.
    other = np.array(inputs)
    other[:, -1] = 1
    changed = np.asarray(task.program(task.variables, other))
    np.testing.assert_allclose(changed[:, :-1], own[:, :-1], atol=1e-6)


def test_both_sides_see_the_same_inputs(task, measured):
    assert set(measured.inputs) == set(task.kernels) == set(measured.moments)
    for path, (size, moment) in measured.inputs.items():
        own = measured.moments[path]
        assert own.rows == task.seen[0].size
        np.testing.assert_allclose(own.inputs[0], moment, atol=1e-5 * np.abs(moment).max())
        assert np.all(np.abs(own.mean[0]) <= size + 1e-5)
        # That of normalised rows is singular; one of float32 had eigenvalues below zero.
        assert np.linalg.eigvalsh(moment)[0] > -1e-12 * np.abs(moment).max()


def test_fisher_information_is_of_each_example_by_itself(task):
    few = Classified(task.model, task.variables, tuple(own[:3] for own in task.seen), task.held_out)
    path = "block1/narrow"

    def loss(kernel, place):
        logits = task.model.apply(task.with_kernels({path: kernel}), few.seen[0][place][None])[0]
        logs = jax.nn.log_softmax(logits)
        return -logs[np.arange(LENGTH), few.seen[1][place]].mean()

    squares = [np.asarray(jax.grad(loss)(task.kernels[path], place)) ** 2 for place in range(3)]
    found = statistics.fisher_of(few, seed=0)[path]
    np.testing.assert_allclose(found, np.mean(squares, axis=0).sum(axis=1), rtol=1e-4)


def test_nothing_is_lost_at_full_rank(task, measured):
    whole = {
        path: peers.whitened(kernel, measured.inputs[path].moment)
        for path, kernel in task.kernels.items()
    }
    small = {path: own.kernel for path, own in statistics.updated(task, whole).items()}
    dense = task.kept(task.variables)
    assert task.kept(task.with_kernels(small)) == pytest.approx(dense, abs=1e-3)


def test_rows_of_the_table(task, measured, tmp_path):
    path = tmp_path / "records.jsonl"
    methods = ["SVD-LLM", "covariance", "loss", "loss in NNX", *BYTES]
    found = list(measure(measured, methods, [0.5], read_records(path, SCHEMA)))
    by = {own["method"]: own for own in found}
    for name in ("cross_entropy", "share"):
        assert by["covariance"][name] == pytest.approx(by["SVD-LLM"][name], abs=1e-3)
        assert by["loss in NNX"][name] == pytest.approx(by["loss"][name], abs=1e-3)
    assert all(0 < own["share"] <= 0.5 for own in found)
    # Integers take a quarter of the bytes, so that ranks need not be cut.
    dense = task.kept(task.variables).cross_entropy
    lost = {name: abs(own["cross_entropy"] - dense) for name, own in by.items()}
    assert lost["loss in bytes"] < lost["covariance"]
    again = Measured(task, SETTINGS, task.digest, statistics)
    assert list(measure(again, methods, [0.5], read_records(path, SCHEMA))) == found
    assert "moments" not in vars(again)


def test_a_trained_network_is_read_again(tmp_path):
    drawn = np.random.default_rng(0)
    images, labels = drawn.normal(size=(24, 8, 8, 1)).astype(np.float32), np.arange(24) % 10

    def batches(number):
        return ((images, labels) for _ in range(number))

    model, path = DigitsTransformer(width=8, depth=1, heads=2), tmp_path / "network.npz"
    known = trained(model, batches, 20, 1e-2, path)
    jax.tree.map(np.testing.assert_array_equal, trained(model, batches, 20, 1e-2, path), known)
    task = Classified(model, known, (images, labels), (images, labels))
    before = task.kept(model.init(jax.random.key(0), images))
    assert task.kept(known).cross_entropy < before.cross_entropy
    assert set(ours.collected(task, 1, 0)) == set(task.kernels)
