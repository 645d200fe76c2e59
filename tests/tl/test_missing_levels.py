"""Slides without the finest level are predicted from the others, if the user says so."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from spatialdata.transformations import Scale, set_transformation

import st_predict as stp
from st_predict import checkpoints
from st_predict._training import CropStore
from st_predict._training._rounds import JoinedStore
from st_predict.crops import Batch
from st_predict.specs import ModelCard

FLOAT32 = {"device": "cpu", "precision": "float32"}


def square(image, xy, side, size):
    """A square around a spot, padded with white and averaged down to ``size``, ``(3, size, size)``."""
    padded = np.pad(image.astype(float), [(0, 0), (side, side), (side, side)], constant_values=255)
    left, top = (round(v - side / 2) + side for v in xy)
    cut = padded[:, top : top + side, left : left + side]
    return cut.reshape(3, size, side // size, size, side // size).mean((2, 4)).round().astype(np.uint8)


def test_the_network_sees_the_levels_that_are_there(sdata, checkpoint, caplog):
    path = checkpoint(mpp=0.5)  # crops of 64 px at 0.5, 1 and 2 um/px
    stp.tl.predict(sdata, path, mpp=1.0, key_added="masked", missing_levels="mask", **FLOAT32)
    assert "coarser than the levels [0] of 3 that the network reads" in caplog.text
    network, _ = checkpoints.load(path)
    image = sdata["he"]["scale0"]["image"].to_numpy()
    centres = stp.io.read_spots(sdata).xy
    levels = [np.stack([square(image, xy, side, 64) for xy in centres]) for side in (64, 128)]
    unseen = torch.randint(256, (len(centres), 3, 64, 64), dtype=torch.uint8)
    batch = Batch(
        crops=(unseen, *map(torch.from_numpy, levels)),
        index=torch.arange(len(centres)),
        level_mask=torch.tensor([False, True, True]).repeat(len(centres), 1),
    )
    with torch.no_grad():
        expected = network.eval()(batch).numpy()
    table = sdata["table"]
    found = table.obsm["masked"]
    inside = np.isfinite(found).all(1)
    assert inside.any()
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.01 * expected.std())
    params = json.loads(table.uns["st_predict"]["masked"]["params"])
    assert params["missing_levels"] == "mask"
    assert "coarser than the levels [0]" in " ".join(params["warnings"])


def test_a_level_wider_than_the_image_is_masked_as_well(sdata, checkpoint, caplog):
    path = checkpoint(mpp=0.5)  # fields of view of 128, 256 and 512 px at 0.25 um/px; the image has 400 x 600 px
    for key, option in (("masked", "mask"), ("padded", "error")):
        stp.tl.predict(sdata, path, mpp=0.25, key_added=key, missing_levels=option, **FLOAT32)
    assert "the levels [2] of 3 that the network reads, or narrower" in caplog.text
    network, card = checkpoints.load(path)
    reader, centres = stp.io.open_pyramid(sdata), stp.io.read_spots(sdata).xy
    plan = stp.crops.plan_crops(centres, card.crop, downsamples=reader.downsamples, mpp=0.25)
    (batch,) = stp.crops.iter_batches(reader, plan, batch_size=None)
    expected = {}
    for key, seen in (("masked", [True, True, False]), ("padded", [True, True, True])):
        mask = torch.tensor(seen).repeat(len(centres), 1)
        with torch.no_grad():
            expected[key] = network.eval()(replace(batch, level_mask=mask)).numpy()[batch.index.argsort()]
        found = sdata["table"].obsm[key]
        inside = np.isfinite(found).all(1)
        assert inside.any()
        np.testing.assert_allclose(found[inside], expected[key][inside], atol=1e-4)
    assert np.abs(expected["padded"] - expected["masked"]).max() > 0.01


def test_an_image_with_all_levels_is_predicted_as_ever(sdata, checkpoint, caplog):
    for key, option in (("plain", "error"), ("masked", "mask")):
        stp.tl.predict(sdata, checkpoint(mpp=0.5), mpp=0.5, key_added=key, missing_levels=option, **FLOAT32)
    np.testing.assert_array_equal(sdata["table"].obsm["masked"], sdata["table"].obsm["plain"])
    assert "masked" not in caplog.text


def test_the_error_names_the_way_out(sdata, checkpoint):
    with pytest.raises(ValueError, match=r'has 1 um/px, the model needs 0\.5 um/px or finer.*missing_levels="mask"'):
        stp.tl.predict(sdata, checkpoint(mpp=0.5), mpp=1.0)
    assert "pred_m2ost" not in sdata["table"].obsm


def test_models_that_need_all_levels_are_refused(sdata, measured, tmp_path, quick):
    stp.tl.train(measured, "mean", panel=list("abcd"), out=tmp_path / "mean")
    with pytest.raises(ValueError, match=r"'mean' needs all levels .* some are \['m2ost'\].*missing_levels="):
        stp.tl.predict(sdata, tmp_path / "mean" / "mean.safetensors", missing_levels="mask")
    options = {"panel": list("abcd"), "out": tmp_path / "out", "preset": "paper"}
    with pytest.raises(ValueError, match="'stnet' needs all levels"):
        stp.tl.train(measured, "stnet", missing_levels="mask", **options)
    with pytest.raises(ValueError, match=r"'m2ort' needs all levels .* level_drop hides some.*config="):
        stp.tl.train(
            measured, "m2ort", hparams=dict(stp.models.get_spec("m2ort").tiny), config=quick(level_drop=0.5), **options
        )


def with_mpp(sdata, mpp):
    set_transformation(sdata["he"], Scale([mpp, mpp], axes=("x", "y")), "um")
    return sdata


def test_training_on_sections_of_several_resolutions(measured, other, quick, tmp_path):
    fine, coarse = with_mpp(measured, 0.5), other("P2")
    coarse.images["he"] = copy.deepcopy(fine["he"])  # with transformations of its own
    with_mpp(coarse, 1.0)
    options = {
        "panel": list("abcd"),
        "preset": "paper",
        "mpp": 0.5,
        "hparams": dict(stp.models.get_spec("m2ost").tiny),
        "config": quick(measure_pixels=True),
    }
    with pytest.raises(ValueError, match=r'1 um/px, the model needs 0\.5 um/px.*missing_levels="mask"'):
        stp.tl.train([fine, coarse], "m2ost", out=tmp_path / "refused", **options)
    result = stp.tl.train([fine, coarse], "m2ost", out=tmp_path / "both", missing_levels="mask", **options)
    card = ModelCard.of_file(result.checkpoint)
    assert card.training["missing_levels"] == "mask"
    image = fine["he"]["scale0"]["image"].to_numpy()
    centres = stp.io.read_spots(fine).xy
    seen = [square(image, xy, side, 64) for side in (64, 128, 256, 64, 128) for xy in centres]
    # of the coarse section two levels, no grey squares in place of the third
    np.testing.assert_allclose(card.pixels.mean, np.mean(seen, axis=(0, 2, 3)) / 255, atol=0.01)


def test_a_teacher_needs_all_levels(measured, other, quick, tmp_path):
    fine, coarse = with_mpp(measured, 0.5), other("P2")
    coarse.images["he"] = copy.deepcopy(fine["he"])
    with_mpp(coarse, 1.0)
    options = {"panel": list("abcd"), "mpp": 0.5, "hparams": dict(stp.models.get_spec("m2ost").tiny)}
    config = quick(teacher={"encoder": "rgb"})
    with pytest.raises(ValueError, match=r"teacher needs all levels .*Leave out 'teacher' in config="):
        stp.tl.train([fine, coarse], "m2ost", out=tmp_path / "o", missing_levels="mask", config=config, **options)


def test_advice_is_for_models_that_can_follow_it(sdata, measured, tmp_path, quick):
    hparams = dict(stp.models.get_spec("m2ort").tiny)
    options = {"panel": list("abcd"), "preset": "paper", "hparams": hparams, "config": quick(epochs=1)}
    trained = stp.tl.train(with_mpp(measured, 0.5), "m2ort", out=tmp_path / "fine", mpp=0.5, **options)
    with pytest.raises(ValueError, match=r"0\.5 um/px or finer") as error:
        stp.tl.predict(sdata, trained, mpp=1.0)
    assert "missing_levels" not in str(error.value)
    with pytest.raises(ValueError, match=r"0\.25 um/px or finer") as error:
        stp.tl.train(measured, "m2ort", out=tmp_path / "finer", mpp=0.25, **options)
    assert "missing_levels" not in str(error.value)


def test_pseudo_labels_of_sections_of_several_resolutions():
    """Rows of both parts keep their levels."""
    target = np.zeros((3, 4), np.float32)
    crops = tuple(np.full((3, 3, 8, 8), level, np.uint8) for level in range(2))
    whole = CropStore(crops=crops, target=target, section=np.zeros(3, int), grid=None, xy_um=None)
    lacking = replace(whole, level_mask=np.array([[False, True]] * 3))
    for measured, unlabelled in ((whole, lacking), (lacking, whole)):
        joined = JoinedStore(
            measured=measured, unlabelled=unlabelled, rows=np.arange(2), labels=np.zeros((2, 4), np.float32)
        )
        expected = [[store is whole, True] for store in [measured] * 3 + [unlabelled] * 2]
        assert joined.batch(np.array([4, 0, 3])).level_mask.tolist() == [expected[i] for i in (4, 0, 3)]
    assert JoinedStore(measured=lacking, unlabelled=whole, rows=np.arange(0), labels=target[:0]).batch(
        np.array([1])
    ).level_mask.tolist() == [[False, True]]
