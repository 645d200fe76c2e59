"""Open the slide of a list: a store, or a picture on which a grid is laid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_predict._memory import is_out_of_memory
from st_predict.io import find_image, read_image
from st_predict.pp import make_grid

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from st_predict.cohort._slides import CohortSlide

__all__ = ["add_grid", "open_listed"]


def open_listed(slide: CohortSlide) -> SpatialData:
    """Open a slide without reading its pixels."""
    import spatialdata

    path = slide.path
    if not path.exists():
        raise FileNotFoundError(f"The file {str(path)!r} does not exist; correct its path in the list.")
    if path.suffix != ".zarr" and not path.is_dir():
        named = {} if slide.image_key is None else {"image_key": slide.image_key}
        return read_image(path, mpp=slide.mpp, progress=False, **named)
    try:
        return spatialdata.read_zarr(path)
    except Exception as error:  # zarr and elements raise many types
        if is_out_of_memory(error):
            raise
        raise OSError(f"{str(path)!r} is not a readable SpatialData store ({error}).") from error


def add_grid(sdata: SpatialData, slide: CohortSlide) -> None:
    """Lay a grid over the tissue of a slide without spots.

    Raises
    ------
    NoTissueError
        If there is no tissue.
    """
    if sdata.shapes or sdata.tables:
        return
    image_key = find_image(sdata, slide.image_key)
    make_grid(sdata, image_key=image_key, pitch_um=slide.pitch_um, mpp=slide.mpp, progress=False)
