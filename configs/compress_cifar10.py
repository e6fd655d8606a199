"""One budget for the whole network, ResNet-20 on CIFAR-10, without fine-tuning.

WEIGHTS is an npz file of the network's arrays under their PyTorch names, PATH the folder with the
published files of the data set.

    python -m experiments.main --config=configs/compress_cifar10.py \\
        --workdir=runs/compress_cifar10 --config.weights=WEIGHTS --config.data.folder=PATH

The twelve budgets at which the authors of ALDS compare. Budgets in multiply-adds:

    ... --config.cost=macs

Accuracy in % on images that are CIFAR-10 with mild JPEG noise, each re-encoded once, where the
network has 88.31 %; that of "loss" is the mean of two calibration subsets:

    parameters kept                   85 %    65 %    50 %    40 %    25 %
    alds, Frobenius                   81.8    43.9    12.3    16.4    10.0
    alds released, Frobenius          87.8    85.1    73.0    48.1    17.7
    loss, Kronecker, low rank only    87.9    85.2    78.6    71.5    31.1
    loss, Kronecker                   87.8    86.0    83.9    81.3    68.2
    loss, batch statistics again      86.4    84.9    82.7    81.3    73.6

from these, the last of 40 minutes on two busy cores:

    ... --config.strategies="('alds released','alds')" --config.norms="('frobenius',)"
    ... --config.strategies="('loss',)" --config.norms="('kronecker',)" --config.methods="('svd',)"
    ... --config.strategies="('loss',)" --config.norms="('kronecker',)" \\
        --config.calibration.subsets=2 --config.timed_images=0

Inference of 100 images on two cores: 95 ms before, 112 and 97 ms with "loss" at 50 and 25 % of the
parameters, 930 ms with "alds released" at 50 %, whose grouped convolutions XLA computes slowly on
CPUs (--config.timed_images=100, as it is by default).

With 10,000 calibration images in place of 2,000 "loss" has 83.9 % at 50 % of the parameters for
both of two subsets, where it has 83.8 and 84.0 % with 2,000.

The comparison of ALDS with retraining: twenty budgets, each followed by the whole schedule of the
training, 182 epochs from its first learning rate on (Liebenwein et al., NeurIPS 2021); made for an
accelerator, not timed:

    python -m experiments.main --config=configs/compress_cifar10.py:retrain \\
        --workdir=runs/retrain_cifar10 --config.weights=WEIGHTS --config.data.folder=PATH

Without WEIGHTS the network is trained first, which wants an accelerator.
"""

from ml_collections import ConfigDict

from configs.alds import ALDS_TRAINING, alds_variant, compress_alds
from configs.common import IMAGENET_INPUTS


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, with `arg` "smoke" a variant of a minute, with "retrain" that of ALDS."""
    training = {"epochs": 200, "boundaries": (100, 150), "weight_decay": 1e-4}
    config = compress_alds(
        "cifar10", "resnet20", ALDS_TRAINING["resnet"] if arg == "retrain" else training
    )
    config.inputs.update(IMAGENET_INPUTS)
    config = alds_variant(config, arg)
    if arg == "smoke":
        config.budgets = (0.5,)
        # The last layer wants ten images for each of its 64 inputs.
        config.data.train_size = 800
        config.calibration.images = (640,)
    return config
