"""The runner against the plain call of a network, and what it does when memory ends."""

from __future__ import annotations

import importlib.util
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from st_predict import checkpoints
from st_predict._runtime import _inference as module
from st_predict._runtime._inference import Inference, Moments
from st_predict.checkpoints import find_weights
from st_predict.crops import Batch
from st_predict.datasets import simulate
from st_predict.models import SpotModel

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Parts are worked off in order by one thread, unless a test asks for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Means(SpotModel):
    """Predicts from the mean colours of each level, and notes what it was given."""

    def __init__(self, *, fits: int = 10**9, error: type[Exception] = RuntimeError, text: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.fits, self.error, self.text = fits, error, text
        self.seen: list[int] = []

    def forward(self, batch: Batch) -> torch.Tensor:
        self.seen.append(len(batch))
        if len(batch) > self.fits:
            raise self.error(self.text)
        assert not self.training
        means = torch.cat([self.pixels(crop).mean((2, 3)) for crop in batch.crops], 1)
        scale = 1 if batch.grid is None else batch.grid.sum(1, keepdim=True)
        return self.layer(means) * scale


def make_batch(n: int, *, grid: bool = True) -> Batch:
    g = torch.Generator().manual_seed(0)
    crops = tuple(torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=g) for _ in range(2))
    return Batch(crops=crops, index=torch.arange(n), grid=torch.arange(2 * n).reshape(n, 2) if grid else None)


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize(("n", "pieces"), [(0, [0]), (1, [1]), (3, [3]), (7, [3, 3, 1])])
def test_pieces_give_what_the_whole_gives(n, pieces, grid):
    network, batch = Means(), make_batch(n, grid=grid)
    ours = Inference(network, device=CPU, precision="float32", working_batch=3)(batch)
    assert network.seen == pieces
    assert ours.dtype == torch.float32 and ours.shape == (n, 4) and not ours.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(ours, network(batch))


@pytest.mark.parametrize("fits", [100, 2])
def test_several_threads_give_the_same_in_order(fits):
    torch.set_num_threads(3)
    network, batch = Means(fits=fits, error=MemoryError), make_batch(40)
    ours = Inference(network, device=CPU, precision="float32", working_batch=3)(batch)
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3
    network.fits = 100
    with torch.no_grad():
        torch.testing.assert_close(ours, network(batch))


class Convolved(SpotModel):
    """Predicts by a convolution and a mean, whose last bits depend on how pixels lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 16, 5, padding=2)

    def forward(self, batch: Batch) -> torch.Tensor:
        return torch.cat([self.layer(self.pixels(crop)).relu().mean((2, 3)) for crop in batch.crops], 1)


@pytest.mark.parametrize("symmetries", [1, 8])
def test_the_layout_of_pixels_in_memory_changes_no_bit(symmetries):
    g = torch.Generator().manual_seed(0)
    crops = tuple(torch.randint(0, 256, (5, 3, 61, 61), dtype=torch.uint8, generator=g) for _ in range(2))
    batch = Batch(crops=crops, index=torch.arange(5))
    interleaved = Batch(
        crops=tuple(crop.contiguous(memory_format=torch.channels_last) for crop in crops), index=batch.index
    )
    inference = Inference(Convolved(), device=CPU, precision="float32", working_batch=3, symmetries=symmetries)
    assert torch.equal(inference(batch), inference(interleaved))


def test_section_is_never_cut():
    network = Means()
    Inference(network, device=CPU, working_batch=3, scope="section")(make_batch(50))
    assert network.seen == [50]


# Every way in which torch and Python say that memory ended.
OUT_OF_MEMORY = [
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB"),
    (RuntimeError, "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    (RuntimeError, "MPS backend out of memory"),
    (MemoryError, ""),
]


@pytest.mark.parametrize(("error", "text"), OUT_OF_MEMORY)
def test_halves_the_working_batch_until_it_fits(error, text, caplog):
    network, batch = Means(fits=2, error=error, text=text), make_batch(11)
    inference = Inference(network, device=CPU, precision="float32", working_batch=9)
    with caplog.at_level(logging.WARNING):
        ours = inference(batch)
    assert network.seen == [9, 4, 2, 2, 2, 2, 2, 1]
    assert inference.working_batch == 2  # kept for the next batch
    assert [r.getMessage() for r in caplog.records] == [
        "Out of memory on cpu with 9 spots at a time; continuing with 4.",
        "Out of memory on cpu with 4 spots at a time; continuing with 2.",
    ]
    network.fits = 100
    with torch.no_grad():
        torch.testing.assert_close(ours, network(batch))


def test_really_out_of_memory():
    class Greedy(Means):
        def forward(self, batch: Batch) -> torch.Tensor:
            self.seen.append(len(batch))
            if len(batch) > 1:
                torch.empty(2**60, dtype=torch.uint8)
            return torch.zeros(len(batch), 4)

    network = Greedy()
    Inference(network, device=CPU, working_batch=2)(make_batch(2))
    assert network.seen == [2, 1, 1]


def test_a_single_spot_that_does_not_fit():
    network = Means(fits=0, error=MemoryError)
    with pytest.raises(MemoryError, match="Out of memory on cpu with a single spot"):
        Inference(network, device=CPU, working_batch=2)(make_batch(2))


def test_a_section_that_does_not_fit():
    network = Means(fits=1, error=MemoryError)
    with pytest.raises(MemoryError, match="reads a section of 5 spots as a whole"):
        Inference(network, device=CPU, scope="section")(make_batch(5))


def test_other_errors_are_not_taken_for_lack_of_memory():
    network = Means(fits=0, text="mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Inference(network, device=CPU)(make_batch(2))
    assert network.seen == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "precision must be 'auto' or one of"),
        ({"working_batch": 0}, "working_batch must be at least 1, got 0"),
        ({"working_batch": "8"}, "working_batch must be .*got '8'"),
        ({"symmetries": [8]}, r"symmetries must be 1 or 8, got \[8\]"),
        ({"symmetries": True}, "symmetries must be 1 or 8, got True"),
    ],
)
def test_unfit_options(options, message):
    with pytest.raises(ValueError, match=message):
        Inference(Means(), device=CPU, **options)


torch_2_9 = pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"),
    reason="older versions of torch have no setting for the products of oneDNN",
)


def settings() -> list[object]:
    return [
        torch.get_float32_matmul_precision(),
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
        torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    ]


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Settings that the network sees."""
    seen: list[object] = []
    plain = Means.forward

    def forward(self: Means, batch: Batch) -> torch.Tensor:
        seen.append((torch.backends.mkldnn.matmul.fp32_precision, torch.is_autocast_enabled("cpu")))
        return plain(self, batch)

    monkeypatch.setattr(Means, "forward", forward)
    return seen


