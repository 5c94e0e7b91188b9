"""Annotated images: files of COCO, VIA, labelme and YOLO, and mask images as one kind of record, and back."""

from fastmask.data.formats import FORMATS, find_format, read_all, read_dataset, write_dataset
from fastmask.data.polygons import masks_to_polygons, trace_polygons
from fastmask.data.records import Dataset, Instance, Problem, Record, add_sizes, assign_labels
from fastmask.data.rename import rename_classes
from fastmask.data.splits import Splits, label_names, read_splits
from fastmask.data.validate import validate_dataset

__all__ = [
    "FORMATS",
    "Dataset",
    "Instance",
    "Problem",
    "Record",
    "Splits",
    "add_sizes",
    "assign_labels",
    "find_format",
    "label_names",
    "masks_to_polygons",
    "read_all",
    "read_dataset",
    "read_splits",
    "rename_classes",
    "trace_polygons",
    "validate_dataset",
    "write_dataset",
]
