"""The examples in the docstrings of public functions run, and print what they show."""

import doctest
import inspect

import jax
import pytest

import tdjax
from tdjax import dispatch

EXAMPLES = {
    name: examples
    for name in tdjax.__all__
    if (examples := doctest.DocTestParser().get_examples(getattr(tdjax, name).__doc__ or ""))
}


def test_every_function_on_models_has_an_example():
    # The errors of many candidates are those of `feature_errors`, which has one.
    assert set(dispatch.__all__) - {"candidate_feature_errors"} <= EXAMPLES.keys()


@pytest.mark.filterwarnings("ignore:too few rows")
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    text = inspect.getdoc(getattr(tdjax, name))
    test = doctest.DocTestParser().get_doctest(text, {"jax": jax}, name, None, None)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    printed = []
    runner.run(test, out=printed.append)
    assert runner.failures == 0, "".join(printed)
