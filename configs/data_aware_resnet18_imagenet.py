"""Norms that see the data, ResNet-18 on ImageNet.

PATH is the folder that holds `train` and `val`, each with a folder of images for each class.
WEIGHTS is an npz file of the network's arrays under their PyTorch names; torchvision's fit as they
are:

    state = torchvision.models.resnet18(weights="IMAGENET1K_V1").state_dict()
    np.savez("resnet18.npz", **{name: array.numpy() for name, array in state.items()})

    python -m experiments.main --config=configs/data_aware_resnet18_imagenet.py \\
        --workdir=runs/data_aware_resnet18_imagenet --config.weights=WEIGHTS \\
        --config.data.folder=PATH

All 64,000 images that are used are decoded at the start and held in memory, 39 GB; the 50,000 test
images are 30 GB of them. With fewer:

    ... --config.data.test_size=10000

Transfer, with moments from the photographs of FGVC-Aircraft in OTHER:

    ... --config.calibration.sources="('same', 'fgvc_aircraft')" --config.calibration.folder=OTHER

Made for an accelerator; not timed.
"""

from ml_collections import ConfigDict

from configs.common import data_aware, on_photographs, shortened


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or with `arg` "smoke" a small variant."""
    config = on_photographs(data_aware("imagenet", "resnet18_imagenet"))
    config.test.layer_images = 0
    # Of the training images only those are held in memory that the calibration draws from.
    config.data.update({"train_size": 12000, "validation_size": 2000})
    config.calibration.images = (6000,)
    return shortened(config, arg)
