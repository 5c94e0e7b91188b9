"""Annotated images: COCO, VIA and labelme files and mask images as one kind of record, and back."""

from fastmask.data.formats import FORMATS, find_format, read_dataset, write_dataset
from fastmask.data.records import Dataset, Object, Problem, Record, add_sizes

__all__ = [
    "FORMATS",
    "Dataset",
    "Object",
    "Problem",
    "Record",
    "add_sizes",
    "find_format",
    "read_dataset",
    "write_dataset",
]
