"""One budget for the whole network, VGG-16 on CIFAR-10.

PATH is the folder with the published files of the data set.

    python -m experiments.main --config=configs/compress_vgg16_cifar10.py \
        --workdir=runs/compress_vgg16_cifar10 --config.data.folder=PATH

The network is trained first, for 300 epochs, unless --config.weights=WEIGHTS names an npz file of
its arrays under their PyTorch names; then --config.inputs.mean and --config.inputs.deviation say
how its pixels were standardised.

The comparison of ALDS with retraining: twenty budgets, each followed by the whole schedule of the
training (Liebenwein et al., NeurIPS 2021):

    ... --config=configs/compress_vgg16_cifar10.py:retrain

Made for an accelerator; not timed.
"""

from ml_collections import ConfigDict

from configs.common import ALDS_TRAINING, alds_variant, compress_alds


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, with `arg` "smoke" a variant of a minute, with "retrain" that of ALDS."""
    return alds_variant(compress_alds("cifar10", "vgg16", ALDS_TRAINING["vgg16"]), arg)
