import importlib.util
import math
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs.common import configuration
from experiments.compress.settings import Compress
from experiments.compressibility.paper import published_pruning
from experiments.compressibility.settings import Compressibility
from experiments.data_aware.settings import DataAware
from experiments.error_study.choices import enumerate_choices
from experiments.error_study.paper import published_study
from experiments.error_study.protocol import Protocol
from experiments.network.build import build_network
from experiments.workdir.fields import plain_fields, read_fields
from tdjax.allocation.allocate import allocate
from tdjax.linen import layer_table
from tdjax.linen.table import inventory
from tdjax.plan.decide import plan_layers
from tdjax.plan.rules import Rule

FOLDER = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(FOLDER.glob("[!_]*.py"))
SHAPES = {
    "diabetes": (10,),
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "imagenet": (224, 224, 3),
    "fgvc_aircraft": (224, 224, 3),
}
CLASSES = {"cifar100": 100, "imagenet": 1000, "fgvc_aircraft": 100}


def get_config(file, arg):
    # As the launcher loads it: by path.
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


CONFIGS = [file for file in FILES if file.stem not in ("alds", "common")]
AWARE = [file for file in CONFIGS if file.stem.startswith("data_aware")]
COMPRESS = [file for file in CONFIGS if file.stem.startswith("compress_")]
PRUNE = [file for file in CONFIGS if file.stem.startswith("compressibility")]
RETRAINED = [file for file in COMPRESS if "cifar" in file.stem and "thin" not in file.stem]
STUDIES = [file for file in CONFIGS if file not in (*AWARE, *COMPRESS, *PRUNE)]


@pytest.mark.parametrize("arg", ["", "smoke"])
@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_configuration_is_a_study_that_can_be_planned(file, arg):
    config = get_config(file, arg)
    assert isinstance(config, ConfigDict)
    protocol = read_fields(Protocol, config.to_dict())
    assert protocol.experiment == "study"
    assert read_fields(Protocol, plain_fields(protocol)) == protocol
    # Every field is there to be set on the command line.
    assert plain_fields(protocol).keys() == config.to_dict().keys()
    module = build_network(protocol.model, 10)
    sample = jnp.zeros((1, *SHAPES[protocol.data.name]))
    variables = jax.eval_shape(module.init, jax.random.key(0), sample)
    plans = enumerate_choices(protocol, layer_table(module, variables, sample))
    if arg == "":
        counts = {"resnet18_cifar10": 3 * 600, "digits": 5 * 25 * (5 + 2 + 2)}
        assert len(protocol.keys) == counts.get(file.stem, 5 * 375)
        assert len(plans) == 3 * 5 * len(protocol.layers)
    else:
        assert len(plans) == 2 * 3 * 2
        assert len(protocol.keys) == 2 * 2 * 2 * (2 + 1 + 1)
    assert bool(published_study(protocol.published).values) == (protocol.published is not None)


def read(config, cls):
    """The settings of a configuration, every field of which can be set on the command line."""
    settings = read_fields(cls, config.to_dict())
    plain = plain_fields(settings)
    assert read_fields(cls, plain) == settings
    assert plain.keys() == config.to_dict().keys()
    for name, value in config.to_dict().items():
        if isinstance(value, dict) and name != "model":
            assert plain[name].keys() == value.keys(), name
    return settings


@lru_cache
def layers_of(model, data):
    """The layers of a configuration's network; deep ones take seconds to trace."""
    module = build_network(model, CLASSES.get(data, 10))
    sample = jnp.zeros((1, *SHAPES[data]))
    variables = jax.eval_shape(module.init, jax.random.key(0), sample)
    return inventory(module, variables, sample)


@pytest.mark.parametrize("file", COMPRESS, ids=lambda file: file.stem)
def test_budgets_are_within_reach(file):
    budgets = set()
    for arg in ("", "smoke", "retrain") if file in RETRAINED else ("", "smoke"):
        settings = read(get_config(file, arg), Compress)
        assert settings.experiment == "compress"
        budgets |= set(settings.budgets)
    model = layers_of(settings.model, settings.data.name)
    # A plan of a deep network takes a second.
    for budget in (min(budgets), max(budgets))[: 2 if len(model.layers) < 40 else 1]:
        plan = allocate(model, budget=budget, strategy="uniform", methods=settings.methods)
        assert budget - 0.005 <= plan.size / plan.size_before <= budget


@pytest.mark.parametrize("arg", ["", "smoke"])
@pytest.mark.parametrize("file", AWARE, ids=lambda file: file.stem)
def test_layers_can_be_decomposed_at_every_share(file, arg):
    settings = read(get_config(file, arg), DataAware)
    assert settings.experiment == "data_aware"
    model = layers_of(settings.model, settings.data.name)
    for method in settings.methods:
        for keep in settings.keeps:
            rule = Rule(path=".*", method=method, compression=1 - keep)
            plan = plan_layers(model.layers, (rule,), model.other)
            assert plan.size < plan.size_before


