"""Data sets: readers of the published files, splits, standardisation, augmentation."""

from tdjax.data.augment import random_crop_flip
from tdjax.data.datasets import RawDataset, load
from tdjax.data.errors import DataError
from tdjax.data.image_arrays import DecodedWhenTaken, ImageArray
from tdjax.data.image_batches import image_batches
from tdjax.data.image_folder import ImageFiles, aircraft_files, imagenet_files
from tdjax.data.splits import DataSplits, Examples, check_finite, prepare, standardise
from tdjax.data.stratify import stratified_split, stratified_subset
from tdjax.data.tables import TABLES, RawTable, TableExamples, load_table, prepare_table
from tdjax.data.views import evaluation_view, training_view

__all__ = [
    "TABLES",
    "DataError",
    "DataSplits",
    "DecodedWhenTaken",
    "Examples",
    "ImageArray",
    "ImageFiles",
    "RawDataset",
    "RawTable",
    "TableExamples",
    "aircraft_files",
    "check_finite",
    "evaluation_view",
    "image_batches",
    "imagenet_files",
    "load",
    "load_table",
    "prepare",
    "prepare_table",
    "random_crop_flip",
    "standardise",
    "stratified_split",
    "stratified_subset",
    "training_view",
]