@torch_2_9
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("fits", [100, 0])
def test_settings_are_as_before(monkeypatch, spied, precision, fits):
    monkeypatch.setattr(module, "_fast_path_is_exact", lambda: True)
    before = settings()
    inference = Inference(Means(fits=fits, error=KeyError), device=CPU, precision=precision)
    if fits:
        inference(make_batch(2))
    else:
        with pytest.raises(KeyError):
            inference(make_batch(2))
    assert spied == [("bf16", False) if precision == "float32" else (before[1], True)]
    assert settings() == before


@torch_2_9
def test_a_call_that_ends_leaves_the_setting_to_those_that_still_compute(monkeypatch):
    monkeypatch.setattr(module, "_fast_path_is_exact", lambda: True)
    backend = torch.backends.mkldnn.matmul
    before, first_is_in, second_is_in = backend.fp32_precision, Event(), Event()

    def first():
        with module._exact_products(CPU, "float32"):
            first_is_in.set()
            second_is_in.wait(10)

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(first)
        assert first_is_in.wait(10)
        with module._exact_products(CPU, "float32"):
            second_is_in.set()
            ended.result(10)
            assert backend.fp32_precision == "bf16"
    assert backend.fp32_precision == before


@torch_2_9
def test_fast_path_is_left_alone_where_it_rounds(monkeypatch, spied):
    monkeypatch.setattr(module, "_fast_path_is_exact", lambda: False)
    before = torch.backends.mkldnn.matmul.fp32_precision
    Inference(Means(), device=CPU, precision="float32")(make_batch(2))
    assert spied == [(before, False)]


def test_rounding_is_seen(monkeypatch):
    """A processor whose fast path rounds: here every product does."""
    product = torch.Tensor.__matmul__
    rounds = lambda a, b: product(a.bfloat16(), b.bfloat16()).float() if a.dtype == torch.float32 else product(a, b)
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounds)
    assert not module._fast_path_is_exact.__wrapped__()


def test_padding_repeats_the_last_spot():
    batch = make_batch(3)
    padded = module._pad(batch, 5)
    assert padded.index.tolist() == [0, 1, 2, 2, 2]
    assert torch.equal(padded.crops[1][3], batch.crops[1][2])
    assert padded.target is None


# The released weights on crops that look like tissue.


@pytest.fixture(scope="module")
def tissue() -> Batch:
    (section,) = simulate(1, 1, shape=(1200, 1200)).sections.values()
    (image,) = section.images.values()
    pixels = np.asarray(image["scale0"]["image"] if "scale0" in image else image)
    levels = []
    for width in (1, 2, 4):
        half = 112 * width
        cut = [pixels[:, y - half : y + half, x - half : x + half] for y, x in [(500, 460), (600, 700), (740, 520)]]
        levels.append(np.stack(cut).reshape(3, 3, 224, width, 224, width).mean((3, 5)).astype(np.uint8))
    return Batch(crops=tuple(map(torch.from_numpy, levels)), index=torch.arange(3))


@pytest.fixture(scope="module")
def released() -> SpotModel:
    return checkpoints.load(find_weights("m2ost@1"))[0]


