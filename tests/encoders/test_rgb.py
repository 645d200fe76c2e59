"""The statistics of the encoder ``rgb`` against numpy and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import rgb2hed

from st_predict._runtime import Inference
from st_predict.crops import Batch
from st_predict.encoders._catalogue import load_encoder
from st_predict.encoders._rgb import RGB_CROP, RGB_NAMES, RgbStatistics

N = len(RGB_NAMES) // 3


def make_crops(n: int = 4, low: int = 1) -> list[np.ndarray]:
    """Three levels of noise over a gradient, ``(n, 3, 64, 64)``."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0.3, 1, 64)[:, None]
    return [np.maximum(rng.integers(0, 256, (n, 3, 64, 64)) * ramp, low).astype(np.uint8) for _ in range(3)]


def describe(crops: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Columns by their names."""
    batch = Batch(crops=tuple(map(torch.from_numpy, crops)), index=torch.arange(len(crops[0])))
    columns = load_encoder("rgb")(batch).numpy()
    assert columns.shape == (len(crops[0]), len(RGB_NAMES)) and columns.dtype == np.float32
    return dict(zip(RGB_NAMES, columns.T, strict=True))


def stains_of(crop: np.ndarray) -> dict[str, np.ndarray]:
    hed = rgb2hed(np.moveaxis(crop, 1, 3))
    return {"haematoxylin": hed[..., 0], "eosin": hed[..., 1]}


def channels_of(crop: np.ndarray) -> dict[str, np.ndarray]:
    colours = dict(zip(("red", "green", "blue"), np.moveaxis(crop / 255, 1, 0), strict=True))
    return {**colours, **stains_of(crop)}


def test_names_are_144_of_three_levels():
    assert len(set(RGB_NAMES)) == len(RGB_NAMES) == 144
    assert [sum(name.endswith(level) for name in RGB_NAMES) for level in ("_x1", "_x2", "_x4")] == [48, 48, 48]
    assert [level.fov * RGB_CROP.mpp for level in RGB_CROP.levels] == [128, 256, 512]


def test_distributions():
    crops = make_crops()
    ours = describe(crops)
    for level, crop in zip((1, 2, 4), crops, strict=True):
        for channel, values in channels_of(crop).items():
            flat, some = values.reshape(4, -1), values[:, ::4, ::4].reshape(4, -1)
            expected = {"mean": flat.mean(1), "sd": flat.std(1)}
            expected |= {f"q{q}": np.percentile(some, q, axis=1, method="lower") for q in (10, 50, 90)}
            for statistic, value in expected.items():
                np.testing.assert_allclose(ours[f"{statistic}_{channel}_x{level}"], value, atol=1e-5)


def test_shares_and_correlation():
    crops = make_crops()
    ours = describe(crops)
    stains = [stain.reshape(4, -1) for stain in stains_of(crops[1]).values()]
    np.testing.assert_allclose(ours["share_of_nuclei_x2"], (stains[0] > 0.1).mean(1), atol=1e-3)
    density = -np.log(crops[1] / 255).mean(1)
    np.testing.assert_allclose(ours["share_of_tissue_x2"], (density > 0.15).mean((1, 2)), atol=1e-3)
    expected = [np.corrcoef(h, e)[0, 1] for h, e in zip(*stains, strict=True)]
    np.testing.assert_allclose(ours["correlation_of_stains_x2"], expected, atol=1e-4)
    assert 0.1 < ours["share_of_nuclei_x2"].mean() < 0.9


def test_gradients_and_local_deviations():
    crops = make_crops()
    ours = describe(crops)
    for stain, values in stains_of(crops[2]).items():
        down, across = np.gradient(values, axis=(1, 2))
        expected = np.hypot(down, across)[:, 1:-1, 1:-1].mean((1, 2))
        np.testing.assert_allclose(ours[f"gradient_{stain}_x4"], expected, atol=1e-5)
        for size in (2, 4, 8, 16):
            blocks = values.reshape(4, 64 // size, size, 64 // size, size)
            np.testing.assert_allclose(ours[f"sd_in_{size}px_{stain}_x4"], blocks.std((2, 4)).mean((1, 2)), atol=1e-5)


def pattern(patch: np.ndarray) -> int:
    """Number of the local binary pattern of 3 by 3 pixels."""
    ring = [patch[i] >= patch[1, 1] for i in ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))]
    changes = sum(a != b for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
    return sum(ring) if changes <= 2 else 9


def test_patterns():
    crops = make_crops(2)
    ours = describe(crops)
    values = stains_of(crops[0])["haematoxylin"].round(7)  # equal colours are equal in float64 as well
    for i in range(2):
        codes = [pattern(values[i, y : y + 3, x : x + 3]) for y in range(62) for x in range(62)]
        shares = np.bincount(codes, minlength=10) / 62**2
        np.testing.assert_allclose([ours[f"pattern_{k}_x1"][i] for k in range(10)], shares, atol=2e-3)
        assert shares.min() > 0


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (170, 90, 160), (0, 255, 0)])
def test_one_colour(colour):
    crop = np.broadcast_to(np.array(colour, np.uint8)[None, :, None, None], (2, 3, 64, 64)).copy()
    ours = describe([crop] * 3)
    assert np.isfinite(list(ours.values())).all()
    for name, values in ours.items():
        if name.startswith(("sd", "gradient", "correlation")):
            np.testing.assert_allclose(values, 0, atol=1e-6, err_msg=name)
    assert (ours["pattern_8_x1"] == 1).all()  # every neighbour is as dark as the centre
    if colour == (255, 255, 255):
        assert ours["share_of_tissue_x1"].max() == ours["mean_haematoxylin_x4"].max() == 0


def test_rows_do_not_depend_on_their_batch_or_on_the_precision():
    crops = tuple(map(torch.from_numpy, make_crops(6, low=0)))
    batch = Batch(crops=crops, index=torch.arange(6))
    runs = [
        Inference(load_encoder("rgb"), device=torch.device("cpu"), precision=precision, working_batch=n)(batch)
        for precision, n in (("float32", 6), ("float32", 1), ("bfloat16", 4))
    ]
    torch.testing.assert_close(runs[1], runs[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(runs[2], runs[0], atol=1e-6, rtol=1e-5)


def test_statistics_need_no_weights():
    assert not RgbStatistics().state_dict()
    assert load_encoder("rgb").fingerprint == load_encoder("rgb").fingerprint is not None
