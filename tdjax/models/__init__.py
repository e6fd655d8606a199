"""Networks that the experiments train."""

from tdjax.models.garipov import GaripovNet
from tdjax.models.resnet import ResNet18
from tdjax.models.resnet_cifar import CifarResNet, ResNet20, ResNet56, ResNet110

__all__ = ["CifarResNet", "GaripovNet", "ResNet18", "ResNet20", "ResNet56", "ResNet110"]
