"""One budget for the whole network, ResNet-56 on CIFAR-100.

The commands, and what they do, are in configs/alds.py.
"""

from configs.alds import on_cifar

get_config = on_cifar("cifar100", "resnet56", "resnet")
