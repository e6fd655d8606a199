"""Norms that see the data, GaripovNet on MNIST; PATH is the folder with the published files.

    python -m experiments.main --config=configs/data_aware_mnist.py \\
        --workdir=runs/data_aware_mnist --config.data.folder=PATH

Transfer, with moments from the embedded digits, resized to 28x28:

    ... --config.calibration.sources="('same', 'digits')" --config.calibration.images="(1000,)"

Accuracy in % without fine-tuning on 5,000 test images, where the network, trained on 6,000 images,
has 98.7 %; 1,000 calibration images, mean of two subsets, every layer at one share
(--config.data.train_size=6000 --config.data.test_size=5000 --config.calibration.subsets=2
--config.keeps="(0.5, 0.25)" --config.test.layer_images=0 --config.finetune.epochs=0
--config.solver.max_iters=50 and the flags above; 35 minutes on two shared cores):

                               MNIST's own moments        moments of the digits
                   frobenius   covariance   kronecker     covariance   kronecker
    svd, 50 %      59.1        95.2         91.7          87.8         91.0
    CP, 50 %       60.1        95.1         91.8          88.3         91.2
    Tucker, 50 %   62.8        95.2         91.7          87.6         90.9
    TT, 50 %       30.8        21.9         31.9          16.9         41.3
    svd, 25 %      17.3        21.1         31.1          11.4         14.4
    CP, 25 %       15.3        21.0         30.5          11.4         14.6
    Tucker, 25 %   15.7        22.1         31.5          11.4         15.0
    TT, 25 %       11.4        13.1         28.6          13.0         36.0

Kronecker's values at 50 % differ by 8 points between the two subsets. What the tensor train loses
it loses in conv1, whose single input channel leaves it the ranks 1, 1 and 3 of a 9 x 64 matrix: in
no norm anything comes of that. With conv1 left as it is, by

    ... --config.layers="('conv[2-6]', 'linear')"

                   frobenius   covariance   kronecker
    Tucker, 50 %   97.2        97.5         93.2
    Tucker, 25 %   44.6        40.2         40.5
    TT, 50 %       95.8        98.6         98.7
    TT, 25 %       93.8        98.5         98.5

where Tucker at 25 % leaves the linear layer, a matrix with ten columns, a rank of 2.
"""

from ml_collections import ConfigDict

from configs.common import data_aware, shortened


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or with `arg` "smoke" a variant of a minute."""
    config = data_aware("mnist", "garipovnet")
    config.train.update({"epochs": 6, "batch_size": 64, "boundaries": (4, 5)})
    config.calibration.images = (2000, 10000)
    config.test.layer_images = 2000
    config.finetune.epochs = 1
    if arg == "smoke":
        config.model.arguments = {"widths": (8, 8, 8, 8, 8, 8)}
    return shortened(config, arg)
