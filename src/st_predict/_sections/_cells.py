"""Features of the cells of an image, and of the cells of each spot."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, cast

import numpy as np

from st_predict._errors import Advice, InvalidValueError
from st_predict._files import sha256
from st_predict._keys import Keys
from st_predict._progress import track
from st_predict._runtime import Inference
from st_predict._sections._cell_grid import CellGrid, cells_of_spots
from st_predict._sections._cell_map import describe_section, section_tiles
from st_predict._sections._features import digests_of_crops, kept_features
from st_predict.crops import iter_batches, plan_crops
from st_predict.io import level_offsets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from st_predict._runtime import Compute
    from st_predict._sections._cell_map import SectionNetwork
    from st_predict._sections._section import Section
    from st_predict.crops import Batch
    from st_predict.encoders import CellEncoder
    from st_predict.io import PyramidReader
    from st_predict.specs import CropSpec

__all__ = ["CellReader", "join_cells", "spot_cells"]

_PIXELS = 1 << 22  # approximate number of pixels read together


def spot_radius(section: Section, radius_um: float | None) -> NDArray[np.float64]:
    """Return the radius of each spot, in level-0 pixels.

    Raises
    ------
    ValueError
        If it is unknown, or not positive and finite for every spot.
    """
    if radius_um is not None:
        if not 0 < radius_um < np.inf:
            raise InvalidValueError(f"radius_um must be positive and finite, got {radius_um}.")
        if section.mpp is None:
            raise InvalidValueError(
                f"A radius of {radius_um} um needs the mpp of the image of {section.region!r}.",
                Advice("give it with {}", "mpp"),
                f"set a transformation of the image to a coordinate system called {Keys.UM!r}",
            )
        return np.full(len(section.spots), radius_um / section.mpp.value)
    radius = section.spots.check_radius(section.region)
    if radius is None:
        raise InvalidValueError(
            f"The spots of {section.region!r} are not circles, so their radius is unknown.",
            Advice("give it in micrometres as 'radius_um' in {}", "hparams"),
            "make circles of the shapes with spatialdata.to_circles",
        )
    return radius


class CellReader:
    """Reader of cell features, a few tiles at a time.

    Parameters
    ----------
    reader
        Image.
    encoder
        Encoder of the cells.
    crop
        Tiles of the encoder.

    mpp
        Micrometres per pixel at level 0; ``None`` if unknown.
    compute
        Device and precision.
    """

    def __init__(
        self,
        reader: PyramidReader,
        encoder: CellEncoder,
        crop: CropSpec,
        *,
        mpp: float | None,
        compute: Compute,
    ) -> None:
        self.reader, self.encoder, self.crop, self.mpp = reader, encoder, crop, mpp
        self.grid = CellGrid.of(reader, encoder, crop, mpp=mpp)
        self.batch_size = max(1, _PIXELS // crop.levels[0].size ** 2)
        self.inference = Inference(
            encoder,
            device=compute.place,
            precision="float32" if encoder.spec.float32 else compute.precision,
            working_batch=1 if compute.place.type == "cpu" and self.batch_size < 8 else None,
        )

    def describe(self, cells: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Compute the features of cells, in ascending order of cell numbers.

        Yields
        ------
        tuple of ndarray and ndarray
            Indices into ``cells``, and their features ``(n, n_features)``; every cell once.
        """
        if self.encoder.cells.shifts:
            network = cast("SectionNetwork", self.encoder.backbone)  # encoders with shifts are section networks
            yield from describe_section(cells, self.grid, spec=self.encoder.cells, network=network, read=self._tiles)
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
        """Return the SHA-256 of these cells and of all pixels that the encoder reads for them."""
        if self.encoder.cells.shifts:
            centres = np.concatenate([centres for _, centres in section_tiles(self.encoder.cells, self.grid)])
        else:
            centres = self.grid.tile_centres(np.unique(cells // self.grid.n**2))
        return sha256(cells.data, digests_of_crops(self._read(centres, device=None), len(centres)).data)

    def _tiles(self, centres: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        device = self.inference.device
        done = self.inference.over(self._read(centres, device=device if device.type == "cuda" else None))
        for index, maps in track(done, "Describing tiles", len(centres), unit="tile", size=lambda one: len(one[0])):
            yield index.numpy(), maps.numpy()

    def _read(self, centres: NDArray[np.float64], *, device: torch.device | None) -> Iterator[Batch]:
        downsamples, offsets = self.reader.downsamples, level_offsets(self.reader)
        plan = plan_crops(centres, self.crop, downsamples=downsamples, mpp=self.mpp, offsets=offsets)
        return iter_batches(self.reader, plan, batch_size=self.batch_size, pad_value=self.crop.pad_value, device=device)


def spot_cells(
    section: Section,
    encoder: CellEncoder,
    *,
    crop: CropSpec,
    radius_um: float | None,
    compute: Compute,
) -> NDArray[np.float32]:
    """Compute the features of the cells of every spot.

    Results are cached on disk, as by :func:`st_predict._sections._features.section_features`.

    Parameters
    ----------
    section
        Section with spots and image.
    encoder
        Encoder of the cells.
    crop
        Tiles of the encoder.
    radius_um
        Radius of the spots in micrometres; by default the radius of their circles.
    compute
        Device and precision.

    Returns
    -------
    ndarray
        ``(n_spots, n_cells, n_features)``, padded with NaN; NaN for spots outside the image.

    Raises
    ------
    ValueError
        If the radius of the spots is unknown.
    """
    radius = spot_radius(section, radius_um)
    mpp = None if section.mpp is None else section.mpp.value
    reader = CellReader(section.reader, encoder, crop, mpp=mpp, compute=compute)
    cells = cells_of_spots(reader.grid, section.spots.xy, radius)
    cells[section.outside] = -1
    wanted, which = np.unique(cells[cells >= 0], return_inverse=True)

    def describe() -> NDArray[np.float32]:
        values = np.empty((len(wanted), encoder.cells.n_features), dtype=np.float32)
        for places, described in reader.describe(wanted):
            values[places] = described
        return values

    header = {
        "encoder": encoder.describe(),
        "crop": asdict(crop),
        "precision": reader.inference.precision,
        "grid": asdict(reader.grid),
    }
    values = kept_features(encoder, {**header, "pixels": reader.digest(wanted)}, describe)
    features = np.full((*cells.shape, values.shape[1]), np.nan, dtype=np.float32)
    features[cells >= 0] = values[which]
    return features


def join_cells(sections: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Pad the cells per spot of several sections with NaN to the same number; features of whole spots are not changed."""
    if sections[0].ndim == 2:
        return list(sections)
    most = max(features.shape[1] for features in sections)
    return [np.pad(f, ((0, 0), (0, most - f.shape[1]), (0, 0)), constant_values=np.nan) for f in sections]
