import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

import tdjax
from tdjax import Form, Timings
from tdjax.plan.ranks import tt_size
from tdjax.timings.layer import FormTimings, LayerTimings

LOW_RANK = FormTimings(Form("svd"), ((8,), (16,), (32,)), (1e-3, 3e-3, 2e-3), ((), (), ()))
PAIRS = ((8, 16), (8, 32), (24, 16), (24, 32))
TUCKER = FormTimings(
    Form("tucker"), PAIRS, (1e-3, 2e-3, 4e-3, 8e-3), (("xla",) * 3, ("product",) * 3) * 2
)
TRAIN = FormTimings(Form("tt"), ((4, 6, 8), (8, 12, 16)), (1e-3, 4e-3), (("xla",) * 4,) * 2)
WAYS = ("xla", "shifted", "shifted", "xla")
CP = FormTimings(Form("cp"), ((4,), (8,)), (1e-3, 2e-3), (WAYS, ("xla",) * 4))
LAYER = LayerTimings(5e-3, (LOW_RANK, TUCKER, TRAIN, CP), (3, 3, 32, 64))
TIMINGS = Timings("cpu: a processor", {"jax": "0.7.0"}, 8, 12e-3, {"conv": LAYER, "": LAYER})


def test_between_ranks_seconds_are_interpolated():
    found = LAYER.seconds(Form("svd", (5,)), np.array([[4], [8], [10], [16], [32], [48]]))
    np.testing.assert_allclose(found, [1e-3, 1e-3, 1.5e-3, 3e-3, 2e-3, 3e-3])
    np.testing.assert_allclose(LAYER.seconds(Form("svd"), np.zeros((0, 1), int)), [])
    # A correction is a dense layer beside it.
    np.testing.assert_allclose(LAYER.seconds(Form("svd", nonzeros=3), np.array([[8]])), [6e-3])


def test_ranks_count_as_whole_vectors():
    timed = FormTimings(Form("svd"), ((8,), (24,), (64,)), (1e-3, 2e-3, 6e-3), (("xla",) * 2,) * 3)
    layer = LayerTimings(9e-3, (timed,), (3, 3, 64, 64))
    found = layer.seconds(Form("svd"), np.array([[17], [24], [25], [33], [48], [49], [65]]))
    # The next multiple of 16, or the next that was measured.
    as_if = layer.seconds(Form("svd"), np.array([[24], [24], [32], [48], [48], [64], [80]]))
    np.testing.assert_allclose(found, as_if)
    np.testing.assert_allclose(found[[0, 2, 5]], [2e-3, 2e-3 + 4e-3 * 8 / 40, 6e-3])


def test_between_pairs_of_ranks_seconds_are_interpolated_in_both():
    def plane(a, b):
        share = (a - 8) / 16, (b - 16) / 16
        low = 1e-3 * (1 - share[1]) + 2e-3 * share[1]
        high = 4e-3 * (1 - share[1]) + 8e-3 * share[1]
        return low * (1 - share[0]) + high * share[0]

    pairs = np.array([[8, 16], [24, 32], [10, 32], [16, 16]])
    found = LAYER.seconds(Form("tucker"), pairs)
    np.testing.assert_allclose(found, [plane(*pair) for pair in pairs])
    np.testing.assert_allclose(LAYER.seconds(Form("tucker"), np.array([[17, 20]])), [plane(24, 32)])
    # Beyond what was measured, in proportion to each rank; below it, no faster.
    outside = np.array([[48, 32], [24, 64], [1, 1]])
    np.testing.assert_allclose(LAYER.seconds(Form("tucker"), outside), [16e-3, 16e-3, 1e-3])


def test_trains_are_interpolated_in_their_parameters():
    dims = (32, 3, 3, 64)
    ends = [tt_size(dims, ranks) for ranks in TRAIN.ranks]
    middle = tt_size(dims, (6, 9, 12))
    expected = 1e-3 + 3e-3 * (middle - ends[0]) / (ends[1] - ends[0])
    np.testing.assert_allclose(LAYER.seconds(Form("tt"), np.array([[6, 9, 12]])), [expected])


