"""One budget for the whole network, DenseNet-22 on CIFAR-10.

The commands, and what they do, are in configs/alds.py.
"""

from configs.alds import on_cifar

# Even at rank 1 a tenth of the parameters is left.
get_config = on_cifar("cifar10", "densenet22", "densenet22", least=0.1)
