"""One budget for the whole network, ResNet-50 on ImageNet, without fine-tuning.

PATH is the folder that holds `train` and `val`, each with a folder of images for each class.
WEIGHTS is an npz file of the network's arrays under their PyTorch names; torchvision's fit as they
are:

    state = torchvision.models.resnet50(weights="IMAGENET1K_V1").state_dict()
    np.savez("resnet50.npz", **{name: array.numpy() for name, array in state.items()})

    python -m experiments.main --config=configs/compress_resnet50_imagenet.py \
        --workdir=runs/compress_resnet50_imagenet --config.weights=WEIGHTS \
        --config.data.folder=PATH

Ten budgets from 90 to 15 %, as ALDS is compared at on ImageNet (Liebenwein et al., NeurIPS 2021).
All 58,000 images that are used are decoded at the start and held in memory, 35 GB; the 50,000 test
images are 30 GB of them. With fewer:

    ... --config.data.test_size=10000

Without WEIGHTS the network is trained, by ALDS's schedule for ResNet-18, but only on the images in
memory: --config.data.train_size has to name as many as fit.

Made for an accelerator; not timed.
"""

from ml_collections import ConfigDict

from configs.common import compress_imagenet, shortened_compress


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or with `arg` "smoke" a small variant."""
    return shortened_compress(compress_imagenet("resnet50"), arg)
