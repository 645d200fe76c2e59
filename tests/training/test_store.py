"""Training sees of a spot what prediction sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from st_predict._sections._measured import measure
from st_predict._sections._observed import observe
from st_predict._sections._store import cut_crops
from st_predict._training._loader import CropLoader
from st_predict._where import Where
from st_predict.crops import iter_batches
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData


def test_a_spot_is_the_same_in_training_and_in_prediction(measured: SpatialData, tmp_path: Path) -> None:
    table = measured.tables["table"]
    table.X[3] = 0  # has no target
    table.obs["array_row"], table.obs["array_col"] = np.repeat(range(3), 4), np.tile(range(4), 3)
    measured.images["he"].attrs["mpp"] = 0.5
    crop = get_spec("m2ost").crop_for(get_spec("m2ost").tiny)
    card = ModelCard(model="m2ost", genes=tuple("abcd"), crop=crop)
    (seen,) = observe(measure(measured, card, Where()), card)
    store = cut_crops([seen], crop, folder=tmp_path / "crops")
    (stored,) = CropLoader(store, batch_size=99)
    (read,) = iter_batches(seen.section.reader, seen.section.plan(crop), batch_size=None)
    read = seen.section.place(read)
    kept = torch.tensor([i for i in range(12) if i != 3])
    for ours, theirs in zip(stored.crops, read.crops, strict=True):
        assert torch.equal(ours, theirs[kept])
    assert torch.equal(stored.grid, read.grid[kept])
    assert stored.xy_um is not None
    assert torch.equal(stored.xy_um, read.xy_um[kept])
    np.testing.assert_allclose(stored.xy_um, 0.5 * seen.section.spots.xy[kept], rtol=1e-6)
