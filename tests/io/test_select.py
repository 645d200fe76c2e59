"""Which element is meant."""

from __future__ import annotations

import re

import numpy as np
import pytest
from anndata import AnnData
from spatialdata import SpatialData

from st_predict._errors import InvalidValueError
from st_predict._keys import Keys
from st_predict.io import find_image, find_shapes, find_table


def _table(**uns):
    table = AnnData(np.ones((2, 1), np.float32))
    table.uns.update(uns)
    return table


def test_the_only_one_is_found(sdata):
    assert find_image(sdata, None) == "he"
    assert find_table(sdata, None) == "table"
    assert find_shapes(sdata, None) == "spots"


def test_no_table_is_none_but_a_named_one_must_exist():
    assert find_table(SpatialData(), None) is None
    with pytest.raises(KeyError, match=re.escape("No table 'x' in sdata; there are []")):
        find_table(SpatialData(), "x")


def test_own_predictions_are_no_table_of_spots():
    prediction = _table(**{Keys.UNS: {"pred_m2ost": {"version": "1"}}})
    assert find_table(SpatialData(tables={"pred_m2ost": prediction}), None) is None
    sdata = SpatialData(tables={"pred_m2ost": prediction, "counts": _table()})
    assert find_table(sdata, None) == "counts"
    assert find_table(sdata, "pred_m2ost") == "pred_m2ost"


def test_a_table_that_holds_predictions_is_still_a_table():
    table = _table(**{Keys.UNS: {"pred_m2ost": {"version": "1"}}})
    assert find_table(SpatialData(tables={"spots": table}), None) == "spots"


def test_of_several_tables_the_default_name_wins():
    assert find_table(SpatialData(tables={"table": _table(), "cells": _table()}), None) == "table"
    with pytest.raises(
        ValueError, match=re.escape("several tables in sdata: ['a', 'b']. Choose one with table_key=, or rename")
    ):
        find_table(SpatialData(tables={"b": _table(), "a": _table()}), None)


def test_of_several_shapes_the_grid_wins(sdata):
    shapes = sdata["spots"]
    assert find_shapes(SpatialData(shapes={"tissue": shapes, "grid": shapes.copy()}), None) == "grid"
    with pytest.raises(
        ValueError,
        match=re.escape("no table in sdata, and several shapes: ['a', 'b']. Choose one with shapes_key=, or rename"),
    ):
        find_shapes(SpatialData(shapes={"b": shapes, "a": shapes.copy()}), None)
    with pytest.raises(KeyError, match=re.escape("No shapes element 'x' in sdata; there are ['spots']")):
        find_shapes(sdata, "x")


def test_no_shapes_at_all_points_to_make_grid():
    with pytest.raises(ValueError, match=r"pp\.make_grid"):
        find_shapes(SpatialData(), None)


def test_cells_are_no_spots(sdata):
    shapes = sdata.shapes["spots"]
    cells = {"cells_istar": _table(**{Keys.UNS: {"cells_istar": {"version": "1"}}})}
    both = SpatialData(shapes={"cells_istar_grid": shapes.copy(), "spots": shapes}, tables=cells)
    assert find_shapes(both, None) == "spots"
    with pytest.raises(ValueError, match="There are no spots"):
        find_shapes(SpatialData(shapes={"cells_istar_grid": shapes.copy()}, tables=cells), None)
    assert find_shapes(both, "cells_istar_grid") == "cells_istar_grid"


@pytest.mark.parametrize("find", [find_image, find_table, find_shapes])
@pytest.mark.parametrize("name", [3, ["he"], np.zeros(2)])
def test_names_are_texts(sdata, find, name):
    with pytest.raises(InvalidValueError, match="_key must be a string, got"):
        find(sdata, name)
