"""Norms that see the data, ResNet-18 on ImageNet.

PATH is the folder that holds `train` and `val`, each with a folder of images for each class.
WEIGHTS is an npz file of the network's arrays under their PyTorch names; torchvision's fit as they
are:

    state = torchvision.models.resnet18(weights="IMAGENET1K_V1").state_dict()
    np.savez("resnet18.npz", **{name: array.numpy() for name, array in state.items()})

    python -m experiments.main --config=configs/data_aware_resnet18_imagenet.py \\
        --workdir=runs/data_aware_resnet18_imagenet --config.weights=WEIGHTS \\
        --config.data.folder=PATH

Images stay in their files: those of a batch are decoded when it is wanted, by threads ahead of its
use, so that a few batches are in memory, 60 MB each, 150 in training. The test images are decoded
for every network that is measured; with fewer of them:

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
    # Twelve for each class.
    config.data.validation_share = 0.01
    config.calibration.images = (6000,)
    return shortened(config, arg)
