from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from torch import Tensor

from st_predict import _imagenet
from st_predict._imagenet import PIXELS, load_efficientnet_lite0

if TYPE_CHECKING:
    from pathlib import Path

ESPRESSO, TRIPOD, EGYPTIAN_CAT = 967, 872, 285


def pixels_of(picture: np.ndarray) -> Tensor:
    """The central square at 224 px, as the network reads it."""
    image = Image.fromarray(picture).convert("RGB")
    side, (width, height) = min(image.size), image.size
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    x_HWC = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return ((x_HWC - torch.tensor(PIXELS.mean)) / torch.tensor(PIXELS.std)).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("picture", "label"), [("coffee", ESPRESSO), ("camera", TRIPOD), ("chelsea", EGYPTIAN_CAT)])
def test_tells_pictures_apart(picture: str, label: int) -> None:
    network = load_efficientnet_lite0(num_classes=1000)
    with torch.inference_mode():
        scores = network(pixels_of(getattr(skimage.data, picture)()))
    assert scores.argmax().item() == label


def test_pixels_are_those_of_the_source() -> None:
    x = torch.arange(256.0)
    torch.testing.assert_close((x / 255 - PIXELS.mean[0]) / PIXELS.std[0], (x - 127) / 128)


def test_weights_are_what_float16_keeps() -> None:
    for name, tensor in load_efficientnet_lite0().state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, tensor.half().float()), name
            assert tensor.isfinite().all(), name


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "weights.pth"
    torch.save({"_fc.bias": torch.zeros(3)}, fake)
    monkeypatch.setattr(_imagenet, "_find", lambda: fake)
    with pytest.raises(ValueError, match="SHA-256"):
        load_efficientnet_lite0()


def test_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_imagenet, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'st-predict\[imagenet\]'"):
        load_efficientnet_lite0()
