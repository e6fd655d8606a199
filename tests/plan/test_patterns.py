import importlib
import re

import pytest

import tdjax
from tdjax import Layer, Rule
from tdjax.plan.decide import plan_layers
from tdjax.plan.patterns import MOST_WAYS, matches, ways

PATHS = (
    "encoder/layer_0/attention/query", "layer_1/layer_22/conv", "block1/block2/conv3", "Dense_0",
    "", "a" * 40, "stage2/unit1/bn/scale",
)  # fmt: skip
PLAIN = (
    ".*", "", ".*attention/(query|key|value|out)", r"(layer_\d+/)*conv", r"(?:block\d+/)+conv\d+",
    r"(?:[^/]+/)*query", "(?i)dense_[0-9]", "(?!.*bn).*", r"(.)\1.*", "a{40}", "(a{1,2}){0,3}b?",
    ".*block.*/conv.*", r"(.+/)*.+", r"[a-z]+\d?/.*", "(?s:.)*", r"\w+", "(a)?(?(1)a*|b.*)",
)  # fmt: skip
ENDLESS = (
    "(a+)+b", "(a|a)*b", "(a|aa)+b", "(.*)*x", "(.*a)*x", "(?:a?){40}a{40}", "(a*a*)+b",
    "(a+|a)+b", "((((a+)+)+)+)+b", ".*.*.*.*.*.*.*.*x", "(?=(a+)+b)a*", "(?:(?:a|a)|a)*?b",
    "(a{1,3}){1,1000}b", r"(\w+\w?)*!", "(a|aa)" * 27 + "b",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PLAIN)
def test_plain_patterns_match_as_python_has_it(pattern):
    for path in PATHS:
        assert matches(path, pattern) == (re.fullmatch(pattern, path) is not None)
    assert matches("Dense_0", ["conv", "Dense.*"])


@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_pattern_that_is_tried_for_ever_is_named(pattern):
    with pytest.raises(ValueError, match=re.escape(f"pattern {pattern!r}: there are more than")):
        matches("a" * 40, pattern)
    # On a short path it ends.
    assert matches("b", pattern) == (re.fullmatch(pattern, "b") is not None)


def test_ways_are_counted():
    parse = importlib.import_module("re._parser").parse
    # Each of n characters by either branch: 2^k ways to the k-th, with a few looks from each.
    for size in (3, 6, 9):
        assert 2**size <= ways(parse("(a|a)*b"), "a" * size) <= 20 * 2**size
    # Compositions of n: 2^(n-1) of them.
    assert 2**11 <= ways(parse("(a+)+b"), "a" * 12) <= 20 * 2**12
    assert ways(parse("abc"), "abc") == 3


def test_a_rule_and_a_collection_name_the_pattern():
    layer = Layer("a" * 40, "dense", (8, 8))
    with pytest.raises(ValueError, match=r"pattern '\(a\+\)\+b': there are more than 1e\+07 ways"):
        plan_layers([layer], [Rule(path="(a+)+b", method="svd", rank=1)])
    assert MOST_WAYS == 1e7
    for pattern in ("a{99999999999}", "(" * 5000 + ")" * 5000):
        with pytest.raises(ValueError, match="the path is not a valid regular expression"):
            Rule(path=pattern, method="svd", rank=1)
    assert tdjax.Rule(path=".*", method="svd", rank=1).path == ".*"
