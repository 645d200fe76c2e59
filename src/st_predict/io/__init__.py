"""Read images, spots and resolutions; this layer knows SpatialData and no network."""

from __future__ import annotations

from st_predict.io._anndata import from_anndata
from st_predict.io._legacy_st import read_legacy_st
from st_predict.io._mpp import Mpp, find_mpp
from st_predict.io._openslide import OpenSlidePyramid, read_wsi
from st_predict.io._pyramid import PyramidReader, SpatialDataPyramid, open_pyramid
from st_predict.io._select import find_image, find_region, find_shapes, find_table, find_tables
from st_predict.io._spots import Spots, read_spots, spots_outside

__all__ = [
    "Mpp",
    "OpenSlidePyramid",
    "PyramidReader",
    "SpatialDataPyramid",
    "Spots",
    "find_image",
    "find_mpp",
    "find_region",
    "find_shapes",
    "find_table",
    "find_tables",
    "from_anndata",
    "open_pyramid",
    "read_legacy_st",
    "read_spots",
    "read_wsi",
    "spots_outside",
]
