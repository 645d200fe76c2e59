"""Simulated H&E tissue: a plan of the tissue, then nuclei, then light through two stains."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Map = NDArray[np.floating]

__all__ = ["GRID_UM", "Histology", "Style", "draw_style", "grow_tissue", "smooth_noise"]

GRID_UM = 4.0
"""Pixel width of the plan, in micrometres. Coarser than the image: the plan has outlines, the rendering has detail."""

FAR_UM = 1000.0
"""Distance to structures that are absent."""

TURN, SLIDE_UM, MOVED_UM, STRETCH_UM = 0.02, 15.0, 20.0, 300.0
"""Differences between cuts of a block, as standard deviations: angle in radians, shift, and a displacement that varies
over ``STRETCH_UM``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """Properties shared by the sections of a patient.

    Parameters
    ----------
    stains
        Optical density of hematoxylin and eosin in red, green and blue, ``(2, 3)``.
    strength
        Strength of either stain, ``(2,)``.
    nests, glands, fat, immune
        Amounts of solid tumour, glands, fat and lymphocytes, around 0.
    nucleus
        Relative size of epithelial nuclei, around 1.
    """

    stains: NDArray[np.float64]
    strength: NDArray[np.float64]
    nests: float
    glands: float
    fat: float
    immune: float
    nucleus: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Plan of the tissue, on a grid of :data:`GRID_UM`.

    Distances are in micrometres, positive inside and negative outside: ``body`` of the tissue, ``epithelium``, ``lumen``
    and ``fat``. ``lymph`` is the density of lymphocytes relative to the largest possible (0 to 1). ``atypia`` makes
    epithelial nuclei larger and paler, ``crowding`` makes them denser. Fibres follow the contours of ``fibre``, in
    micrometres.
    """

    body: Map
    epithelium: Map
    lumen: Map
    fat: Map
    lymph: Map
    atypia: Map
    crowding: Map
    fibre: Map


@dataclass(frozen=True, kw_only=True, slots=True)
class Histology:
    """A simulated section.

    Parameters
    ----------
    image
        RGB image, ``(height, width, 3)`` uint8.
    body, epithelium
        Masks of tissue and of epithelium, on a grid of :data:`GRID_UM`.
    nuclei
        One row per nucleus: ``x`` and ``y`` in micrometres, ``kind`` (``"epithelium"``, ``"stroma"``, ``"lymphocyte"``) and
        ``area`` in square micrometres.
    """

    image: NDArray[np.uint8]
    body: NDArray[np.bool_]
    epithelium: NDArray[np.bool_]
    nuclei: pd.DataFrame


def draw_style(rng: np.random.Generator, *, shift: float = 1.0) -> Style:
    """Draw the properties shared by one patient's sections; ``shift`` scales the differences in stain."""
    stains = np.array([[0.60, 0.71, 0.37], [0.16, 0.86, 0.48]]) + rng.normal(0, 0.03 * shift, (2, 3))
    return Style(
        stains=stains / np.linalg.norm(stains, axis=1, keepdims=True),
        strength=np.exp(rng.normal(0, 0.12 * shift, 2)),
        nests=rng.normal(0, 0.15),
        glands=rng.normal(0, 0.15),
        fat=rng.normal(0, 0.2),
        immune=rng.normal(0, 0.3),
        nucleus=np.exp(rng.normal(0, 0.05)),
    )


def grow_tissue(
    rng: np.random.Generator,
    style: Style,
    *,
    shape: tuple[int, int],
    mpp: float,
    block: np.random.Generator | None = None,
) -> Histology:
    """Simulate one section of ``shape`` (height, width) pixels.

    ``block`` draws the plan of all cuts of one block; each is deformed a little.
    """
    plan = (
        _draw_plan(rng, style, shape=shape, mpp=mpp) if block is None else _cut(rng, block, style, shape=shape, mpp=mpp)
    )
    nuclei = _place_nuclei(rng, style, plan)
    image = _render(rng, style, plan, nuclei, shape=shape, mpp=mpp)
    inside = plan.body > 0
    epithelium = inside & (plan.epithelium > 0) & (plan.lumen < 0)
    return Histology(
        image=image,
        body=inside,
        epithelium=epithelium,
        nuclei=nuclei[["x", "y", "kind", "area"]],
    )


