"""One budget for the whole network, on scikit-learn's embedded 8x8 digits: nothing to download.

    python -m experiments.main --config=configs/compress_digits.py --workdir=runs/compress_digits

The GaripovNet of configs/digits.py at two budgets: as it is compressed, refined without labels by
ten epochs over its 800 calibration images, and after one epoch of fine-tuning with the labels of
all 1,078 training images. Accuracy in %, where the network has 98.6 %, with the 95 % interval over
three calibration subsets:

    parameters kept             compressed              refined                 fine-tuned
    uniform, Frobenius, 50 %    34.5                    85.5                    72.4
    energy, Frobenius, 50 %     40.4                    87.7                    77.7
    energy, Kronecker, 50 %     94.5 [92.1, 97.0]       96.8 [95.7, 97.8]       96.0 [95.0, 97.1]
    uniform, Frobenius, 25 %    10.0                    70.2                    20.3
    energy, Frobenius, 25 %     19.5                    73.0                    29.5
    energy, Kronecker, 25 %     43.2 [15.5, 70.9]       74.1 [72.3, 75.9]       62.9 [56.6, 69.1]

Compressed, trained on and compressed again:

    ... --config.rounds=2
"""

from ml_collections import ConfigDict

from configs.common import FEW_SWEEPS, compress, on_embedded_digits, shortened


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or with `arg` "smoke" a variant of a minute."""
    config = on_embedded_digits(compress("digits", "garipovnet"))
    config.budgets = (0.5, 0.25)
    config.calibration.images = (800,)
    config.solver.update(FEW_SWEEPS)
    config.test.batch_size = 360
    config.refine.epochs = 10
    config.finetune.epochs = 1
    config.timed_images = 359
    return shortened(config, arg)
