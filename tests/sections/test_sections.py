"""Sections of a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from st_predict import datasets
from st_predict._sections._section import as_list, open_sdata
from st_predict._where import Where
from st_predict.crops import Batch

if TYPE_CHECKING:
    from spatialdata import SpatialData


def test_rows_of_each_region(two_regions: SpatialData) -> None:
    opened = open_sdata(two_regions, Where(image_key={"spots": "he", "more": "mirrored"}))
    table_key, sections = opened.table_key, opened.sections
    assert table_key == "table"
    assert [s.region for s in sections] == ["spots", "more"]
    np.testing.assert_array_equal(sections[1].rows, np.arange(1, 24, 2))
    assert list(sections[1].spots.names) == list(two_regions.tables["table"].obs_names[1::2])


def test_place_of_spots_on_lattice_and_in_micrometres() -> None:
    import torch

    toy = datasets.toy()
    (section,) = open_sdata(toy, Where()).sections
    rows = torch.tensor([4, 0])
    batch = section.place(Batch(crops=(), index=rows))
    obs = toy.tables["table"].obs.iloc[[4, 0]]
    np.testing.assert_array_equal(batch.grid, obs[["array_row", "array_col"]])
    np.testing.assert_allclose(batch.xy_um, toy.tables["table"].obsm["spatial"][[4, 0]] * 1.2, rtol=1e-6)


def test_unknown_resolution_matters_only_where_it_is_needed(measured: SpatialData) -> None:
    assert open_sdata(measured, Where()).sections[0].mpp is None
    with pytest.raises(ValueError, match="Nothing says how many micrometres"):
        open_sdata(measured, Where(), need_mpp=True)


def test_a_slide_without_a_table_has_its_shapes(measured: SpatialData) -> None:
    del measured.tables["table"]
    slide = open_sdata(measured, Where())
    table_key, (section,) = slide.table_key, slide.sections
    assert table_key is None
    np.testing.assert_array_equal(section.rows, np.arange(12))


def test_one_or_several_sections(measured: SpatialData) -> None:
    assert as_list(measured) == as_list([measured]) == as_list({"a": measured}) == [measured]
    with pytest.raises(ValueError, match="sdatas is empty; give at least one section"):
        as_list([])
    with pytest.raises(TypeError, match="member of sdatas must be a SpatialData object, got an AnnData"):
        as_list([measured.tables["table"]])
