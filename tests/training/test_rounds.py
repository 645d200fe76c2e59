"""Rounds of pseudo-labels: who gets one and from whom, what is trained on, and what is left after an interruption."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from st_predict import checkpoints
from st_predict._sections import open_unlabelled
from st_predict._sections._store import cut_crops
from st_predict._training._fit import Adapter, fit
from st_predict._training._loader import CropLoader
from st_predict._training._rounds import JoinedStore, fit_rounds, split_rounds
from st_predict._training._store import CropStore
from st_predict._where import Where
from st_predict.crops import iter_batches
from st_predict.crops._augment import apply_symmetry
from st_predict.models import get_spec
from st_predict.specs import CropSpec, ModelCard
from st_predict.tl import LeakageError, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from st_predict.models import SpotModel

    Config = Callable[..., TrainConfig]
    Make = Callable[..., SpatialData]

SPEC = get_spec("m2ost")
TINY = dict(SPEC.tiny)
GENES = tuple("abcd")
CARD = ModelCard(model="m2ost", genes=GENES, crop=SPEC.crop_for(TINY), hparams=TINY)


@pytest.fixture
def plain(sdata: SpatialData) -> SpatialData:
    """A slide of 12 spots without a table, whose image is the mirrored one."""
    pixels = sdata.images["he"]["scale0"]["image"].data[:, ::-1, ::-1]
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), scale_factors=[2, 2], c_coords=["r", "g", "b"])
    return SpatialData(images={"he": image}, shapes={"spots": sdata.shapes["spots"]})


@pytest.fixture
def stores() -> dict[str, CropStore]:
    """Three sections of 12 spots with random crops; nothing was measured of the last one."""
    rng = np.random.default_rng(0)
    return {
        name: CropStore(
            crops=tuple(rng.integers(0, 256, (12, 3, lv.size, lv.size), dtype=np.uint8) for lv in CARD.crop.levels),
            target=rng.gamma(2, 1, (12, n_genes)).astype(np.float32),
            section=np.zeros(12, dtype=np.int64),
            grid=None,
            xy_um=None,
        )
        for name, n_genes in (("data", 4), ("val_data", 4), ("unlabelled", 0))
    }


# Who is labelled when


def test_each_spot_is_of_one_round():
    parts = split_rounds(23, 5, seed=0)
    assert sorted(map(len, parts)) == [4, 4, 5, 5, 5]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(23))
    assert not np.array_equal(np.concatenate(parts), np.arange(23))
    same, another = split_rounds(23, 5, seed=0), split_rounds(23, 5, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(parts, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(parts, another, strict=True))


@pytest.mark.parametrize("rounds", [0, 4, 1.5, "2", None])
def test_number_of_rounds(rounds):
    with pytest.raises(ValueError, match=f"rounds must be .*got {rounds!r}"):
        split_rounds(3, rounds, seed=0)


def test_slides_need_no_table(plain: SpatialData, tmp_path: Path):
    shapes = plain.shapes["spots"].copy()
    shapes.geometry = [p if name != "s5" else type(p)(-40, 5) for name, p in shapes.geometry.items()]
    plain.shapes["spots"] = shapes
    (section,) = open_unlabelled([plain], CARD, training=[], held_out=[], where=Where())
    assert section.rows.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]  # s5 is not in the image
    store = cut_crops([section], CARD.crop, folder=tmp_path / "crops")
    assert store.target.shape == (11, 0)
    (read,) = iter_batches(section.section.reader, section.section.plan(CARD.crop), batch_size=None)
    np.testing.assert_array_equal(store.batch(np.array([5])).crops[0], read.crops[0][[6]])
    fixed = replace(CARD, crop=CropSpec(levels=CARD.crop.levels, mpp=0.5))
    with pytest.raises(ValueError, match="Nothing says how many micrometres"):
        open_unlabelled([plain], fixed, training=[], held_out=[], where=Where())


def test_counts_are_not_looked_at(measured: SpatialData):
    measured.tables["table"].X[:] = -1
    (section,) = open_unlabelled([measured], CARD, training=[], held_out=[], where=Where())
    assert section.target.shape == (12, 0)


def test_spots_of_validation_are_never_labelled(measured: SpatialData, plain: SpatialData, other: Make):
    def opened(slide: SpatialData, *allowed: str) -> int:
        return len(
            open_unlabelled([slide], CARD, training=[], held_out=[measured], where=Where(), allow_shared=allowed)
        )

    elsewhere = SpatialData(images=dict(plain.images), shapes=dict(plain.shapes), tables=dict(other("P1").tables))
    with pytest.raises(LeakageError, match="same section is in validation and to be labelled"):
        opened(measured)
    with pytest.raises(LeakageError, match="same section"):
        opened(elsewhere, "P1")
    elsewhere.tables["table"].obs["section"] = "S2"
    with pytest.raises(LeakageError, match=r"slide 0 shows patients \['P1'\] of validation"):
        opened(elsewhere)
    assert opened(elsewhere, "P1") == 1
    dense = SpatialData(images=dict(measured.images), shapes=dict(plain.shapes))
    with pytest.raises(LeakageError, match="slide 0 shows an image of validation"):
        opened(dense)
    assert opened(plain) == 1


# What is trained on


def test_rows_of_both_stores_in_any_order(stores: dict[str, CropStore]):
    data, unlabelled = stores["data"], stores["unlabelled"]
    labels = np.arange(12, dtype=np.float32).reshape(3, 4)
    store = JoinedStore(measured=data, unlabelled=unlabelled, rows=np.array([7, 2, 9]), labels=labels)
    assert len(store) == 15
    rows = np.array([13, 0, 14, 11, 12, 3])
    batch = store.batch(rows)
    sources = [(unlabelled, 2), (data, 0), (unlabelled, 9), (data, 11), (unlabelled, 7), (data, 3)]
    for level, crops in enumerate(batch.crops):
        expected = np.stack([source.crops[level][row] for source, row in sources])
        np.testing.assert_array_equal(crops, expected)
    np.testing.assert_array_equal(batch.target, np.stack([store.target[row] for row in rows]))
    np.testing.assert_array_equal(store.target, np.concatenate([data.target, labels]))
    np.testing.assert_array_equal(batch.index, rows)
    assert batch.grid is None
    assert batch.xy_um is None


def test_what_is_known_of_both_is_kept(stores: dict[str, CropStore]):
    numbers = np.arange(24).reshape(12, 2)
    data, unlabelled = (
        replace(stores[name], crops=(), grid=numbers + i, features=numbers.astype(np.float32) * i, xy_um=known)
        for i, (name, known) in enumerate([("data", np.ones((12, 2), np.float32)), ("unlabelled", None)])
    )
    store = JoinedStore(measured=data, unlabelled=unlabelled, rows=np.array([5]), labels=np.ones((1, 4), np.float32))
    batch = store.batch(np.array([12, 4]))
    assert batch.crops == ()
    assert batch.grid.tolist() == [[11, 12], [8, 9]]
    assert batch.features.tolist() == [[10, 11], [0, 0]]
    assert batch.xy_um is None


class Trainer:
    """Stands in for :func:`fit`: another random network each time, with the scores that it is to have."""

    def __init__(self, scores: list[float], *, fails_at: int = -1) -> None:
        self.scores, self.fails_at = scores, fails_at
        self.stores: list[JoinedStore] = []
        self.networks: list[SpotModel] = []
        self.resumed: list[bool] = []

    def __call__(self, card: ModelCard, data: Any, *_: Any, folder: Path, resume: bool, **__: Any) -> Any:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").touch()
        self.resumed.append(resume)
        number = len(self.stores)
        if number == self.fails_at:
            raise InterruptedError
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(len(data))
            network = checkpoints.build(card)
        self.stores.append(data)
        self.networks.append(network)
        scores = [("val_pearson", 0.0, self.scores[number]), ("val_loss", 9.0, self.scores[number])]
        return network.eval(), [{"epoch": e, **{name: values[e] for name, *values in scores}} for e in (0, 1)]


@pytest.fixture
def run(
    stores: dict[str, CropStore], quick: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[SpotModel, list[dict[str, float]]]]:
    """Runs three rounds with a trainer, in ``out``."""
    (tmp_path / "out").mkdir()

    def run(trainer: Callable[..., Any], *, validate: bool = False, resume: bool = False, **options: Any) -> Any:
        monkeypatch.setattr("st_predict._training._rounds.fit", trainer)
        val_data = stores["val_data"] if validate else None
        where = {"folder": tmp_path / "out", "config": quick(**options), "resume": resume, "rounds": 3}
        return fit_rounds(CARD, stores["data"], val_data, stores["unlabelled"], **where)

    return run


def same(one: SpotModel, other: SpotModel) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("symmetries", [1, 8])
@torch.no_grad()
def test_labels_are_predictions_of_the_round_before(
    run: Any, stores: dict[str, CropStore], monkeypatch: pytest.MonkeyPatch, symmetries: int
):
    monkeypatch.setattr("st_predict._training._rounds.get_spec", lambda _: replace(SPEC, symmetries=symmetries))
    trainer, before = Trainer([0.0] * 4), stores["data"].target.copy()
    network, _ = run(trainer)
    assert same(network, trainer.networks[-1])
    assert [len(store) for store in trainer.stores] == [12, 16, 20, 24]
    last = trainer.stores[-1]
    assert sorted(last.rows) == list(range(12))
    for i, (store, teacher) in enumerate(zip(trainer.stores[1:], trainer.networks, strict=False)):
        np.testing.assert_array_equal(store.target[:12], before)
        np.testing.assert_array_equal(store.target[12:], last.target[12 : len(store)])  # those of each round stay
        new = slice(4 * i, 4 * i + 4)
        batch = stores["unlabelled"].batch(store.rows[new])
        views = [replace(batch, crops=tuple(apply_symmetry(c, s) for c in batch.crops)) for s in range(symmetries)]
        expected = torch.stack([teacher(view) for view in views]).mean(0)
        np.testing.assert_allclose(store.labels[new], expected, rtol=1e-4, atol=1e-5)
    labels = last.labels.reshape(3, 4, 4)
    assert len(np.unique(labels.round(4), axis=0)) == 3


@pytest.mark.parametrize(("monitor", "best"), [("pearson", 1), ("loss", 2)])
def test_validation_chooses_the_round(run: Any, monitor: str, best: int):
    trainer, state = Trainer([0.3, 0.5, 0.2, 0.4]), torch.get_rng_state()
    network, history = run(trainer, validate=True, monitor=monitor)
    assert same(network, trainer.networks[best])
    assert not network.training
    assert [(row["round"], row["epoch"]) for row in history] == [(r, e) for r in range(4) for e in (0, 1)]
    assert torch.equal(torch.get_rng_state(), state)


def test_rounds_that_are_finished_are_not_trained_again(run: Any, tmp_path: Path):
    whole = Trainer([0.3, 0.5, 0.2, 0.4], fails_at=2)
    with pytest.raises(InterruptedError):
        run(whole, validate=True)
    assert sorted(path.name for path in (tmp_path / "out" / "rounds").iterdir()) == [
        "0.safetensors",
        "1.safetensors",
        "2",  # begun
    ]
    state = torch.get_rng_state()
    rest = Trainer([0.2, 0.4])
    network, history = run(rest, validate=True, resume=True)
    assert rest.resumed == [True, False]
    assert [len(store) for store in rest.stores] == [20, 24]
    assert [row["val_pearson"] for row in history[1::2]] == [0.3, 0.5, 0.2, 0.4]
    assert same(network, whole.networks[1])
    expected = whole.stores[1].labels
    np.testing.assert_array_equal(rest.stores[0].labels[: len(expected)], expected)
    assert torch.equal(torch.get_rng_state(), state)
    nothing = Trainer([])
    again, same_history = run(nothing, validate=True, resume=True)
    assert nothing.stores == []
    assert same_history == history
    assert same(again, network)


def test_rounds_are_counted_before_anything_is_trained(stores: dict[str, CropStore], quick: Config, tmp_path: Path):
    with pytest.raises(ValueError, match="number of unlabelled spots, 12, got 13"):
        fit_rounds(
            CARD,
            stores["data"],
            None,
            stores["unlabelled"],
            config=quick(),
            folder=tmp_path / "out",
            resume=False,
            rounds=13,
        )
    assert not (tmp_path / "out").exists()


# The whole of it


class Stop(Exception):  # noqa: N818  # not an error of ours
    """Something breaks."""


@pytest.mark.slow
def test_an_interrupted_training_ends_as_a_whole_one(
    stores: dict[str, CropStore], quick: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    config = quick()
    arguments = (CARD, stores["data"], stores["val_data"], stores["unlabelled"])
    for name in ("whole", "out", "plain"):
        (tmp_path / name).mkdir()
    state = torch.get_rng_state()
    whole, history = fit_rounds(*arguments, config=config, folder=tmp_path / "whole", resume=False, rounds=1)
    assert torch.equal(torch.get_rng_state(), state)
    step = Adapter.training_step

    def stopping(self: Adapter, *args: Any) -> Any:
        if len(self.loader.store) > 12 and self.current_epoch == 1:
            raise Stop
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Adapter, "training_step", stopping)
        with pytest.raises(Stop):
            fit_rounds(*arguments, config=config, folder=tmp_path / "out", resume=False, rounds=1)
    resumed, again = fit_rounds(*arguments, config=config, folder=tmp_path / "out", resume=True, rounds=1)
    assert again == history
    assert same(resumed, whole)
    assert [(row["round"], row["epoch"]) for row in history] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    files = sorted(path.name for path in (tmp_path / "out" / "rounds").iterdir())
    assert files == ["0.safetensors", "1.safetensors"]
    before, _ = checkpoints.load(tmp_path / "out" / "rounds" / "0.safetensors")
    alone, rows = fit(*arguments[:3], config=config, folder=tmp_path / "plain", resume=False)
    assert same(alone, before)
    assert [{"round": 0, **row} for row in rows] == history[:2]


def test_a_round_of_another_training_is_refused(stores: dict[str, CropStore], quick: Config, tmp_path: Path):
    (tmp_path / "out").mkdir()
    where = {"config": quick(epochs=1), "folder": tmp_path / "out", "rounds": 1}
    fit_rounds(CARD, stores["data"], None, stores["unlabelled"], resume=False, **where)
    other = replace(CARD, hparams={**CARD.hparams, "depth": 2})
    with pytest.raises(ValueError, match=r"0\.safetensors' belongs to another training\. Start anew in another folder"):
        fit_rounds(other, stores["data"], None, stores["unlabelled"], resume=True, **where)


def test_works_without_validation(stores: dict[str, CropStore], quick: Config, tmp_path: Path):
    (tmp_path / "out").mkdir()
    where = {"config": quick(epochs=1), "folder": tmp_path / "out", "resume": False, "rounds": 1}
    network, history = fit_rounds(CARD, stores["data"], None, stores["unlabelled"], **where)
    last, card = checkpoints.load(tmp_path / "out" / "rounds" / "1.safetensors")
    assert same(network, last)
    assert card.genes == GENES
    assert [row["round"] for row in history] == [0, 1]
    (batch,) = CropLoader(stores["unlabelled"], 12)
    assert network(batch).shape == (12, 4)
