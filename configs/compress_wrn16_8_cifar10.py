"""One budget for the whole network, WRN-16-8 on CIFAR-10.

The commands, and what they do, are in configs/alds.py.
"""

from configs.alds import on_cifar

get_config = on_cifar("cifar10", "wrn16_8", "wrn16_8")
