"""The examples in the docstrings of this room."""

import doctest
import importlib
import pkgutil

import pytest

from tdjax import decompose

MODULES = [f"tdjax.decompose.{module.name}" for module in pkgutil.iter_modules(decompose.__path__)]
PUBLIC = (
    "CP", "TT", "Covariance", "Frobenius", "GroupedLowRank", "Kronecker", "LowRank",
    "ModeWeighted", "Norm", "Tucker", "alternate", "cp_als", "grouped_svd", "hosvd",
    "truncated_svd", "tt_als", "tt_svd", "tucker_als", "weighted_als",
)  # fmt: skip


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        for test in finder.find(importlib.import_module(name), name):
            if test.examples:
                yield test


TESTS = list(examples())


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_examples_run(test):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    output = []
    failed, tried = doctest.DocTestRunner(optionflags=flags).run(test, out=output.append)
    assert (failed, tried > 0) == (0, True), "".join(output)


def test_what_is_public_has_an_example():
    assert {test.name.rpartition(".")[2] for test in TESTS} >= set(PUBLIC)
