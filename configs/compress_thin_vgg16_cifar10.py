"""One budget for the whole network, VGG-16 of a quarter of its width on CIFAR-10.

PATH is the folder with the published files of the data set.

    python -m experiments.main --config=configs/compress_thin_vgg16_cifar10.py \\
        --workdir=runs/compress_thin_vgg16_cifar10 --config.data.folder=PATH

924,186 parameters, trained first, for ten epochs on 20,000 images. Accuracy in % without
fine-tuning on 5,000 images that are CIFAR-10 with mild JPEG noise, where the network has 74.6 %:

    parameters kept               65 %    50 %    35 %    25 %    15 %
    uniform, Frobenius            59.2    37.0    13.0    12.4    10.0
    energy, Frobenius             60.3    34.2    19.9    15.9    10.9
    alds, Frobenius               54.1    24.2    22.3    14.5    10.0
    alds released, Frobenius      54.5    20.0    15.6    10.0    10.0
    loss, Kronecker               74.7    74.6    74.2    73.8    70.9

from these, of 40 minutes on two shared cores with the training:

    ... --config.strategies="('loss',)" --config.norms="('kronecker',)"
    ... --config.strategies="('uniform','energy','alds','alds released')" \\
        --config.norms="('frobenius',)"
"""

from ml_collections import ConfigDict

from configs.alds import ALDS_TRAINING, compress_alds
from configs.common import shortened


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or with `arg` "smoke" a variant of a minute."""
    config = compress_alds("cifar10", "vgg16", ALDS_TRAINING["vgg16"])
    config.model.arguments = {"width": 16}
    config.data.update({"train_size": 20000, "validation_size": 1000, "test_size": 5000})
    config.train.update({"epochs": 10, "boundaries": (7, 9), "factor": 0.2, "warmup": 1})
    config.train.update({"batch_size": 128, "augment": False})
    config.budgets = (0.65, 0.5, 0.35, 0.25, 0.15)
    config.strategies = ("uniform", "energy", "alds", "alds released", "loss")
    config.calibration.subsets = 1
    config.reestimate = False
    config.timed_images = 0
    return shortened(config, arg)
