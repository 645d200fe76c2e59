"""Images in the colours of another slide."""

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
    """Reads an image in the colours of another slide.

    Parameters
    ----------
    reader
        The image.
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
    """Return a reader of an image in the colours of ``target``, and how the image itself is stained.

    Raises
    ------
    ValueError
        If its stain cannot be measured.
    """
    source = fit_stain(sdata, target.method, image_key=image_key)
    logger.info("Image %r is read in the colours of training, by %s.", image_key, target.method)
    return StainedPyramid(reader, StainMap.between(source, target)), source


def stain_of(card: ModelCard) -> Stain | None:
    """Return the stain in whose colours a network was trained; ``None`` if images were read as they are.

    Raises
    ------
    ValueError
        If the card has one that is damaged.
    """
    note = card.training.get("stain")
    if note is None:
        return None
    if not isinstance(note, Mapping):
        raise InvalidValueError(f"The card of {card.model!r} has a stain that is not a mapping: {note!r}.")
    return Stain(**{str(name): _tuple(value) for name, value in note.items()})


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list | tuple) else value


def mean_stain(images: Sequence[tuple[SpatialData, str]], method: Method) -> Stain:
    """Measure the mean stain of images, each by its object and name."""
    once = {(id(sdata), key): (sdata, key) for sdata, key in images}
    return Stain.average([fit_stain(sdata, method, image_key=key) for sdata, key in once.values()])