def _cut(
    rng: np.random.Generator, block: np.random.Generator, style: Style, *, shape: tuple[int, int], mpp: float
) -> Plan:
    """Plan of one cut of a block: moved, turned and stretched a little."""
    plan = _draw_plan(block, style, shape=shape, mpp=mpp)
    grid = plan.body.shape
    place = np.indices(grid, np.float32)
    centre = np.array(grid, np.float32)[:, None, None] / 2
    angle = np.float32(rng.normal(0, TURN))
    y, x = place - centre
    place += angle * np.stack([x, -y]) + rng.normal(0, SLIDE_UM / GRID_UM, (2, 1, 1)).astype(np.float32)
    place += np.stack([smooth_noise(rng, grid, STRETCH_UM / GRID_UM) for _ in grid]) * np.float32(MOVED_UM / GRID_UM)
    moved = {
        field.name: ndimage.map_coordinates(getattr(plan, field.name), place, order=1, mode="nearest")
        for field in fields(plan)
    }
    return Plan(**moved)


def _draw_plan(rng: np.random.Generator, style: Style, *, shape: tuple[int, int], mpp: float) -> Plan:
    grid = (int(np.ceil(shape[0] * mpp / GRID_UM)), int(np.ceil(shape[1] * mpp / GRID_UM)))

    def noise(scale_um: float) -> Map:
        return smooth_noise(rng, grid, scale_um / GRID_UM)

    body = _outline(grid) + 45 * noise(110) + 12 * noise(25)
    region = noise(260)
    fat = np.minimum(70 * (noise(130) + style.fat - 1.3), body - 60)
    glands, lumen = _glands(rng, style, grid, region)
    nests = 40 * (noise(42) + 0.5 * region + 0.5 * style.nests - 0.5) + 4 * noise(10)
    epithelium = np.minimum.reduce([np.maximum(nests, glands), -fat - 15, body - 25])
    # noise changes the distances, and fibres and rims need true ones
    epithelium = _signed_distance(epithelium)
    lumen = np.minimum(lumen + 5 * noise(12), epithelium - 9)
    return Plan(
        body=body,
        epithelium=epithelium,
        lumen=lumen,
        fat=fat,
        lymph=_aggregates(rng, style, grid) * (epithelium < -3) * (fat < -5),
        atypia=noise(150),
        crowding=noise(110),
        fibre=0.9 * np.clip(-epithelium, 0, 90) + 75 * noise(140) + 5 * noise(22),
    )


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Map:
    """Gaussian noise of unit variance, blurred with a standard deviation of ``scale`` cells."""
    step = max(1.0, scale / 3)
    sigma = scale / step
    pad = int(np.ceil(3 * sigma))
    inner = (int(np.ceil(shape[0] / step)) + 2, int(np.ceil(shape[1] / step)) + 2)
    white = rng.standard_normal((inner[0] + 2 * pad, inner[1] + 2 * pad), dtype=np.float32)
    blurred = ndimage.gaussian_filter(white, sigma)[pad : pad + inner[0], pad : pad + inner[1]]
    # a blurred field has the variance 1 / (4 pi sigma^2)
    return _resize(blurred * np.float32(2 * sigma * np.sqrt(np.pi)), shape, box=(shape[0] / step, shape[1] / step))


def _resize(field: Map, shape: tuple[int, int], *, box: tuple[float, float] | None = None) -> Map:
    height, width = box or field.shape
    image = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.asarray(image.resize(shape[::-1], Image.Resampling.BICUBIC, box=(0, 0, width, height)))


