"""Cells as the networks read them, and the batches that both stages train on."""

from cfmvc_scvi.cells.count_loader import CountDataModule, CountLoader
from cfmvc_scvi.cells.count_source import CountSource, DeviceCounts, DiskCounts, MemoryCounts
from cfmvc_scvi.cells.latents import CellPosterior, LatentCache
from cfmvc_scvi.cells.pairs import LatentData, LatentDataModule, PairLoader
from cfmvc_scvi.cells.reader import CellReader
from cfmvc_scvi.cells.table import CellTable

__all__ = [
    "CellPosterior",
    "CellReader",
    "CellTable",
    "CountDataModule",
    "CountLoader",
    "CountSource",
    "DeviceCounts",
    "DiskCounts",
    "LatentCache",
    "LatentData",
    "LatentDataModule",
    "MemoryCounts",
    "PairLoader",
]
