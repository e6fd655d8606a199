import jax
import numpy as np
import pytest
from published_encoder import WORDS, write

import tdjax
from benchmarks.refinement.records import read_records
from benchmarks.sentences import statistics
from benchmarks.sentences.settings import SCHEMA, Settings
from benchmarks.sentences.task import Task, compared
from benchmarks.sentences.text import draw_texts, sentences_of
from benchmarks.transformers import ours, peers
from benchmarks.transformers.runs import Measured, measure
from experiments.network.sentence_encoders import load_sentence_encoder

WIDTH = 10
SETTINGS = Settings(sentences=48, held_out=12, width=WIDTH, draws=1, epochs=1, seed=0)


def texts(number, seed):
    drawn = np.random.default_rng(seed)
    return [" ".join(drawn.choice(WORDS[8:], drawn.integers(2, 9))) for _ in range(number)]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    model, variables, pieces = load_sentence_encoder(write(tmp_path_factory.mktemp("encoder")))
    tokens = (pieces.tokens(texts(*own), WIDTH) for own in ((48, 0), (12, 1)))
    return Task(model, variables, *tokens, size=24)


@pytest.fixture(scope="module")
def measured(task):
    return Measured(task, SETTINGS, task.digest, statistics)


@pytest.fixture(scope="module")
def data():
    """Inputs with a few large features, and a kernel."""
    drawn = np.random.default_rng(0)
    x = drawn.normal(size=(200, 6)) @ drawn.normal(size=(6, 6)) * [5, 1, 1, 1, 0.2, 1]
    return x, drawn.normal(size=(6, 9))


def tail(matrix, rank):
    return np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:])


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_each_peer_is_the_optimum_of_its_norm(data, rank):
    x, kernel = data
    size, fisher = np.abs(x).mean(axis=0), np.arange(1.0, 7)
    for found, weigh in (
        (peers.frobenius(kernel), np.eye(6)),
        (peers.asvd(kernel, size), np.diag(np.sqrt(size))),
        (peers.fwsvd(kernel, fisher), np.diag(np.sqrt(fisher))),
        (peers.whitened(kernel, x.T @ x / len(x)), x),
    ):
        cut = found.cut(rank)
        assert cut.first.shape == (6, rank)
        lost = np.linalg.norm(weigh @ (kernel - cut.kernel))
        np.testing.assert_allclose(lost, tail(weigh @ kernel, rank), rtol=1e-4, atol=1e-4)


def test_the_second_factor_is_that_of_least_squares(data):
    x, kernel = data
    first = np.random.default_rng(1).normal(size=(6, 2))
    found = peers.fitted(kernel, first, x.T @ x / len(x))
    known = np.linalg.lstsq(x @ first, x @ kernel, rcond=None)[0]
    np.testing.assert_allclose(found.second, known, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "rank"), [((384, 384), 96), ((384, 1536), 153), ((2, 2), 1)])
def test_ranks_are_the_largest_within_a_share(shape, rank):
    assert peers.rank_of(shape, 0.5) == rank
    assert (rank + 1) * sum(shape) > 0.5 * shape[0] * shape[1]


def test_both_sides_see_the_same_inputs(task, measured):
    assert set(measured.inputs) == set(task.kernels) == set(measured.moments)
    for path, (size, moment) in measured.inputs.items():
        own = measured.moments[path]
        assert own.rows == task.seen.mask.sum()
        scale = np.abs(moment).max()
        np.testing.assert_allclose(own.inputs[0] / scale, moment / scale, atol=1e-5)
        # Of |x| no mean is below that of x, and none above the root of that of its square.
        assert np.all(np.abs(own.mean[0]) <= size + 1e-5)
        assert np.all(size <= np.sqrt(np.diag(moment)) + 1e-5)


def test_fisher_information_is_of_each_sentence_by_itself(task):
    few = Task(task.model, task.variables, task.held_out, task.held_out)
    path, signs = "encoder.layer.1/output.dense", np.random.default_rng(3).choice([-1, 1], (12, 16))

    def loss(kernel, place):
        row = (array[place : place + 1] for array in task.held_out)
        return (task.model.apply(task.with_kernels({path: kernel}), *row)[0] * signs[place]).sum()

    kernel = task.kernels[path]
    squares = [np.asarray(jax.grad(loss)(kernel, place)) ** 2 for place in range(12)]
    found = statistics.fisher_of(few, seed=3)[path]
    np.testing.assert_allclose(found, np.mean(squares, axis=0).sum(axis=1), rtol=1e-4)