def _outline(grid: tuple[int, int]) -> Map:
    """Distance to the edge of a rounded rectangle that leaves a margin, in micrometres."""
    y, x = (np.abs(np.linspace(-1, 1, n, dtype=np.float32)) for n in grid)
    radius = (y[:, None] ** 4 + x[None, :] ** 4) ** 0.25
    return (0.88 - radius) * (min(grid) * GRID_UM / 2)


def _glands(rng: np.random.Generator, style: Style, grid: tuple[int, int], region: Map) -> tuple[Map, Map]:
    """Distances into the epithelium and the lumen of round glands."""
    centres = _jittered(rng, grid, pitch_um=135.0, jitter=0.35)
    wanted = 0.45 + 0.5 * style.glands - 0.3 * _sample(region, centres)
    centres = centres[rng.random(len(centres)) < np.clip(wanted, 0.05, 0.9)]
    radius = rng.uniform(28, 68, len(centres)).astype(np.float32)
    if len(centres) == 0:
        return np.full(grid, -FAR_UM, np.float32), np.full(grid, -FAR_UM, np.float32)
    distance, nearest = _nearest(centres, grid, k=2)
    depth = radius[nearest] - distance
    hollow = radius[nearest] - rng.uniform(15, 30, len(centres)).astype(np.float32)[nearest] - distance
    wobble = 7 * smooth_noise(rng, grid, 25 / GRID_UM)
    return depth.max(axis=-1) + wobble, hollow.max(axis=-1) + wobble


def _jittered(rng: np.random.Generator, grid: tuple[int, int], *, pitch_um: float, jitter: float) -> Map:
    """Points ``(n, 2)``, x and y in micrometres, on a jittered hexagonal lattice."""
    height, width = grid[0] * GRID_UM, grid[1] * GRID_UM
    rows = np.arange(0, height, pitch_um * 0.87)
    cols = np.arange(0, width, pitch_um)
    x = cols[None, :] + (np.arange(len(rows)) % 2)[:, None] * pitch_um / 2
    xy = np.stack([x, np.broadcast_to(rows[:, None], x.shape)], axis=-1).reshape(-1, 2)
    xy = (xy + rng.normal(0, jitter * pitch_um / 2, xy.shape)).astype(np.float32)  # round before selecting
    return xy[((xy >= 0) & (xy < np.array([width, height], np.float32))).all(axis=1)]


def _sample(field: Map, xy_um: Map) -> Map:
    col, row = (xy_um / GRID_UM).astype(np.intp).T
    return field[row, col]


def _nearest(points: Map, grid: tuple[int, int], *, k: int) -> tuple[Map, NDArray[np.intp]]:
    """Distances in micrometres to the ``k`` nearest points, and their indices: ``(height, width, k)``."""
    y, x = np.mgrid[: grid[0], : grid[1]] * GRID_UM + GRID_UM / 2
    k = min(k, len(points))
    distance, index = cKDTree(points).query(np.stack([x, y], axis=-1), k=range(1, k + 1))
    return distance.astype(np.float32), index


def _signed_distance(field: Map) -> Map:
    inside = field > 0
    if not inside.any():
        return np.full(field.shape, -FAR_UM, np.float32)
    distance = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    return ndimage.gaussian_filter((distance * GRID_UM).astype(np.float32), 1.0)


def _aggregates(rng: np.random.Generator, style: Style, grid: tuple[int, int]) -> Map:
    """Density of lymphocytes: clusters, and a few everywhere."""
    area_mm2 = grid[0] * grid[1] * GRID_UM**2 / 1e6
    n = max(1, rng.poisson(5.0 * np.exp(style.immune) * area_mm2))
    centres = rng.uniform(0, 1, (n, 2)).astype(np.float32) * np.array(grid[::-1], np.float32) * np.float32(GRID_UM)
    radius = rng.uniform(45, 115, n).astype(np.float32)
    distance, nearest = _nearest(centres, grid, k=2)
    reach = (1 - distance / radius[nearest]).max(axis=-1)
    ragged = reach + 0.35 * smooth_noise(rng, grid, 14 / GRID_UM)
    return np.clip(2.5 * ragged, 0, 0.9) * (reach > 0) + 0.02


