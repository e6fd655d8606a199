"""What a study does otherwise than the published one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from experiments.error_study.protocol import Protocol
from experiments.network.schedule import FitSettings

# Of the published study: images held out of its data sets, by share; trainings; fine-tuning.
HELD_OUT = {"cifar10": (5_000, 0.1), "fashion_mnist": (5_000, 1 / 12)}
TRAININGS = {
    "garipovnet": FitSettings(epochs=100, boundaries=(30, 60, 90), augment=True),
    "resnet18": FitSettings(
        epochs=300, optimizer="adam", learning_rate=1e-3, boundaries=(100, 150), augment=True
    ),
}
EPOCHS = {"garipovnet": 10, "resnet18": 25}
COMPRESSIONS = {0.1, 0.25, 0.5, 0.75, 0.9}
METHODS = {"cp", "tucker", "tt"}
RUNS = 5


def deviations(settings: Protocol) -> tuple[str, ...]:
    """Sentences on all that is known to differ from the published study, by its settings."""
    parts = (_of_data, _of_network, _of_choices, _of_measuring)
    return tuple(sentence for part in parts for sentence in part(settings))


def _of_data(settings: Protocol) -> Iterator[str]:
    data = settings.data
    if data.name not in HELD_OUT:
        yield f"The data set, {data.name}, is none of the paper's: CIFAR-10 and Fashion-MNIST."
    elif abs(data.validation_share - HELD_OUT[data.name][1]) > 1e-6:
        images, share = HELD_OUT[data.name]
        yield (
            f"A share of {data.validation_share:.4g} of the training examples is held out for "
            f"validation; the paper holds out {images:,}, a share of {share:.4g}."
        )
    sizes = ("train", data.train_size), ("validation", data.validation_size)
    parts = [f"{n:,} {name}" for name, n in (*sizes, ("test", data.test_size)) if n is not None]
    if parts:
        yield f"Of the examples only a part is used: {', '.join(parts)}."


def _of_network(settings: Protocol) -> Iterator[str]:
    model, train, name = settings.model, settings.train, settings.model.name
    if name not in TRAININGS:
        yield f"The network, {name}, is none of the paper's: GaripovNet and ResNet-18."
    elif model.arguments:
        given = ", ".join(f"{name} {value}" for name, value in model.arguments.items())
        yield f"The {name} has other sizes than the paper's: {given}."
    if settings.weights is not None:
        yield "The network was trained elsewhere."
    elif name in TRAININGS and _ends_alike(train) != TRAININGS[name]:
        crops = "with" if train.augment else "without"
        yield (
            f"The network is trained for {train.epochs} epochs in batches of {train.batch_size} by "
            f"{train.optimizer}, from a learning rate of {train.learning_rate:g}, {crops} random "
            f"crops and flips; in the paper for {TRAININGS[name].epochs} in batches of "
            f"{TRAININGS[name].batch_size} by {TRAININGS[name].optimizer}, from "
            f"{TRAININGS[name].learning_rate:g}, with these."
        )
    if not train.best_by_metric:
        yield (
            "The epoch of the lowest validation loss is kept, before and after compression; in "
            "the paper that of the highest validation accuracy."
        )
    if name in EPOCHS and settings.finetune.epochs != EPOCHS[name]:
        yield (
            f"Compressed networks are fine-tuned for {settings.finetune.epochs} epochs, in the "
            f"paper for {EPOCHS[name]}."
        )
    if settings.networks > 1:
        yield (
            f"{settings.networks} networks are trained and measured, which differ in all that is "
            "random; the paper has one of a kind."
        )


def _ends_alike(train: FitSettings) -> FitSettings:
    """A training but for what ends it."""
    return replace(train, best_by_metric=False, patience=None)


def _of_choices(settings: Protocol) -> Iterator[str]:
    if (more := set(settings.methods) ^ METHODS) or set(settings.levels) != COMPRESSIONS:
        what = ["methods"] * bool(more) + ["compressions"] * (set(settings.levels) != COMPRESSIONS)
        yield f"The {' and '.join(what)} are others than the paper's."
    runs = {method: settings.runs_of(method) for method in settings.methods}
    if set(runs.values()) != {RUNS}:
        told = ", ".join(f"{method} {count}" for method, count in runs.items())
        yield f"Runs of each choice in each network: {told}; in the paper {RUNS}."
    if "tucker" in settings.methods and settings.decompose.tucker_iters:
        yield (
            f"Tucker is HOOI of up to {settings.decompose.tucker_iters} sweeps; in the paper the "
            "HOSVD."
        )
    if settings.decompose.ranks == "rule":
        if "tt" in settings.methods:
            yield "The ranks of TT follow a rule; in the paper they were chosen by hand."
    elif "tt" in settings.methods:
        yield "TT ranks of the paper that no TT-SVD reaches are clipped to those that it does."


def _of_measuring(settings: Protocol) -> Iterator[str]:
    images = settings.measure.feature_images
    which = "drawn by the seed" if settings.measure.drawn else "the first ones"
    yield (
        f"Feature errors are means over {images:,} training examples, {which}; in the paper over "
        "all of them."
    )
    yield (
        "Compressed layers are computed by one kernel, multiplied out of their factors: the same "
        "function with the same gradients as the paper's chains of thin layers, rounded otherwise."
    )
    yield (
        "Beside the mean and standard deviation over runs, which is what the paper gives, stand "
        "bootstrap intervals, and verdicts by them."
    )