def test_nothing_is_lost_at_full_rank(task, measured):
    whole = {
        path: peers.whitened(kernel, measured.inputs[path].moment)
        for path, kernel in task.kernels.items()
    }
    small = {path: own.kernel for path, own in statistics.updated(task, whole).items()}
    assert task.kept(task.with_kernels(small)).cosine == pytest.approx(1, abs=1e-4)


def test_agreement_of_embeddings():
    drawn = np.random.default_rng(0).normal(size=(20, 6))
    dense = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    turned = dense @ np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    assert compared(dense, dense) == pytest.approx((1, 1))
    # Turned together, vectors are elsewhere, and as similar as before.
    assert compared(dense, turned).rank == pytest.approx(1, abs=1e-3)
    assert compared(dense, turned).cosine < 0.9


def test_rows_of_the_table(measured, tmp_path):
    path = tmp_path / "records.jsonl"
    methods = ["SVD-LLM", "SVD-LLM+update", "covariance", "Kronecker+biases", "loss"]
    methods += ["covariance+shared", "loss+shared"]
    found = list(measure(measured, methods, [0.5], read_records(path, SCHEMA)))
    by = {own["method"]: own for own in found}
    # The covariance norm is the whitened one.
    for name in ("cosine", "rank", "share"):
        assert by["covariance"][name] == pytest.approx(by["SVD-LLM"][name], abs=1e-3)
    assert all(0.35 < own["share"] <= 0.5 for own in found)
    # Chosen together, ranks spend no more than equal ones.
    assert by["loss"]["share"] <= by["covariance"]["share"]
    assert by["covariance+shared"]["share"] <= by["covariance"]["share"]
    assert by["covariance+shared"]["cosine"] != by["covariance"]["cosine"]
    assert by["SVD-LLM+update"]["cosine"] != by["SVD-LLM"]["cosine"]
    again = Measured(measured.task, SETTINGS, measured.digest, statistics)
    assert list(measure(again, methods, [0.5], read_records(path, SCHEMA))) == found
    assert "moments" not in vars(again)


def test_factors_after_refinement_and_in_turn(task, measured):
    plan = ours.equal(task, 0.5)
    for small in (
        ours.sequential(task, plan, measured.moments),
        ours.refined(
            task, ours.factors_of(task, plan, measured.moments), 1, 0,
            learning_rate=1e-3, progress=False,
        ),
    ):  # fmt: skip
        kept = ours.kept(task, small)
        own = tdjax.factorize(task.model, plan).apply(small.variables, *task.held_out)
        assert 0.1 < kept.cosine < 1
        assert compared(task.dense, np.asarray(own)) == pytest.approx(kept, abs=1e-4)


MODULE = '''"""Things that are said of a whole module.

They go on in another paragraph, on
two lines. Short ones do not count. See also what comes here: `code` is left out of it.
"""


def f():
    """Return the value of a word (or None)."""
'''


def test_sentences_of_a_module(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(MODULE, "utf-8")
    assert sentences_of(path) == [
        "Things that are said of a whole module.",
        "They go on in another paragraph, on two lines.",
        "Return the value of a word (or None).",
    ]
    path.write_text("def (", "utf-8")
    assert sentences_of(path) == []


def test_sentences_that_judge_are_from_other_modules(tmp_path):
    for number in range(20):
        text = " ".join(f"This is sentence {letter} of module {number}." for letter in "ABC")
        shared = "This one stands in every module alike."
        (tmp_path / f"m{number}.py").write_text(f'"""{text} {shared}"""\n', "utf-8")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "m.py").write_text('"""This one is of a test and left out."""\n')

    def drawn(seen, held_out, seed=0):
        return draw_texts(seen, held_out, lambda text: "sentence B" not in text, seed, tmp_path)

    found = drawn(30, 9)
    assert found == drawn(30, 9)
    assert found != drawn(30, 9, seed=1)
    assert [len(set(own)) for own in found] == [30, 9]
    assert not set(found.seen) & set(found.held_out)
    assert not any("sentence B" in text or "a test" in text for own in found for text in own)
    modules = [{text.split()[-1] for text in own if "module" in text[:30]} for own in found]
    assert not modules[0] & modules[1]
    with pytest.raises(ValueError, match="9 sentences; 10 are asked for"):
        drawn(30, 10)