def published(network: SpotModel) -> nn.Module:
    """The plain computation that the benchmarks time."""
    path = Path(__file__).parents[2] / "benchmarks" / "_published.py"
    spec = importlib.util.spec_from_file_location("_published", path)
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    return plain.PublishedM2OST(network)


def test_float32_is_exact(released, tissue):
    with torch.no_grad():
        expected = published(released).double()(*(crop.double() / 255 for crop in tissue.crops))
    ours = Inference(released, device=CPU, precision="float32", working_batch=2)(tissue)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours.double(), expected, atol=1e-4, rtol=0)


def test_bfloat16_gives_the_same_profile(released, tissue):
    full = Inference(released, device=CPU, precision="float32")(tissue)
    low = Inference(released, device=CPU, precision="bfloat16")(tissue)
    assert low.dtype == torch.float32
    assert 0 < (low - full).abs().max() < 0.05
    for spot in torch.stack([low, full], 1):
        assert np.corrcoef(spot.numpy())[0, 1] > 0.9999


def test_layout_in_memory_does_not_matter(released, tissue):
    inference = Inference(released, device=CPU, precision="float32")
    crops = tuple(crop.contiguous(memory_format=torch.channels_last) for crop in tissue.crops)
    assert crops[0].stride() != tissue.crops[0].stride()
    torch.testing.assert_close(inference(Batch(crops=crops, index=tissue.index)), inference(tissue))


@pytest.mark.parametrize("sizes", [[], [4], [4, 3, 1]])
def test_over_batches_each_prediction_comes_with_its_index(sizes):
    inference = Inference(Means(), device=CPU, precision="float32")
    whole = make_batch(sum(sizes))
    rows = torch.arange(sum(sizes)).flip(0).split(sizes)
    batches = [Batch(crops=tuple(crop[r] for crop in whole.crops), index=r, grid=whole.grid[r]) for r in rows]
    found = list(inference.over(iter(batches)))
    assert [index.tolist() for index, _ in found] == [r.tolist() for r in rows]
    for index, prediction in found:
        torch.testing.assert_close(prediction, inference(whole)[index])


def test_over_batches_one_is_read_ahead_of_what_is_given_out():
    inference, asked = Inference(Means(), device=CPU), []

    def batches() -> Iterator[Batch]:
        for i in range(3):
            asked.append(i)
            yield make_batch(2)

    seen = [len(asked) for _ in inference.over(batches())]
    assert seen == [2, 3, 3]


class Corner(SpotModel):
    """Predicts the grey value of the upper left pixel, which every symmetry moves elsewhere."""

    def forward(self, batch: Batch) -> torch.Tensor:
        return torch.stack([crop[:, :, 0, 0].float().mean(1) for crop in batch.crops], 1)


def test_symmetries_are_averaged():
    batch = make_batch(7)
    ours = Inference(Corner(), device=CPU, precision="float32", working_batch=3, symmetries=8)(batch)
    corners = [crop[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean((1, 2)) for crop in batch.crops]
    torch.testing.assert_close(ours, torch.stack(corners, 1))  # each corner comes up twice


def test_other_numbers_of_symmetries_are_refused():
    with pytest.raises(ValueError, match="symmetries must be 1 or 8, got 4"):
        Inference(Corner(), device=CPU, symmetries=4)


class Drawn(Means):
    """Every sample of a spot is its seed, plus the mean of its crop."""

    def sample(self, batch: Batch, *, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed((seed + int(batch.index[0])) % 2**63)
        return self(batch) + torch.randn(len(batch), 4, generator=generator)


def test_moments_of_samples_are_those_of_all_at_once():
    batch = make_batch(40)
    inference = Inference(Drawn(), device=CPU, precision="float32", working_batch=7)
    ((index, mean, squares),) = inference.draws_over([batch], n_samples=50, seed=3)
    seeds = np.random.SeedSequence(3).generate_state(50, np.uint64) >> 1
    draws = torch.stack([inference(batch, seed=seed) for seed in seeds.tolist()])
    assert torch.equal(index, batch.index)
    torch.testing.assert_close(mean, draws.mean(0))
    torch.testing.assert_close((squares / 49).sqrt(), draws.std(0))
    noise = draws[0] - inference(batch)
    assert len(torch.unique(noise)) == noise.numel()  # pieces of a batch are not drawn alike


def test_moments_of_parts_are_those_of_the_whole():
    draws = np.random.default_rng(0).normal(5, 2, size=(9, 3, 2))
    moments = Moments()
    moments.add(draws[0])
    for part in (draws[1:4], draws[4:9]):
        mean = part.mean(0)
        moments.add(mean, ((part - mean) ** 2).sum(0), len(part))
    assert moments.n == 9
    np.testing.assert_allclose(moments.mean, draws.mean(0))
    np.testing.assert_allclose(moments.squares / 8, draws.var(0, ddof=1))
