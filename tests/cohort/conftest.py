"""A client in this process, and small slides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """A client whose only worker is a thread of this process."""
    from distributed import Client

    with Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0", set_as_default=False
    ) as client:
        yield client


@pytest.fixture
def write_slide(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiled TIFF of 400 x 400 px with a disc of purple tissue, at 1 um per pixel."""
    import tifffile

    def write(name: str, *, tissue: bool = True, mpp: float | None = 1.0, seed: int = 0) -> Path:
        pixels = np.full((400, 400, 3), 245, np.uint8)
        yy, xx = np.mgrid[:400, :400]
        if tissue:
            inside = np.hypot(yy - 200, xx - 200) < 150
            colours = np.random.default_rng(seed).integers(60, 180, (400, 400, 3), dtype=np.uint8)
            pixels[inside] = colours[inside]
        resolution = {} if mpp is None else {"resolution": (10_000 / mpp,) * 2, "resolutionunit": "CENTIMETER"}
        path = tmp_path / name
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), metadata=None, **resolution)
        return path

    return write
