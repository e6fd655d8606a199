"""Norms that see the data, ResNet-20 on CIFAR-10.

WEIGHTS is an npz file of the network's arrays under their PyTorch names, PATH the folder with the
published files of the data set.

    python -m experiments.main --config=configs/data_aware_cifar10.py \\
        --workdir=runs/data_aware_cifar10 --config.weights=WEIGHTS --config.data.folder=PATH

Transfer, with moments from images that are mirrored, or brighter by a fifth of the range:

    ... --config.calibration.sources="('same', 'flipped', 'brighter')"

Accuracy in % without fine-tuning on images that are CIFAR-10 with mild JPEG noise, each re-encoded
once, where the network has 88.31 %; one subset of 2,000 calibration images, 50 sweeps, tol 1e-5:

                    frobenius  covariance  kronecker
    svd, 50 %           13.07       38.57      38.80
    svd, 25 %           10.01       14.70      14.10
    Tucker, 50 %        21.71       52.16      44.97
    Tucker, 25 %        10.12       22.85      28.10

Without WEIGHTS the network is trained first, which wants an accelerator.
"""

from ml_collections import ConfigDict

from configs.common import data_aware, shortened_data_aware


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or with `arg` "smoke" a variant of a minute."""
    config = data_aware("cifar10", "resnet20")
    config.inputs.update({"mean": (0.485, 0.456, 0.406), "deviation": (0.229, 0.224, 0.225)})
    config.train.update({"epochs": 200, "boundaries": (100, 150), "weight_decay": 1e-4})
    config.train.augment = True
    config.keeps = (0.5, 0.25)
    config.reestimate = True
    config.calibration.images = (2000, 10000)
    config.solver.update({"max_iters": 50, "tol": 1e-5})
    config.test.layer_images = 1000
    if arg == "smoke":
        # The last layer wants ten images for each of its 64 inputs.
        config = shortened_data_aware(config, arg)
        config.data.train_size = 800
        config.calibration.images = (640,)
        return config
    return shortened_data_aware(config, arg)
