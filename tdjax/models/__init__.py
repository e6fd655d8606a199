"""Networks that the experiments train."""

from tdjax.models.garipov import GaripovNet
from tdjax.models.resnet import ResNet18

__all__ = ["GaripovNet", "ResNet18"]
