"""Read images, spots and resolutions, and write results for other programs; this layer knows SpatialData and no network."""

from __future__ import annotations

from st_predict._public import show_only
from st_predict.io._anndata import from_anndata
from st_predict.io._geojson import write_geojson
from st_predict.io._hest import read_hest
from st_predict.io._legacy_st import read_legacy_st
from st_predict.io._mpp import Mpp, find_mpp
from st_predict.io._openslide import OpenSlidePyramid
from st_predict.io._pyramid import PyramidReader, SpatialDataPyramid, level_offsets, open_pyramid
from st_predict.io._rasters import write_raster
from st_predict.io._read import read_image, read_wsi
from st_predict.io._rgb8 import to_rgb8
from st_predict.io._select import find_image, find_region, find_shapes, find_table, find_tables, named_table
from st_predict.io._slides import open_slide
from st_predict.io._spots import Spots, read_spots, spots_outside
from st_predict.io._stimage import read_stimage
from st_predict.io._table_file import write_table
from st_predict.io._tiff import TiffPyramid
from st_predict.io._wsidata import from_wsidata, to_wsidata

__all__ = [
    "Mpp",
    "OpenSlidePyramid",
    "PyramidReader",
    "SpatialDataPyramid",
    "Spots",
    "TiffPyramid",
    "find_image",
    "find_mpp",
    "find_region",
    "find_shapes",
    "find_table",
    "find_tables",
    "from_anndata",
    "from_wsidata",
    "level_offsets",
    "named_table",
    "open_pyramid",
    "open_slide",
    "read_hest",
    "read_image",
    "read_legacy_st",
    "read_spots",
    "read_stimage",
    "read_wsi",
    "spots_outside",
    "to_rgb8",
    "to_wsidata",
    "write_geojson",
    "write_raster",
    "write_table",
]

__dir__ = show_only(__all__)
