"""Which layers and fields of view are read: against plain calls of timm, scikit-image and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from skimage.transform import resize

from st_predict.crops import Batch
from st_predict.encoders import EncoderSpec, count_features, get_encoder, load_encoder, read_as, restore_encoder
from st_predict.encoders._catalogue import _as_read
from st_predict.encoders._stages import Stages
from st_predict.specs import CropSpec, LevelSpec

# what each stage has, by the papers of the networks
WIDTHS = {
    "resnet18": [64, 128, 256, 512],
    "convnext_atto": [40, 80, 160, 320],
    "swin_tiny_patch4_window7_224": [96, 192, 384, 768],
    "tf_efficientnet_lite0": [24, 40, 112, 320],
    "vit_tiny_patch16_224": [192] * 4,
}


def crops(*sizes: int, n: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    levels = tuple(torch.randint(0, 256, (n, 3, s, s), dtype=torch.uint8, generator=generator) for s in sizes)
    return Batch(crops=levels, index=torch.arange(n))


def spec_of(arch: str, **changes) -> EncoderSpec:
    return EncoderSpec(name=arch, source=f"{arch}.test", crop=CropSpec(levels=(LevelSpec(size=224),)), **changes)


@pytest.mark.parametrize("arch", WIDTHS)
def test_stages_have_the_widths_of_the_publication(arch: str) -> None:
    assert count_features(spec_of(arch, features="stages")) == 2 * sum(WIDTHS[arch])
    stages = Stages(timm.create_model(arch, num_classes=0)).eval()
    with torch.inference_mode():
        assert stages(torch.rand(1, 3, 224, 224)).shape == (1, 2 * sum(WIDTHS[arch]))


def test_stages_are_means_and_deviations_of_the_maps_of_timm() -> None:
    torch.manual_seed(0)  # noqa: TID251  # timm takes no generator
    maps = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    network = timm.create_model("resnet18", num_classes=0).eval()
    network.load_state_dict(maps.state_dict())
    x = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        expected = [np.concatenate([m.mean((2, 3)), m.numpy().std((2, 3))], 1) for m in maps(x)]
        np.testing.assert_allclose(Stages(network)(x), np.concatenate(expected, 1), rtol=1e-5, atol=1e-6)


def test_a_transformer_is_read_at_the_end_of_each_quarter() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    seen = []
    for i in (2, 5, 8, 11):
        network.blocks[i].register_forward_hook(lambda _m, _x, out: seen.append(out))
    with torch.inference_mode():
        found = Stages(network)(torch.rand(1, 3, 224, 224))
    expected = [np.concatenate([t[:, 1:].mean(1), t[:, 1:].numpy().std(1)], 1) for t in seen]
    np.testing.assert_allclose(found, np.concatenate(expected, 1), rtol=1e-4, atol=1e-5)


def test_fields_are_resized_and_joined_smallest_first() -> None:
    spec = read_as(spec_of("resnet18", features="stages"), fields=(448, 112, 224))
    assert spec.fields == (112, 224, 448)
    assert [(level.size, level.downsample) for level in spec.crop.levels] == [(112, 1), (224, 1), (224, 2)]
    assert count_features(spec) == 3 * 1920
    encoder = _as_read(spec.build(), spec).eval()
    batch = crops(112, 224, 224)
    with torch.inference_mode():
        levels = [c.float() / 255 for c in batch.crops]
        found = encoder(*levels)
        enlarged = [resize(x.numpy(), (3, 224, 224), order=1, mode="edge") for x in levels[0]]
        expected = [encoder.backbone(x) for x in (torch.from_numpy(np.stack(enlarged)), *levels[1:])]
    torch.testing.assert_close(found, torch.cat(expected, 1), rtol=1e-3, atol=1e-4)


def test_a_field_that_is_smaller_than_the_network_sees_is_enlarged_even_alone() -> None:
    spec = read_as(spec_of("resnet18", features="stages"), fields=(64,))
    seen = []
    encoder = _as_read(spec.build(), spec).eval()
    encoder.backbone.register_forward_pre_hook(lambda _m, x: seen.append(x[0].shape[-1]))
    with torch.inference_mode():
        encoder(torch.rand(1, 3, 64, 64))
    assert seen == [224]


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("rgb", {"features": "stages"}, "'rgb' has no stages.*Leave out features"),
        ("rgb", {"fields": (112, 224)}, "'rgb' has its own fields of view.*Leave out fields"),
        ("efficientnet_lite0", {"fields": (112, 112)}, r"must be different, got \(112, 112\)"),
        ("efficientnet_lite0", {"fields": (0,)}, "fields"),
        ("efficientnet_lite0", {"features": "tail"}, "features must be 'head' or 'stages'"),
        ("efficientnet_lite0", {"neighbours": -1}, "neighbours"),
    ],
)
def test_unfit_readings(name: str, how: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_encoder(name, **how)


def test_an_encoder_that_is_loaded_stays_as_it_is() -> None:
    encoder = load_encoder("rgb", neighbours=4)
    assert encoder.spec.neighbours == 4
    assert load_encoder(encoder) is encoder
    assert load_encoder(encoder.spec).spec == encoder.spec
    with pytest.raises(ValueError, match=r"already loaded; fields cannot be changed.*eave out fields"):
        load_encoder(encoder, fields=(112,))


def test_the_default_of_efficientnet_is_its_stages() -> None:
    assert count_features(get_encoder("efficientnet_lite0")) == 992
    assert count_features(get_encoder("EfficientNet_Lite0")) == 992
    assert count_features(read_as(get_encoder("efficientnet_lite0"), features="head", neighbours=3)) == 2 * 1280


def test_without_feature_maps_says_so() -> None:
    with pytest.raises(ValueError, match=r"no feature maps of Linear.*features 'head'"):
        Stages(torch.nn.Linear(3, 3))


def test_what_a_checkpoint_carries_describes_alike() -> None:
    loaded = load_encoder("efficientnet_lite0", fields=(112, 224)).eval()
    half = {k: x.half() if x.is_floating_point() else x for k, x in loaded.state_dict().items()}
    restored = restore_encoder(loaded.spec, half).eval()
    assert restored.fingerprint == loaded.fingerprint
    batch = crops(112, 224)
    with torch.inference_mode():
        assert torch.equal(restored(batch), loaded(batch))
    del half[next(name for name in half if name.endswith("conv_head.weight"))]
    with pytest.raises(ValueError, match="not the weights of the encoder 'efficientnet_lite0'"):
        restore_encoder(loaded.spec, half)
