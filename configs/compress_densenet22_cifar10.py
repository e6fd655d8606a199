"""One budget for the whole network, DenseNet-22 on CIFAR-10.

PATH is the folder with the published files of the data set.

    python -m experiments.main --config=configs/compress_densenet22_cifar10.py \
        --workdir=runs/compress_densenet22_cifar10 --config.data.folder=PATH

The network is trained first, for 300 epochs, unless --config.weights=WEIGHTS names an npz file of
its arrays under their PyTorch names; then --config.inputs.mean and --config.inputs.deviation say
how its pixels were standardised.

The comparison of ALDS with retraining: those of its twenty budgets that are within reach, for even
at rank 1 a tenth of the parameters is left, each followed by the whole schedule of the training
(Liebenwein et al., NeurIPS 2021):

    ... --config=configs/compress_densenet22_cifar10.py:retrain

Made for an accelerator; not timed.
"""

from ml_collections import ConfigDict

from configs.common import ALDS_TRAINING, alds_variant, compress_alds


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, with `arg` "smoke" a variant of a minute, with "retrain" that of ALDS."""
    config = compress_alds("cifar10", "densenet22", ALDS_TRAINING["densenet22"])
    config = alds_variant(config, arg)
    config.budgets = tuple(share for share in config.budgets if share >= 0.1)
    return config
