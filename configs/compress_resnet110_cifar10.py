"""One budget for the whole network, ResNet-110 on CIFAR-10.

The commands, and what they do, are in configs/alds.py.
"""

from configs.alds import on_cifar

get_config = on_cifar("cifar10", "resnet110", "resnet")
