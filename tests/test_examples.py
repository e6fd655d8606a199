"""The examples in the docstrings of public functions run, and print what they show."""

import doctest
import inspect

import pytest

import tdjax
import tdjax.nnx
from tdjax import dispatch

PUBLIC = {name: getattr(tdjax, name) for name in tdjax.__all__}
PUBLIC |= {name: getattr(tdjax.nnx, name) for name in ("carry_optimizer", "reconstruct")}
METHODS = {
    f"{name}.{method}": own
    for name, public in PUBLIC.items()
    if inspect.isclass(public)
    for method, own in vars(public).items()
    if not method.startswith("_") and hasattr(own, "__doc__")
}
EXAMPLES = {name for name, public in (PUBLIC | METHODS).items() if ">>>" in (public.__doc__ or "")}


def test_every_function_on_models_has_an_example():
    # The errors of many candidates are those of `feature_errors`, which has one.
    assert set(dispatch.__all__) - {"candidate_feature_errors"} <= EXAMPLES


def test_every_public_name_has_an_example():
    assert PUBLIC.keys() <= EXAMPLES


@pytest.mark.filterwarnings("ignore:too few rows")
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example(name):
    text = inspect.getdoc((PUBLIC | METHODS)[name])
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    printed = []
    runner.run(test, out=printed.append)
    assert runner.failures == 0, "".join(printed)
