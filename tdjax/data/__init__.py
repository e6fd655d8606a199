"""Data sets: readers of the published files, splits, standardisation, augmentation."""

from tdjax.data.augment import random_crop_flip
from tdjax.data.datasets import RawDataset, load
from tdjax.data.errors import DataError
from tdjax.data.splits import DataSplits, Examples, check_finite, prepare, standardise
from tdjax.data.stratify import stratified_split, stratified_subset

__all__ = [
    "DataError",
    "DataSplits",
    "Examples",
    "RawDataset",
    "check_finite",
    "load",
    "prepare",
    "random_crop_flip",
    "standardise",
    "stratified_split",
    "stratified_subset",
]
