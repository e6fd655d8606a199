"""Networks that the experiments train and compress."""

from tdjax.models.densenet import DenseNet, DenseNet22
from tdjax.models.garipov import GaripovNet
from tdjax.models.googlenet import GoogLeNet
from tdjax.models.mlp import MLP
from tdjax.models.resnet import ImageNetResNet18, ResNet, ResNet18, ResNet50
from tdjax.models.resnet_cifar import CifarResNet, ResNet20, ResNet56, ResNet110
from tdjax.models.vgg import VGG16
from tdjax.models.wide_resnet import WRN16_8, WideResNet

__all__ = [
    "MLP",
    "VGG16",
    "WRN16_8",
    "CifarResNet",
    "DenseNet",
    "DenseNet22",
    "GaripovNet",
    "GoogLeNet",
    "ImageNetResNet18",
    "ResNet",
    "ResNet18",
    "ResNet20",
    "ResNet50",
    "ResNet56",
    "ResNet110",
    "WideResNet",
]
