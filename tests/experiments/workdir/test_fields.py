import json
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import pytest

from experiments.workdir.config import claim_workdir
from experiments.workdir.fields import (
    FOR_REPORT,
    FieldError,
    Settings,
    plain_fields,
    read_fields,
    report_fields,
)
from experiments.workdir.ranges import Choices, Listed, OneOf, Range, Share

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    rate: Annotated[float, Range(above=0)] = 0.5
    title: str = field(default="", metadata=FOR_REPORT)


@dataclass(frozen=True, kw_only=True)
class Outer(Settings):
    kind: Annotated[str, OneOf(("plain", "fancy"))]
    shares: Choices[Share] = (0.5,)
    inner: Inner = Inner()
    shown: str | None = field(default=None, metadata=FOR_REPORT)

    is_known: ClassVar[bool] = True


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        # In float32 1e-60 is 0 and 1e300 infinite.
        ({"above": 0}, (1e-30, 3e38), (0.0, -1.0, NAN, INF, -INF, 1e-60, 1e300)),
        ({"least": 0, "below": 1}, (0.0, 0.99), (-1e-9, 1.0, 1 - 1e-12, NAN)),
        ({"least": 1, "most": 9}, (1, 9), (0, 10, -(10**30), 10**400)),
        ({}, (-1e30, 0.0), (NAN, INF, -INF, 1e39)),
    ],
)
def test_numbers_are_where_float32_keeps_them(bounds, inside, outside):
    range_ = Range(**bounds)
    assert [range_.problem(value, "is") for value in inside] == [""] * len(inside)
    assert all(range_.problem(value, "is").endswith("is needed") for value in outside)


def test_bounds_are_named():
    assert str(Range(above=0)) == "above 0 and finite"
    assert str(Range(least=0, most=2**32 - 1)) == "at least 0 and at most 4294967295"
    assert str(Range()) == "finite"


@pytest.mark.parametrize("values", [(), ("a", "a"), (1, 1), (0.5, 0.5000000001), (True, True)])
def test_choices_are_there_and_differ(values):
    assert Listed().problem(values, "is").startswith("must list at least one, and none twice")
    assert Listed().problem((0.5, 0.50001), "is") == ""


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"kind": "fancie"}, "field 'kind' is 'fancie': known are plain, fancy; did you mean 'fan"),
        ({"kind": 1}, "field 'kind' must be of type str, got 1"),
        ({"kind": "plain", "shares": [0.5, 2]}, r"field 'shares' has 2\.0: at least 1e-06"),
        ({"kind": "plain", "inner": {"rate": NAN}}, r"field 'inner\.rate' is nan: above 0"),
        (
            {"kind": "plain", "inner": {"rate": 10**400}},
            r"'inner\.rate' is 1000.*\.\.\.: int",
        ),
        ({"kind": "plain", "inner": {"rat": 1}}, r"field 'inner\.rat'; known are rate, title; did"),
        ({"kind": "plain", "shown": "\ud800"}, "field 'shown' is .*surrogates"),
        ({"kind": "plain", "shares": [10**5000]}, "field 'shares' is too long to be shown"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(raw, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_fields(Outer, raw)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_settings_made_by_hand_are_checked_too():
    assert Outer(kind="plain", shares=[1e-3]).shares == (1e-3,)
    assert type(Inner(rate=1).rate) is float
    with pytest.raises(FieldError, match="'rate' is 0"):
        Inner(rate=0)


def test_what_only_the_report_reads_may_change(tmp_path):
    free = tuple(report_fields(Outer))
    assert free == ("inner.title", "shown")
    path = tmp_path / "run" / "config.json"

    def claim(**raw):
        config = plain_fields(read_fields(Outer, {"kind": "plain", **raw}))
        claim_workdir(tmp_path / "run", config, free)
        assert json.loads(path.read_text()) == config

    claim()
    claim(shown="nothing", inner={"title": "new"})
    claim(shown=None)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"fields that differ: inner\.rate; use"):
        claim(shown="nothing", inner={"title": "new", "rate": 0.25})
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["config.json"]
