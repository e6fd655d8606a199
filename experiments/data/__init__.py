"""Data sets: readers of the published files, splits, standardisation, augmentation."""

from experiments.data.arrays import prepare_arrays, read_arrays
from experiments.data.augment import random_crop_flip
from experiments.data.datasets import DATASETS, RawDataset, load
from experiments.data.errors import DataError
from experiments.data.image_arrays import DecodedWhenTaken, ImageArray
from experiments.data.image_folder import ImageFiles, aircraft_files, imagenet_files
from experiments.data.parts import Parts, mapped
from experiments.data.photographs import evaluation_view
from experiments.data.splits import (
    DataSplits,
    Examples,
    Inputs,
    arguments,
    check_finite,
    prepare,
    rows,
    standardise,
)
from experiments.data.stored_images import StoredImages
from experiments.data.stratify import stratified_split, stratified_subset
from experiments.data.tables import TABLES, RawTable, TableExamples, load_table, prepare_table

__all__ = [
    "DATASETS",
    "TABLES",
    "DataError",
    "DataSplits",
    "DecodedWhenTaken",
    "Examples",
    "ImageArray",
    "ImageFiles",
    "Inputs",
    "Parts",
    "RawDataset",
    "RawTable",
    "StoredImages",
    "TableExamples",
    "aircraft_files",
    "arguments",
    "check_finite",
    "evaluation_view",
    "imagenet_files",
    "load",
    "load_table",
    "mapped",
    "prepare",
    "prepare_arrays",
    "prepare_table",
    "random_crop_flip",
    "read_arrays",
    "rows",
    "standardise",
    "stratified_split",
    "stratified_subset",
]
