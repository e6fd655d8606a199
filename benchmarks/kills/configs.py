"""The experiments that are killed, as small as they can be."""

DIGITS = {"name": "digits", "validation_share": 0.25, "train_size": 80}
DIGITS |= {"validation_size": 40, "test_size": 40}
CONFIG = {
    "data": DIGITS,
    "model": {"name": "mlp", "arguments": {"widths": [8, 8]}},
    "train": {"epochs": 2, "batch_size": 40},
    "finetune": {"epochs": 1},
}
CALIBRATED = {**CONFIG, "calibration": {"images": [40], "subsets": 2, "batch_size": 40}}
CONFIGS = {
    "study": {
        **CONFIG,
        "layers": ["hidden1", "hidden2"],
        "methods": ["svd"],
        "compressions": [0.2, 0.5],
        "networks": 2,
        "runs": 2,
        # As small a network learns next to nothing.
        "poor_baseline": True,
        "measure": {"feature_images": 20, "batch_size": 20},
    },
    "data_aware": {
        **CALIBRATED,
        "methods": ["svd"],
        "keeps": [0.5],
        "norms": ["frobenius", "covariance"],
        "correct_bias": [False],
        "refine": {"epochs": 1},
    },
    "compress": {
        **CALIBRATED,
        # Wide enough for ranks that meet the budget.
        "model": {"name": "mlp", "arguments": {"widths": [32, 32]}},
        "strategies": ["uniform"],
        "methods": ["svd"],
        "budgets": [0.6],
        "norms": ["frobenius", "covariance"],
        "refine": {"epochs": 1},
    },
    "compressibility": {
        **CALIBRATED,
        "calibration": {"images": [40], "batch_size": 40},
        "methods": ["magnitude layer"],
        "runs": 2,
        "shares": [0.5],
        "layer_steps": 2,
    },
}
