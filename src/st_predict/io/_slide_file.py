"""Slides in one file, whatever reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from st_predict._errors import StPredictError
from st_predict.io._regions import check_level, level_downsamples
from st_predict.io._tiles import block_edges

if TYPE_CHECKING:
    from pathlib import Path

    from st_predict.io._edges import Edges

__all__ = ["SlideFile"]


class SlideFile(ABC):
    """Levels of a slide; other processes open the file again."""

    _path: Path
    _level_shapes: tuple[tuple[int, int], ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path,)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        # dask would else pickle the reader, and so open the file again, to name arrays
        file = self._path.stat()
        return type(self).__name__, str(self._path), file.st_mtime_ns, file.st_size

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """``(height, width)`` of each level, finest first."""
        return self._level_shapes

    @property
    def downsamples(self) -> tuple[float, ...]:
        """Width of a pixel of each level in level-0 pixels; the first is 1."""
        try:
            return level_downsamples(self._level_shapes)
        except StPredictError as error:
            raise error.about(f"{self._path}:") from error

    @property
    @abstractmethod
    def tile_shapes(self) -> tuple[tuple[int, int], ...]:
        """``(height, width)`` of the tiles of each level."""

    def edges(self, level: int) -> Edges:
        """Edges of whole tiles, about 512 px apart; see :meth:`PyramidReader.edges`."""
        check_level(level, self._level_shapes)
        return block_edges(self._level_shapes[level], self.tile_shapes[level])