@pytest.mark.parametrize("file", PRUNE, ids=lambda file: file.stem)
def test_pruned_networks_are_chains(file):
    tables = file.stem.endswith("diabetes")
    for arg in ("", "smoke", "california" if tables else "mlp"):
        settings = read(get_config(file, arg), Compressibility)
        assert settings.experiment == "compressibility"
        assert settings.predicts_numbers == tables
        # The published settings of plain magnitude pruning are among the shares.
        published = published_pruning(settings.published)
        shares = {value for method, _, value in published if method == "magnitude"}
        assert arg == "smoke" or shares <= set(settings.shares)
        if arg == "":
            layers = layers_of(settings.model, settings.data.name).layers
            neurons = [layer.kernel_shape[-1] for layer in layers]
            inputs = [math.prod(layer.kernel_shape[:-1]) for layer in layers]
            assert all(n % m == 0 for m, n in zip(neurons, inputs[1:], strict=False))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_another_argument_is_refused(file):
    known = "retrain, smoke" if file in RETRAINED else "smoke"
    if file in PRUNE:
        known = "california, smoke" if file.stem.endswith("diabetes") else "mlp, smoke"
    with pytest.raises(ValueError, match=f"'fast': known are {known}, or none"):
        get_config(file, "fast")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_placeholders_are_set_one_by_one(file):
    config = get_config(file, "")
    before = config.to_dict()
    config.data.folder = "somewhere"
    config.train.patience = 3
    after = config.to_dict()
    assert after["data"].pop("folder") == "somewhere"
    assert after["train"].pop("patience") == 3
    del before["data"]["folder"], before["train"]["patience"]
    assert after == before


LEAST = {"data": {"name": "digits"}, "model": {"name": "mlp"}, "train": {"epochs": 3}}


@pytest.mark.parametrize("cls", [Protocol, DataAware, Compress, Compressibility])
def test_a_configuration_is_made_from_the_dataclass_that_reads_it(cls):
    values = LEAST | ({"layers": ("hidden1",)} if cls is Protocol else {})
    config = configuration(cls, **values)
    assert read_fields(cls, config.to_dict()) == read_fields(cls, values)
    with pytest.raises(ValueError, match="unknown config field 'trian'"):
        configuration(cls, **values, trian={"epochs": 2})
    with pytest.raises(ValueError, match=r"missing config fields: train\.epochs"):
        configuration(cls, **{**values, "train": {}})


@pytest.mark.parametrize(
    ("field", "value", "wrong"),
    [
        ("inputs.mean", (0.5,), 0.5),
        ("weights", "file.npz", 1),
        ("data.train_size", 10, "ten"),
        ("finetune.learning_rate", 0.1, "fast"),
        ("test.layer_images", 0, "none"),
    ],
)
def test_what_may_be_none_takes_its_type(field, value, wrong):
    config = configuration(DataAware, **LEAST)
    *folders, name = field.split(".")
    place = config
    for folder in folders:
        place = place[folder]
    assert place[name] is None
    with pytest.raises(TypeError):
        place[name] = wrong
    place[name] = value
    assert place[name] == value


def test_the_paper_s_training():
    garipov = read_fields(Protocol, get_config(FOLDER / "garipov_cifar10.py", "").to_dict())
    resnet = read_fields(Protocol, get_config(FOLDER / "resnet18_cifar10.py", "").to_dict())
    first, second = garipov.network.finetune_fit, resnet.network.finetune_fit
    assert first.learning_rate == pytest.approx(1e-4)
    assert second.learning_rate == pytest.approx(1e-5)
    assert (first.epochs, second.epochs) == (10, 25)
    assert (first.optimizer, second.optimizer) == ("sgd", "adam")
    assert first.boundaries == second.boundaries == ()


@pytest.mark.parametrize("file", RETRAINED, ids=lambda file: file.stem)
def test_retraining_repeats_the_training(file):
    settings = read_fields(Compress, get_config(file, "retrain").to_dict())
    fit = settings.finetune_fit
    assert fit == settings.train
    assert (fit.warmup, fit.optimizer, fit.momentum, fit.augment) == (5, "sgd", 0.9, True)
    # Twenty in geometric progression, but for those that no rank reaches.
    budgets = settings.budgets
    assert len(budgets) == (13 if "densenet" in file.stem else 20)
    for k, budget in enumerate(budgets):
        assert budget == pytest.approx(0.85 * (0.03 / 0.85) ** (k / 19), abs=5e-5)


@pytest.mark.parametrize(
    ("name", "epochs", "batch_size", "rates"),
    [
        ("compress_cifar10", 182, 128, {0: 0.1, 91: 0.01, 136: 0.001}),
        ("compress_resnet110_cifar10", 182, 128, {0: 0.1, 91: 0.01, 136: 0.001}),
        ("compress_vgg16_cifar10", 300, 256, {30 * k: 0.05 * 0.5**k for k in range(10)}),
        ("compress_densenet22_cifar10", 300, 64, {0: 0.1, 150: 0.01, 225: 0.001}),
        ("compress_wrn16_8_cifar10", 200, 128, {0: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008}),
        ("compress_resnet18_imagenet", 90, 256, {0: 0.1, 30: 0.01, 60: 0.001, 80: 0.0001}),
    ],
)
def test_the_training_of_alds(name, epochs, batch_size, rates):
    arg = "retrain" if name == "compress_cifar10" else ""
    fit = read_fields(Compress, get_config(FOLDER / f"{name}.py", arg).to_dict()).train
    assert (fit.epochs, fit.batch_size) == (epochs, batch_size)
    assert fit.boundaries == tuple(rates)[1:]
    for k, rate in enumerate(rates.values()):
        assert fit.learning_rate * fit.factor**k == pytest.approx(rate)


def test_a_variant_of_a_minute_has_every_class():
    for file in CONFIGS:
        data = get_config(file, "smoke").data
        sizes = (data.train_size, data.validation_size, data.test_size)
        assert min(sizes) >= CLASSES.get(data.name, 10), file.stem