def _place_nuclei(rng: np.random.Generator, style: Style, plan: Plan) -> pd.DataFrame:
    kinds = [_epithelial(rng, style, plan), _fibroblasts(rng, plan), _lymphocytes(rng, plan)]
    nuclei = pd.concat(kinds, ignore_index=True)
    nuclei["kind"] = nuclei["kind"].astype("category")
    nuclei["area"] = np.pi * nuclei["long"] * nuclei["short"]
    return nuclei


def _epithelial(rng: np.random.Generator, style: Style, plan: Plan) -> pd.DataFrame:
    xy = _jittered(rng, plan.body.shape, pitch_um=9.0, jitter=0.4)
    depth = _sample(plan.epithelium, xy)
    room = (depth > 2.5) & (_sample(plan.lumen, xy) < -5) & (_sample(plan.body, xy) > 0)
    keep = room & (rng.random(len(xy)) < np.clip(0.78 + 0.2 * _sample(plan.crowding, xy), 0.35, 1.0))
    xy = xy[keep]
    atypia = _sample(plan.atypia, xy)
    radius = 3.7 * style.nucleus * np.exp(0.16 * atypia + rng.normal(0, 0.13, len(xy)))
    ratio = np.exp(np.abs(rng.normal(0, 0.18, len(xy))))
    return _nuclei(
        "epithelium",
        xy,
        long=radius * np.sqrt(ratio),
        short=radius / np.sqrt(ratio),
        angle=rng.uniform(0, np.pi, len(xy)),
        density=0.78 * np.exp(-0.12 * atypia + rng.normal(0, 0.18, len(xy))),
        hollow=np.clip(0.38 + 0.12 * atypia + rng.normal(0, 0.08, len(xy)), 0, 0.7),
    )


def _fibroblasts(rng: np.random.Generator, plan: Plan) -> pd.DataFrame:
    xy = _jittered(rng, plan.body.shape, pitch_um=17.0, jitter=0.7)
    stroma = (_sample(plan.epithelium, xy) < -3) & (_sample(plan.body, xy) > 2) & (_sample(plan.fat, xy) < -2)
    xy = xy[stroma & (rng.random(len(xy)) < 0.75)]
    dy, dx = (_sample(np.gradient(plan.fibre, axis=axis), xy) for axis in (0, 1))
    along = np.arctan2(dy, dx) + np.pi / 2
    return _nuclei(
        "stroma",
        xy,
        long=rng.uniform(4.5, 9.0, len(xy)),
        short=rng.uniform(1.1, 2.2, len(xy)),
        angle=along + rng.normal(0, 0.2, len(xy)),
        density=0.85 * np.exp(rng.normal(0, 0.2, len(xy))),
        hollow=np.full(len(xy), 0.1),
    )


def _lymphocytes(rng: np.random.Generator, plan: Plan) -> pd.DataFrame:
    xy = _jittered(rng, plan.body.shape, pitch_um=7.6, jitter=0.4)
    xy = xy[(rng.random(len(xy)) < _sample(plan.lymph, xy)) & (_sample(plan.body, xy) > 4)]
    radius = 2.9 * np.exp(rng.normal(0, 0.1, len(xy)))
    return _nuclei(
        "lymphocyte",
        xy,
        long=radius * 1.06,
        short=radius / 1.06,
        angle=rng.uniform(0, np.pi, len(xy)),
        density=1.15 * np.exp(rng.normal(0, 0.12, len(xy))),
        hollow=np.full(len(xy), 0.05),
    )