def test_ways_are_those_of_the_nearest_ranks():
    assert LAYER.ways_of(Form("tucker"), (20, 30)) == ("product",) * 3
    assert LAYER.ways_of(Form("cp"), (5,)) == WAYS
    assert LAYER.ways_of(Form("cp"), (7,)) == ("xla",) * 4
    assert LAYER.ways_of(Form("svd"), (7,)) == ()
    # No stage of rank 1 is depthwise.
    layer = tdjax.Layer("conv", "conv", (3, 3, 32, 64), 1, (8, 8), (8, 8))
    ways = LAYER.ways_of(Form("cp"), (1,))
    assert tdjax.PlannedLayer(layer, Form("cp", (1,)), ways=ways).ways == ("xla",) * 4


def test_what_was_not_measured_is_not_made_up():
    with pytest.raises(ValueError, match="form svd rows was not measured; measured: svd, tucker"):
        LAYER.seconds(Form("svd", fold="rows"), np.array([[4]]))
    for wrong, message in (
        ({"seconds": (1e-3, 0.0, 1e-3)}, "no clock shows"),
        ({"seconds": (1e-3,)}, "for each of the ranks"),
        ({"ranks": ((8,), (8,), (9,))}, "given twice"),
        ({"ranks": ((8,), (8, 9), (9,))}, "none of one layer"),
        ({"form": Form("svd", (8,))}, "without ranks"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(LOW_RANK, **wrong)
    with pytest.raises(ValueError, match="all pairs of some r_C and some r_T"):
        FormTimings(Form("tucker"), PAIRS[:3], (1e-3,) * 3, ((),) * 3)
    with pytest.raises(ValueError, match="a form is given twice"):
        LayerTimings(1e-3, (CP, CP), (3, 3, 32, 64))
    with pytest.raises(ValueError, match="batch must be at least 1"):
        replace(TIMINGS, batch=0)


def test_the_rest_is_no_layers():
    assert TIMINGS.rest == pytest.approx(2e-3)
    assert replace(TIMINGS, network=9e-3, rest=math.nan).rest == 0
    # A network may be slower than its parts.
    assert replace(TIMINGS, rest=1e-3).rest == 1e-3
    with pytest.raises(ValueError, match=r"rest: seconds that no clock shows: -0\.1"):
        replace(TIMINGS, rest=-0.1)


def test_files_of_timings_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "timings.json"
    TIMINGS.save(path)
    assert Timings.load(path) == TIMINGS
    assert re.fullmatch(r"Timings\(.*, batch \d+, \d+ layers, network .+ ms\)", repr(TIMINGS))
    raw = json.loads(path.read_text())
    with pytest.raises(FileNotFoundError):
        Timings.load(tmp_path / "none.json")
    layer = raw["layers"]["conv"]
    wrongs = {
        "version": (raw | {"version": 2}, "version 2, this library reads 1"),
        "unknown": (raw | {"speed": 1.0}, "unknown field 'speed'"),
        "missing": ({k: v for k, v in raw.items() if k != "network"}, "missing fields: 'network'"),
        "type": (raw | {"network": 1}, "'network' must be of type float"),
        "layers": (raw | {"layers": []}, "'layers' must hold fields"),
        "layer": (
            raw | {"layers": {"conv": layer | {"dense": "1"}}},
            "'layers.conv.dense' must be of type float",
        ),
        "negative": (raw | {"network": -1.0}, "no clock shows: -1.0"),
        "versions": (raw | {"versions": {"jax": 1}}, "'versions.jax' must be of type str"),
    }
    for wrong, message in wrongs.values():
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message) as caught:
            Timings.load(path)
        assert str(path) in str(caught.value)
    for content in (b"", b"{", b"\xff\xfe", json.dumps(raw).encode()[:-40], b'{"version": NaN}'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no file of timings"):
            Timings.load(path)
