"""One budget for the whole network, on scikit-learn's embedded 8x8 digits: nothing to download.

    python -m experiments.main --config=configs/compress_digits.py --workdir=runs/compress_digits

The GaripovNet of configs/digits.py at two budgets, before and after one epoch of fine-tuning.
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