def _nuclei(kind: str, xy: Map, **columns: NDArray[np.floating]) -> pd.DataFrame:
    return pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1], "kind": kind, **columns})


def _render(
    rng: np.random.Generator, style: Style, plan: Plan, nuclei: pd.DataFrame, *, shape: tuple[int, int], mpp: float
) -> NDArray[np.uint8]:
    ground_h, ground_e = _ground(rng, plan, shape=shape, mpp=mpp)
    chromatin = 1 + 0.16 * smooth_noise(rng, shape, max(0.9 / mpp, 0.5))
    stamped = _stamp(nuclei, shape, mpp=mpp) * chromatin
    covered = (stamped * 1.6).clip(0, 1)
    hematoxylin = ground_h * (1 - 0.6 * covered) + stamped
    eosin = ground_e * (1 - 0.55 * covered)
    return _expose(rng, style, hematoxylin, eosin, mpp=mpp)


def _ground(rng: np.random.Generator, plan: Plan, *, shape: tuple[int, int], mpp: float) -> tuple[Map, Map]:
    """Hematoxylin and eosin of everything except nuclei, ``(height, width)`` each."""

    def full(name: str) -> Map:
        return _to_image(getattr(plan, name), shape, mpp=mpp)

    grain = smooth_noise(rng, shape, 1.3 / mpp)
    cloud = smooth_noise(rng, shape, 9 / mpp)
    body = _soft(full("body") + 2 * cloud, 2.0)
    epithelium = _soft(full("epithelium") + 1.2 * cloud, 1.0)
    lumen = _soft(full("lumen") + 1.0 * cloud, 1.2)
    fibres = _fibres(rng, full("fibre"), mpp=mpp)
    stroma_e = np.clip(0.31 + 0.10 * fibres + 0.03 * cloud + 0.025 * grain, 0.02, None)
    stroma_e = _fill_fat(rng, plan, stroma_e, mpp=mpp)
    cytoplasm_e = 0.27 + 0.03 * cloud + 0.03 * grain
    cytoplasm_h = 0.17 + 0.03 * cloud + 0.02 * grain
    secretion = np.clip(0.12 + 0.2 * smooth_noise(rng, shape, 40 / mpp), 0, 0.35)
    tissue = body * (1 - lumen * epithelium * (1 - secretion))
    eosin = tissue * (stroma_e + epithelium * (cytoplasm_e - stroma_e))
    hematoxylin = tissue * (0.10 * stroma_e + epithelium * (cytoplasm_h - 0.10 * stroma_e))
    return np.clip(hematoxylin, 0, None), np.clip(eosin, 0, None)


def _to_image(field: Map, shape: tuple[int, int], *, mpp: float) -> Map:
    return _resize(field, shape, box=(shape[0] * mpp / GRID_UM, shape[1] * mpp / GRID_UM))


def _soft(distance_um: Map, width_um: float) -> Map:
    """1 inside, 0 outside, and a smooth step of about ``width_um`` between."""
    return (distance_um / np.float32(2 * width_um) + np.float32(0.5)).clip(0, 1)


def _fibres(rng: np.random.Generator, contour_um: Map, *, mpp: float) -> Map:
    """Fibres along the contours of a field: unit variance, thin across contours and long along them."""
    across, along = 2048, 256
    table = rng.standard_normal((across, along), dtype=np.float32)
    fine = ndimage.gaussian_filter(table, (2.0, 5.0), mode="wrap")
    coarse = ndimage.gaussian_filter(table[::-1], (9.0, 3.0), mode="wrap")
    table = fine / fine.std() + coarse / coarse.std()
    drift = smooth_noise(rng, contour_um.shape, 30 / mpp)
    row = (contour_um * np.float32(2.0)).astype(np.int32) % across
    col = (drift * np.float32(20.0)).astype(np.int32) % along
    return table[row, col] / np.float32(np.sqrt(2))


