"""The study on scikit-learn's embedded 8x8 digits: 1,125 measurements, nothing to download.

5 networks x 5 layers x 3 methods x 5 levels x 5 runs of CP, 2 of Tucker and TT, whose
decompositions are the same every time.

    python -m experiments.main --config=configs/digits.py --workdir=runs/digits

GaripovNets of 35,450 parameters, whose widths and pools fit 8x8 images. Takes six minutes on two
idle CPU cores, more on busy ones, and 2.5 GB. Expect 97 to 99 % on the test set before compression,
and for Relative Weights a tau of 0.54 before and 0.48 after fine-tuning, over the choices that
remove half of a layer or more.
"""

from ml_collections import ConfigDict

from configs.common import garipov_study, on_embedded_digits, shortened


def get_config(arg: str = "") -> ConfigDict:
    """The study, or with `arg` "smoke" a variant of a minute."""
    config = on_embedded_digits(garipov_study("digits"))
    config.train.augment = False
    config.measure.update({"feature_images": 360, "batch_size": 360})
    # To write one takes as long as three epochs.
    config.checkpoint_every = 10
    config.finetune.epochs = 5
    config.deterministic_runs = 2
    return shortened(config, arg)
