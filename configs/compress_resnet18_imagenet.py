"""One budget for the whole network, ResNet-18 on ImageNet.

The commands, and what they do, are in configs/alds.py.
"""

from configs.alds import on_imagenet

get_config = on_imagenet("resnet18_imagenet")
