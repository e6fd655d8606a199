"""Norms that see the data, GoogLeNet on the 100 variants of FGVC-Aircraft.

PATH is the folder that the published archive unpacks into, `fgvc-aircraft-2013b`. WEIGHTS is an npz
file of the arrays of a GoogLeNet with 100 classes under their PyTorch names, as torchvision names
them:

    np.savez("googlenet.npz", **{name: array.numpy() for name, array in model.state_dict().items()})

    python -m experiments.main --config=configs/data_aware_googlenet_aircraft.py \\
        --workdir=runs/data_aware_googlenet_aircraft --config.weights=WEIGHTS \\
        --config.data.folder=PATH

A network with `transform_input=True`, as torchvision makes it from ImageNet's weights, standardises
its inputs a second time; with an auxiliary head the file holds arrays for it:

    ... --config.inputs.mean="(0.5, 0.5, 0.5)" --config.inputs.deviation="(0.5, 0.5, 0.5)"
    ... --config.model.arguments.aux=True

Images stay in their files: those of a batch are decoded when it is wanted, by threads ahead of its
use. Without WEIGHTS the network is trained first, from random weights. Made for an accelerator; not
timed.
"""

from ml_collections import ConfigDict

from configs.common import data_aware, on_photographs, shortened


def get_config(arg: str = "") -> ConfigDict:
    """The experiment, or with `arg` "smoke" a small variant."""
    config = on_photographs(data_aware("fgvc_aircraft", "googlenet"))
    config.test.layer_images = 0
    config.model.arguments.aux = False
    return shortened(config, arg)
