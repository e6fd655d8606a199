"""Networks that the experiments train and compress."""

from experiments.models.densenet import DenseNet, DenseNet22
from experiments.models.garipov import GaripovNet
from experiments.models.googlenet import GoogLeNet
from experiments.models.mlp import MLP
from experiments.models.resnet import ImageNetResNet18, ResNet, ResNet18, ResNet50
from experiments.models.resnet_cifar import CifarResNet, ResNet20, ResNet56, ResNet110
from experiments.models.vgg import VGG16
from experiments.models.wide_resnet import WRN16_8, WideResNet

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
