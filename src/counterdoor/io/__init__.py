"""Catalog data sets: versioned, written atomically, in formats that hold no executable code."""

from counterdoor.io.atomic import (
    BytesDataset,
    CSVDataset,
    FigureDataset,
    JSONDataset,
    ParquetDataset,
    TextDataset,
)
from counterdoor.io.images import ImagesDataset
from counterdoor.io.tensors import CachedTensorsDataset, TensorsDataset
from counterdoor.io.trained_net import HardenedDataset, TrainedNetDataset

__all__ = [
    "BytesDataset",
    "CSVDataset",
    "CachedTensorsDataset",
    "FigureDataset",
    "HardenedDataset",
    "ImagesDataset",
    "JSONDataset",
    "ParquetDataset",
    "TensorsDataset",
    "TextDataset",
    "TrainedNetDataset",
]
