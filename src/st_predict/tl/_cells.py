"""Square cells of an image: where they are, which a spot covers, and what an encoder says of each."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict.crops import iter_batches, plan_crops
from st_predict.models import Inference
from st_predict.models._hipt import Hipt
from st_predict.tl._cell_map import describe_section, section_tiles
from st_predict.tl._features import kept_features

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from st_predict.crops import Batch, LevelPlan
    from st_predict.io import PyramidReader
    from st_predict.models._dense import DenseEncoder
    from st_predict.specs import CropSpec
    from st_predict.tl._sections import Section

__all__ = ["CellGrid", "CellReader", "cells_of_spots", "join_cells", "spot_cells", "spot_radius"]

_PIXELS = 1 << 22  # of the tiles that are read together, about
_SPOTS = 4096  # whose cells are looked for at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class CellGrid:
    """Cells over an image, from its corner, numbered tile by tile and in reading order in each tile.

    Parameters
    ----------
    width
        Side of a cell, in pixels of level 0.
    shape
        Rows and columns of cells whose centre lies in the image.
    n
        Cells along a side of a tile.
    """

    width: float
    shape: tuple[int, int]
    n: int

    @classmethod
    def of(cls, reader: PyramidReader, encoder: DenseEncoder, crop: CropSpec, *, mpp: float | None) -> CellGrid:
        """Lay the cells that an encoder describes over an image, as tiles of ``crop`` are cut from it."""
        (plan,) = plan_crops(np.zeros((1, 2)), crop, downsamples=reader.downsamples, mpp=mpp)
        width = encoder.dense.cell * plan.read_size / plan.size * reader.downsamples[plan.level]
        rows, columns = (max(1, int(np.ceil(side / width + 0.5)) - 1) for side in reader.level_shapes[0])
        return cls(width=width, shape=(rows, columns), n=encoder.dense.n_cells)

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.shape[0] // self.n), -(-self.shape[1] // self.n)

    def numbers(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of cells."""
        tile = rows // self.n * self.tiles[1] + columns // self.n
        return tile * self.n**2 + rows % self.n * self.n + columns % self.n

    def places(self, cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and columns of cells."""
        tile, inside = np.divmod(cells, self.n**2)
        return tuple(  # type: ignore[return-value]
            outer * self.n + inner
            for outer, inner in zip(np.divmod(tile, self.tiles[1]), np.divmod(inside, self.n), strict=True)
        )

    def centres(self, cells: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return ``(n_cells, 2)``: x and y in level-0 pixels."""
        return (np.stack(self.places(cells)[::-1], axis=1) + 0.5) * self.width

    def tile_centres(self, tiles: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return ``(n_tiles, 2)``: x and y in level-0 pixels."""
        row, column = np.divmod(tiles, self.tiles[1])
        return (np.stack([column, row], axis=1) + 0.5) * self.n * self.width

    def bands(self) -> Iterator[NDArray[np.int64]]:
        """Yield the numbers of the cells of a row of tiles after another, rising."""
        size = self.tiles[1] * self.n**2
        for start in range(0, self.tiles[0] * size, size):
            cells = np.arange(start, start + size)
            rows, columns = self.places(cells)
            yield cells[(rows < self.shape[0]) & (columns < self.shape[1])]


def cells_of_spots(grid: CellGrid, xy: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.int64]:
    """Find the cells whose centre lies in the disk of a spot; the nearest one where none does.

    Parameters
    ----------
    grid
        The cells.
    xy, radius
        ``(n_spots, 2)`` and ``(n_spots,)``: disks, in level-0 pixels.

    Returns
    -------
    ``(n_spots, n_cells)``: numbers of cells, -1 where a spot has fewer than others.
    """
    parts = [_in_disks(grid, xy[i : i + _SPOTS], radius[i : i + _SPOTS]) for i in range(0, len(xy), _SPOTS)]
    most = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(p, ((0, 0), (0, most - p.shape[1])), constant_values=-1) for p in parts])


def _in_disks(grid: CellGrid, xy: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.int64]:
    place = xy[:, ::-1] / grid.width - 0.5  # row and column, where the centre of a cell is whole
    nearest = np.clip(np.rint(place), 0, np.array(grid.shape) - 1).astype(np.int64)
    reach = int(np.ceil(radius.max() / grid.width))
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    cells = nearest[:, None] + steps
    inside = np.square(cells - place[:, None]).sum(axis=2) <= np.square(radius / grid.width)[:, None]
    inside &= ((cells >= 0) & (cells < grid.shape)).all(axis=2)
    inside[:, len(steps) // 2] |= ~inside.any(axis=1)
    spot, step = np.nonzero(inside)
    n = inside.sum(axis=1)
    found = np.full((len(xy), n.max()), -1)
    found[spot, np.arange(len(spot)) - np.repeat(np.cumsum(n) - n, n)] = grid.numbers(*cells[spot, step].T)
    return found


def spot_radius(section: Section, radius_um: float | None) -> NDArray[np.float64]:
    """Return the radius of each spot, in level-0 pixels.

    Raises
    ------
    ValueError
        If it is not known.
    """
    if radius_um is not None:
        if not 0 < radius_um < np.inf:
            raise ValueError(f"radius_um must be positive and finite, got {radius_um}.")
        if section.mpp is None:
            raise ValueError(f"radius_um={radius_um} needs the mpp of the image of {section.region!r}: pass mpp=.")
        return np.full(len(section.spots), radius_um / section.mpp.value)
    if section.spots.radius is None:
        raise ValueError(
            f"The spots of {section.region!r} are no circles, so that their radius is not known: give it in micrometres, with "
            "hparams={'radius_um': ...}."
        )
    return section.spots.radius


class CellReader:
    """Describes cells of an image, a few tiles at a time.

    Parameters
    ----------
    reader
        The image.
    encoder
        What describes its cells.
    crop
        Tiles that it is shown.
    mpp
        Micrometres per pixel of level 0; ``None`` if unknown.
    device, precision
        As in :class:`~st_predict.models.Inference`.
    """

    def __init__(
        self,
        reader: PyramidReader,
        encoder: DenseEncoder,
        crop: CropSpec,
        *,
        mpp: float | None,
        device: torch.device,
        precision: str,
    ) -> None:
        self.reader, self.encoder, self.crop, self.mpp = reader, encoder, crop, mpp
        self.grid = CellGrid.of(reader, encoder, crop, mpp=mpp)
        self.batch_size = max(1, _PIXELS // crop.levels[0].size ** 2)
        self.inference = Inference(
            encoder,
            device=device,
            precision="float32" if encoder.spec.float32 else precision,
            working_batch=1 if device.type == "cpu" and self.batch_size < 8 else None,
        )

    def describe(self, cells: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Describe cells, whose numbers rise.

        Yields
        ------
        Places in ``cells``, and ``(n, n_features)`` for these; every cell once.
        """
        if self.encoder.dense.shifts:
            network = self.encoder.backbone
            assert isinstance(network, Hipt)  # nothing else sees sections
            how: dict[str, Any] = {"spec": self.encoder.dense, "network": network, "read": self._tiles}
            yield from describe_section(cells, self.grid, **how)
            return
        n_inside = self.grid.n**2
        tiles, first = np.unique(cells // n_inside, return_index=True)
        ends = np.append(first[1:], len(cells))
        for index, maps in self._tiles(self.grid.tile_centres(tiles)):
            places = [np.arange(first[tile], ends[tile]) for tile in index]
            flat = maps.reshape(len(index), n_inside, -1)
            yield (
                np.concatenate(places),
                np.concatenate([m[cells[p] % n_inside] for m, p in zip(flat, places, strict=True)]),
            )

    def digest(self, cells: NDArray[np.int64]) -> str:
        """SHA-256 of these cells and of all pixels that the encoder will see of them."""
        digest = hashlib.sha256(cells.data)
        if self.encoder.dense.shifts:
            centres = np.concatenate([centres for _, centres in section_tiles(self.encoder.dense, self.grid)])
        else:
            centres = self.grid.tile_centres(np.unique(cells // self.grid.n**2))
        digests = np.zeros((len(centres), 32), dtype=np.uint8)
        for batch in self._read(centres, device=None):
            for tile, pixels in zip(batch.index.tolist(), batch.crops[0], strict=True):
                digests[tile] = np.frombuffer(hashlib.sha256(np.ascontiguousarray(pixels).data).digest(), np.uint8)
        digest.update(digests.data)
        return digest.hexdigest()

    def _tiles(self, centres: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        device = self.inference.device
        for index, maps in self.inference.over(self._read(centres, device=device if device.type == "cuda" else None)):
            yield index.numpy(), maps.numpy()

    def _read(self, centres: NDArray[np.float64], *, device: torch.device | None) -> Iterator[Batch]:
        plan: tuple[LevelPlan, ...] = plan_crops(centres, self.crop, downsamples=self.reader.downsamples, mpp=self.mpp)
        how: dict[str, Any] = {"batch_size": self.batch_size, "pad_value": self.crop.pad_value, "device": device}
        return iter_batches(self.reader, plan, **how)


def spot_cells(
    section: Section,
    encoder: DenseEncoder,
    *,
    crop: CropSpec,
    radius_um: float | None,
    device: torch.device,
    precision: str,
) -> NDArray[np.float32]:
    """Describe the cells of every spot.

    What was computed is kept on disk, and taken from there, as by :func:`st_predict.tl._features.section_features`.

    Parameters
    ----------
    section
        Where the spots are, and the image.
    encoder
        What describes the cells.
    crop
        Tiles that it is shown.
    radius_um
        Radius of the spots in micrometres, if it is not to be that of their circles.
    device, precision
        As in :class:`~st_predict.models.Inference`.

    Returns
    -------
    ``(n_spots, n_cells, n_features)``; NaN where a spot has fewer cells than others, and for spots outside the image.

    Raises
    ------
    ValueError
        If the radius of the spots is not known.
    """
    radius = spot_radius(section, radius_um)
    outside = section.outside()
    mpp = None if section.mpp is None else section.mpp.value
    reader = CellReader(section.reader, encoder, crop, mpp=mpp, device=device, precision=precision)
    cells = cells_of_spots(reader.grid, section.spots.xy, radius)
    cells[outside] = -1
    wanted, which = np.unique(cells[cells >= 0], return_inverse=True)

    def compute() -> NDArray[np.float32]:
        values = np.empty((len(wanted), encoder.dense.n_features), dtype=np.float32)
        for places, described in reader.describe(wanted):
            values[places] = described
        return values

    header = {
        "encoder": encoder.describe(),
        "crop": asdict(crop),
        "precision": reader.inference.precision,
        "grid": asdict(reader.grid),
    }
    values = kept_features(encoder, {**header, "pixels": reader.digest(wanted)}, compute)
    features = np.full((*cells.shape, values.shape[1]), np.nan, dtype=np.float32)
    features[cells >= 0] = values[which]
    return features


def join_cells(sections: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Pad the cells of the spots of several sections with NaN to the same number; features of whole spots stay as they are."""
    if sections[0].ndim == 2:
        return list(sections)
    most = max(features.shape[1] for features in sections)
    return [np.pad(f, ((0, 0), (0, most - f.shape[1]), (0, 0)), constant_values=np.nan) for f in sections]
