"""Norms that see the data, on scikit-learn's embedded 8x8 digits: nothing to download.

    python -m experiments.main --config=configs/data_aware_digits.py \\
        --workdir=runs/data_aware_digits

The GaripovNet of configs/digits.py, all methods and norms at 50 and 25 % kept, three calibration
subsets, whole and layer by layer, refined without labels by ten epochs over the 800 images of each
subset, and one epoch of fine-tuning with the labels of the training set for the first subset.

Six minutes of processor time. Whole networks at 50 % kept, mean of the four methods, without
fine-tuning (98.6 % before compression): the covariance gains 35.8 points over Frobenius, with a
95 % interval of 30.7 to 41.0 over the subsets, and Kronecker 7.6 (5.5 to 9.8) over the covariance.
At 25 %, where little is left of any of them, the covariance gains 13.8 (6.5 to 21.0), and Kronecker
loses 2.8 (-18.6 to 13.0) to it. After the epoch of fine-tuning, at 50 %: 14.8 and 2.3 points. After
refinement nothing is left of these gains at 50 %, and at 25 % 19.8 (9.7 to 29.9) and 0.8 points.

Accuracy in % at 50 % kept in Kronecker's norm, as it is compressed, refined, and fine-tuned:

    svd       72.1 [67.3, 77.0]    86.0 [84.5, 87.4]    83.0
    CP        80.8 [76.6, 84.9]    85.7 [84.3, 87.1]    84.4
    Tucker    81.0 [77.5, 84.5]    86.1 [86.1, 86.1]    84.7
    TT        34.4 [30.5, 38.2]    96.2 [95.1, 97.3]    77.7

Layer after layer, each making up for what the ones before it lost:

    ... --config.norms="('covariance', 'sequential covariance', 'sequential kronecker')"

Biases corrected as well as not, and transfer, with moments from MNIST resized to 8x8:

    ... --config.correct_bias="(False, True)"
    ... --config.calibration.sources="('same', 'mnist')" --config.calibration.folder=PATH

With MNIST's moments the covariance still gains 15.2 points (8.4 to 22.0) over Frobenius at 50 %
kept, and Kronecker 8.6 (8.5 to 8.8) over the covariance, little as its images look like the digits.
"""

from ml_collections import ConfigDict

from configs.common import FEW_SWEEPS, data_aware, on_embedded_digits, shortened


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or with `arg` "smoke" a variant of a minute."""
    config = on_embedded_digits(data_aware("digits", "garipovnet"))
    config.keeps = (0.5, 0.25)
    config.calibration.images = (800,)
    config.solver.update(FEW_SWEEPS)
    config.test.batch_size = 360
    config.refine.epochs = 10
    config.finetune.epochs = 1
    return shortened(config, arg)
