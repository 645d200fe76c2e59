"""Stain normalisation of images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from st_predict._errors import InvalidValueError
from st_predict._stain import Stain, StainMap
from st_predict.io import level_offsets
from st_predict.pp import fit_stain

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._stain import Method
    from st_predict.io import PyramidReader
    from st_predict.specs import ModelCard

__all__ = ["StainedPyramid", "mean_stain", "stain_of", "stained"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class StainedPyramid:
    """Reader of an image with colours normalised to a reference stain.

    Parameters
    ----------
    reader
        Reader of the image.
    colours
        Map of its colours.
    """

    reader: PyramidReader
    colours: StainMap
    interleaved = True

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        return self.reader.level_shapes

    @property
    def downsamples(self) -> tuple[float, ...]:
        return self.reader.downsamples

    @property
    def offsets(self) -> tuple[tuple[float, float], ...]:
        return level_offsets(self.reader)

    def edges(self, level: int) -> Any:
        return self.reader.edges(level)

    def read(self, x: int, y: int, width: int, height: int, *, level: int) -> NDArray[np.uint8]:
        return self.colours(self.reader.read(x, y, width, height, level=level))


def stained(sdata: SpatialData, image_key: str, reader: PyramidReader, target: Stain) -> tuple[StainedPyramid, Stain]:
    """Return a reader that normalises an image to the stain ``target``, and the image's own stain.

    Raises
    ------
    ValueError
        If the image's stain cannot be measured.
    """
    source = fit_stain(sdata, target.method, image_key=image_key)
    logger.info("The stain of image %r is normalised to the training's, by %s.", image_key, target.method)
    return StainedPyramid(reader, StainMap.between(source, target)), source


def stain_of(card: ModelCard) -> Stain | None:
    """Return the reference stain of a network's training; ``None`` without stain normalisation.

    Raises
    ------
    ValueError
        If the card's stain is damaged.
    """
    note = card.training.get("stain")
    if note is None:
        return None
    if not isinstance(note, Mapping):
        raise InvalidValueError(f"The stain in the card of {card.model!r} must be a mapping, got {note!r}.")
    return Stain(**{str(name): _tuple(value) for name, value in note.items()})


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list | tuple) else value


def mean_stain(images: Sequence[tuple[SpatialData, str]], method: Method) -> Stain:
    """Measure the mean stain of images, given as object and key."""
    once = {(id(sdata), key): (sdata, key) for sdata, key in images}
    return Stain.average([fit_stain(sdata, method, image_key=key) for sdata, key in once.values()])