def _fill_fat(rng: np.random.Generator, plan: Plan, stroma: Map, *, mpp: float) -> Map:
    """Replace stroma by empty fat cells with thin walls."""
    fat = _to_image(plan.fat, stroma.shape, mpp=mpp)
    rows, cols = np.nonzero(fat > -6)
    centres = _jittered(rng, plan.body.shape, pitch_um=52.0, jitter=0.4)
    if len(rows) == 0 or len(centres) < 3:
        return stroma
    near, second, third = cKDTree(centres).query(np.stack([cols, rows], axis=-1) * mpp, k=3)[0].T.astype(np.float32)
    # cells are round: their walls part where three meet
    wall = _soft(1.8 - np.minimum(second - near, 0.35 * (third - near)), 1.0)
    filled = stroma.copy()
    inside = _soft(fat[rows, cols], 3.0)
    filled[rows, cols] += inside * (wall * np.float32(0.24) - filled[rows, cols])
    return filled


def _stamp(nuclei: pd.DataFrame, shape: tuple[int, int], *, mpp: float) -> Map:
    """Hematoxylin of nuclei, ``(height, width)``; the darker of two overlapping nuclei is visible."""
    canvas = np.zeros(shape[0] * shape[1], np.float32)
    for start in range(0, len(nuclei), 4096):
        batch = nuclei.iloc[start : start + 4096]
        index, value = _patches(batch, shape, mpp=mpp)
        np.maximum.at(canvas, index, value)
    return canvas.reshape(shape)


def _patches(nuclei: pd.DataFrame, shape: tuple[int, int], *, mpp: float) -> tuple[NDArray[np.intp], Map]:
    """Flat index and hematoxylin of each pixel of the nuclei."""

    def column(name: str) -> Map:
        return nuclei[name].to_numpy(np.float32)[:, None, None]

    reach = int(np.ceil(nuclei["long"].max() / mpp)) + 1
    step = np.arange(-reach, reach + 1, dtype=np.int32)
    x, y = column("x") / np.float32(mpp), column("y") / np.float32(mpp)
    col, row = np.floor(x).astype(np.int32) + step[None, None, :], np.floor(y).astype(np.int32) + step[None, :, None]
    dx, dy = (col + np.float32(0.5) - x) * np.float32(mpp), (row + np.float32(0.5) - y) * np.float32(mpp)
    cos, sin = np.cos(column("angle")), np.sin(column("angle"))
    radius = np.hypot((dx * cos + dy * sin) / column("long"), (dy * cos - dx * sin) / column("short"))
    edge = np.clip((1 - radius) * column("short") / np.float32(0.9) + 0.5, 0, 1)
    rim = 1 - column("hollow") * np.clip(1 - radius**2, 0, 1)
    seen = (edge > 0) & (row >= 0) & (row < shape[0]) & (col >= 0) & (col < shape[1])
    return (row * shape[1] + col)[seen].astype(np.intp), (column("density") * edge * rim)[seen]


def _expose(rng: np.random.Generator, style: Style, hematoxylin: Map, eosin: Map, *, mpp: float) -> NDArray[np.uint8]:
    """Light through the stains by Beer-Lambert's law, then blur and noise."""
    stains = (style.stains * style.strength[:, None] * np.log(10)).astype(np.float32)
    image = np.empty((*hematoxylin.shape, 3), np.uint8)
    speckle = rng.standard_normal(hematoxylin.shape, dtype=np.float32)
    for channel, white in enumerate((243.0, 241.0, 244.0)):
        light = np.float32(white) * np.exp(-(hematoxylin * stains[0, channel] + eosin * stains[1, channel]))
        light = ndimage.gaussian_filter(light, max(0.45, 0.35 / mpp), truncate=3)
        own = rng.standard_normal(hematoxylin.shape, dtype=np.float32)
        image[..., channel] = np.clip(light + np.float32(1.4) * speckle + np.float32(1.2) * own, 0, 255)
    return image
