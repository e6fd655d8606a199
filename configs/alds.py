"""The comparison of ALDS (Liebenwein et al., NeurIPS 2021, arXiv 2107.11442), network by network.

One budget for the whole network. On CIFAR PATH is the folder with the published files of the data
set:

    python -m experiments.main --config=configs/compress_resnet56_cifar10.py \\
        --workdir=runs/compress_resnet56_cifar10 --config.data.folder=PATH

The network is trained first, by ALDS's schedule, unless --config.weights=WEIGHTS names an npz file
of its arrays under their PyTorch names; then --config.inputs.mean and --config.inputs.deviation say
how its pixels were standardised.

With retraining, at the twenty budgets of ALDS (there on CIFAR-10), each followed by the whole
schedule of the training:

    ... --config=configs/compress_resnet56_cifar10.py:retrain

On ImageNet nothing is fine-tuned, at ten budgets from 90 to 15 %. PATH is the folder that holds
`train` and `val`, each with a folder of images for each class. WEIGHTS is an npz file of the
network's arrays under their PyTorch names; torchvision's fit as they are:

    state = torchvision.models.resnet18(weights="IMAGENET1K_V1").state_dict()
    np.savez("resnet18.npz", **{name: array.numpy() for name, array in state.items()})

    python -m experiments.main --config=configs/compress_resnet18_imagenet.py \\
        --workdir=runs/compress_resnet18_imagenet --config.weights=WEIGHTS \\
        --config.data.folder=PATH

Images stay in their files: those of a batch are decoded when it is wanted, by threads ahead of its
use, so that a few batches are in memory, 60 MB each, 150 in training. The test images are decoded
for every network that is measured; with fewer of them:

    ... --config.data.test_size=10000

Without WEIGHTS the network is trained, by ALDS's schedule for ResNet-18, on all training images but
the hundredth that is held out for validation. It goes on from its newest checkpoint, one of which
is written every 1,000 steps.

Made for an accelerator; not timed.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.common import FEW_SWEEPS, compress, on_photographs, shortened

# How networks are trained and, from their factors, trained again.
ALDS_TRAINING: dict[str, dict[str, Any]] = {
    "resnet": {
        "epochs": 182,
        "batch_size": 128,
        "learning_rate": 0.1,
        "boundaries": (91, 136),
        "warmup": 5,
        "weight_decay": 1e-4,
    },
    "vgg16": {
        "epochs": 300,
        "batch_size": 256,
        "learning_rate": 0.05,
        "boundaries": tuple(range(30, 300, 30)),
        "factor": 0.5,
        "warmup": 5,
        "weight_decay": 5e-4,
    },
    "densenet22": {
        "epochs": 300,
        "batch_size": 64,
        "learning_rate": 0.1,
        "boundaries": (150, 225),
        "warmup": 5,
        "nesterov": True,
        "weight_decay": 1e-4,
    },
    "wrn16_8": {
        "epochs": 200,
        "batch_size": 128,
        "learning_rate": 0.1,
        "boundaries": (60, 120, 160),
        "factor": 0.2,
        "warmup": 5,
        "nesterov": True,
        "weight_decay": 5e-4,
    },
}


def geometric_shares(count: int, most: float, least: float) -> tuple[float, ...]:
    """Shares in geometric progression, to four decimals, the largest first."""
    return tuple(round(most * (least / most) ** (k / (count - 1)), 4) for k in range(count))


# The shares of the parameters kept at which ALDS is compared.
CIFAR_SHARES = geometric_shares(20, 0.85, 0.03)
IMAGENET_SHARES = geometric_shares(10, 0.9, 0.15)


def on_cifar(data: str, model: str, training: str, least: float = 0.0) -> Callable[..., ConfigDict]:
    """`get_config` of a network on CIFAR; `least` is the smallest share within its reach."""

    def get_config(arg: str = "") -> ConfigDict:
        """The experiment, with `arg` "smoke" a variant of a minute, with "retrain" that of ALDS."""
        config = alds_variant(compress_alds(data, model, ALDS_TRAINING[training]), arg)
        config.budgets = tuple(share for share in config.budgets if share >= least)
        return config

    return get_config


def on_imagenet(model: str) -> Callable[..., ConfigDict]:
    """`get_config` of a network on ImageNet, from PyTorch's weights."""

    def get_config(arg: str = "") -> ConfigDict:
        """The experiment, or with `arg` "smoke" a small variant."""
        return shortened(compress_imagenet(model), arg)

    return get_config


def compress_alds(data: str, model: str, training: Mapping[str, Any]) -> ConfigDict:
    """The comparison of ALDS on CIFAR: a network trained as there, strategies at many budgets."""
    config = compress(data, model)
    config.train.update(training)
    config.train.augment = True
    config.budgets = (0.85, 0.75, 0.65, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15)
    config.strategies = ("uniform", "energy", "alds", "alds released", "loss")
    config.reestimate = True
    config.solver.update(FEW_SWEEPS)
    config.timed_images = 100
    return config


def alds_variant(config: ConfigDict, arg: str) -> ConfigDict:
    """The same comparison for `arg` "", for "smoke" one of a minute, for "retrain" with training.

    "retrain" has ALDS's twenty budgets, and trains each compressed network by the whole schedule.
    Raises ValueError for another `arg`.
    """
    config = shortened(config, arg, "retrain")
    if arg == "retrain":
        config.budgets = CIFAR_SHARES
        config.reestimate = False
        config.calibration.subsets = 1
        config.finetune.update({"epochs": config.train.epochs, "repeat": True})
    return config


def compress_imagenet(model: str) -> ConfigDict:
    """One budget for the whole network, of one for ImageNet, from PyTorch's weights."""
    config = on_photographs(compress("imagenet", model))
    # Twelve for each class.
    config.data.validation_share = 0.01
    config.budgets = IMAGENET_SHARES
    config.strategies = ("energy", "alds released", "loss")
    config.calibration.update({"images": (6000,), "subsets": 1})
    config.timed_images = 32
    return config
