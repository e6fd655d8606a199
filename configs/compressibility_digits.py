"""How far networks can be pruned, on scikit-learn's embedded 8x8 digits: nothing to download.

    python -m experiments.main --config=configs/compressibility_digits.py \\
        --workdir=runs/compressibility_digits

Seven methods at five shares and in their own settings, on the GaripovNet of configs/digits.py
trained from three seeds (98.1 % on the test set), before and after one epoch of fine-tuning. Two
minutes of computing; four minutes on two shared cores.

Accuracy with half of all weights pruned, without fine-tuning: ABP-L 96.8 % (95 % interval 96.4 to
97.2), magnitude over all weights 95.7 (93.5 to 98.0), PQ index by layer 86.5, magnitude by neuron
85.2 (55.3 to 115.2), ABP-M with q 0.5 83.9; ABP-M gains -1.3 points (-8.1 to 5.5) over magnitude
by neuron, ABP-L 1.0 (-1.8 to 3.8) over magnitude of all weights. With 70 % pruned and an epoch of
fine-tuning 95.9, 96.9, 82.5, 85.6 and 85.8 %. The exact tail, which asks for one error of all
neurons for the worst inputs, takes all weights of conv1 and of the linear layer, whose neurons
have the fewest, and leaves 9.9 %.

No index predicts which layers can lose most: over the seven layers Kendall's tau is 0.06 (-0.60
to 0.68) for the PQ index with q 0.5, -0.48 (-0.95 to 0.18) for the sparsity index, which falls
with the number of inputs, and 0.43 (-0.18 to 0.85) for the number of weights. The error bound is
108 times the worst error measured, in the median with q 0.5 (7.9 to 299 times).

A small MLP in place of the GaripovNet (one minute of computing). With 80 % pruned ABP-L keeps
91.6 %, magnitude over all weights 86.2, by neuron 67.3, ABP-M with q 0.5 69.5; ABP-L gains 24.2
points (21.5 to 27.0) over magnitude by neuron and 5.2 (-7.7 to 18.1) over that of all weights:

    ... --config=configs/compressibility_digits.py:mlp
"""

from ml_collections import ConfigDict

from configs.common import compressibility, on_embedded_digits, shortened


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; with `arg` "mlp" of a small MLP, with "smoke" a variant of a minute.

    Raises ValueError for another `arg`.
    """
    config = on_embedded_digits(compressibility("digits", "garipovnet"))
    if arg == "mlp":
        config.model.name = "mlp"
        config.model.arguments = {"widths": (64, 32)}
    config.penalties = (0.03, 0.01, 0.003)
    config.calibration.update({"images": (800,), "batch_size": 400})
    config.test.batch_size = 360
    config.finetune.epochs = 1
    return shortened(config, arg, "mlp")
