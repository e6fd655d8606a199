import json
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import experiments.error_study
from configs import garipov_cifar10, resnet18_cifar10
from experiments.error_study.choices import enumerate_choices
from experiments.error_study.protocol import Choice, Protocol
from experiments.network.build import build_network
from experiments.workdir.fields import read_fields
from tdjax.linen import layer_table

PUBLISHED = json.loads(
    (Path(experiments.error_study.__file__).parent / "published" / "ranks.json").read_text("utf-8")
)
CONFIGS = {"garipovnet": garipov_cifar10, "resnet18": resnet18_cifar10}


@pytest.fixture(scope="module")
def tables():
    def table(name):
        config = CONFIGS[name].get_config()
        module = build_network(read_fields(Protocol, config.to_dict()).model, 10)
        sample = jnp.zeros((1, 32, 32, 3))
        variables = jax.eval_shape(module.init, jax.random.key(0), sample)
        return layer_table(module, variables, sample)

    return {name: table(name) for name in CONFIGS}


def study(name="garipovnet", **changes):
    raw = CONFIGS[name].get_config().to_dict()
    decompose = raw["decompose"] | changes.pop("decompose", {})
    return read_fields(Protocol, {**raw, **changes, "decompose": decompose})


@pytest.mark.parametrize("name", CONFIGS)
def test_ranks_are_those_of_the_paper(tables, name):
    protocol = study(name)
    plans = enumerate_choices(protocol, tables[name])
    assert [plan.layer.path for plan in plans.values()] == [c.layer for c in plans]
    assert {path.replace("/", ".") for path in protocol.layers} == PUBLISHED[name].keys()
    for path, entry in PUBLISHED[name].items():
        layer = next(p for p in protocol.layers if p.replace("/", ".") == path)
        for keep, ranks in entry["keep"].items():
            removed = round(1 - int(keep) / 100, 6)
            cp, tucker, tt = (
                plans[Choice(layer, method, removed)] for method in ("cp", "tucker", "tt")
            )
            c, *window, t = entry["shape"]
            assert cp.layer.kernel_shape == (*window, c, t)
            assert cp.ranks == (ranks["cp"],)
            # Published as (T, C).
            assert tucker.ranks == (ranks["tucker"][1], ranks["tucker"][0])
            if window == [1, 1]:
                # Published above what an unfolding of the kernel can have: (256, 280, 256) of 128.
                assert tt.ranks == (min(c, ranks["tt"][0]), *[min(c, ranks["tt"][1])] * 2)
            else:
                assert tt.ranks == tuple(ranks["tt"])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("method", ["cp", "tucker"])
def test_the_rule_finds_the_paper_s_ranks(tables, name, method):
    by_rule = enumerate_choices(
        study(name, methods=[method], decompose={"ranks": "rule"}), tables[name]
    )
    assert by_rule == enumerate_choices(study(name, methods=[method]), tables[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_by_hand(tables, name):
    for choice, plan in enumerate_choices(study(name), tables[name]).items():
        *window, c, t = plan.layer.kernel_shape
        positions = window[0] * window[1]
        if choice.method == "cp":
            size = plan.ranks[0] * (c + t + sum(window))
        elif choice.method == "tucker":
            r, s = plan.ranks
            size = c * r + r * s * positions + s * t
        else:
            r1, r2, r3 = plan.ranks
            size = c * r1 + r1 * window[0] * r2 + r2 * window[1] * r3 + r3 * t
        assert plan.size == size
        assert plan.kept == pytest.approx(size / (c * t * positions))


def test_what_saves_nothing_stays_a_choice(tables):
    plans = enumerate_choices(study("resnet18"), tables["resnet18"])
    path = "layer3.0/downsample.0"
    kept = {
        choice.compression: plans[choice].kept
        for choice in plans
        if choice.layer == path and choice.method == "tt"
    }
    # Ranks (128, r, r) of a kernel (1, 1, 128, 256), by hand.
    expected = {
        removed: (128 * 128 + 128 * r + r * r + 256 * r) / (128 * 256)
        for removed, r in ((0.9, 11), (0.75, 25), (0.5, 43), (0.25, 128), (0.1, 128))
    }
    assert kept == pytest.approx(expected)
    assert [removed for removed, share in kept.items() if share >= 1] == [0.1, 0.25, 0.5]
    others = [plan.kept for choice, plan in plans.items() if choice.layer != path]
    assert max(others) < 1


def test_the_order_is_the_configuration_s(tables):
    protocol = study(layers=["conv4", "conv2"], methods=["tt", "cp"], compressions=[0.9, 0.1])
    expected = list(product(("conv4", "conv2"), ("tt", "cp"), (0.9, 0.1)))
    found = enumerate_choices(protocol, tables["garipovnet"])
    assert [(c.layer, c.method, c.compression) for c in found] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ["conv9"]}, r"'layers': the model has no layer 'conv9'; layers are: conv1, co"),
        ({"layers": ["norm1"], "decompose": {"ranks": "rule"}}, "norm1"),
        ({"layers": ["conv1"]}, "no cp ranks for layer 'conv1' at 90 % kept"),
        ({"compressions": [0.4]}, "no cp ranks for layer 'conv2' at 60 % kept"),
        ({"compressions": [0.501]}, r"no cp ranks for layer 'conv2' at 49\.9 % kept"),
        ({"methods": ["svd"]}, "no svd ranks for layer 'conv2'"),
        ({"decompose": {"ranks": "vgg"}}, "'vgg': known are rule, garipovnet, resnet18"),
        ({"decompose": {"ranks": "note"}}, "'note': known are rule, garipovnet, resnet18"),
        ({"methods": ["lu"], "decompose": {"ranks": "rule"}}, "'lu': known are cp, tucker"),
        ({"compressions": [1.0], "decompose": {"ranks": "rule"}}, r"has 1\.0: at least 1e-06"),
        ({"compressions": [float("nan")], "decompose": {"ranks": "rule"}}, "has nan: at least"),
    ],
)
def test_what_cannot_be_planned_is_named(tables, changes, message):
    with pytest.raises(ValueError, match=message):
        enumerate_choices(study(**changes), tables["garipovnet"])
