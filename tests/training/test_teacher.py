"""Distillation: what a network learns from is mixed with what a teacher says of sections that it has not seen."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

import st_predict as stp
from st_predict._training import CropStore, teach
from st_predict.models import get_spec
from st_predict.specs import CropSpec, LevelSpec, ModelCard

TEACHER = {"encoder": "rgb"}
TINY = dict(get_spec("m2ost").tiny)


@pytest.fixture
def store():
    """Three sections whose two genes follow features, with noise."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(90, 4)).astype(np.float32)
    target = features @ rng.normal(size=(4, 2)) + rng.normal(size=(90, 2))
    return CropStore(
        crops=(),
        target=target.astype(np.float32),
        section=np.repeat([0, 1, 2], 30),
        grid=None,
        xy_um=None,
        features=features,
        counts=np.arange(180, dtype=np.float32).reshape(90, 2),
    )


@pytest.fixture
def card():
    hparams = get_spec("ridge").complete({**get_spec("ridge").hparams, "n_components": 4, "alpha": 1.0})
    return ModelCard(model="ridge", genes=("a", "b"), crop=CropSpec(levels=(LevelSpec(size=8),)), hparams=hparams)


def test_each_section_is_predicted_from_the_others(store, card):
    expected = np.empty_like(store.target)
    for section in range(3):
        own = store.section == section
        x = store.features[~own]
        mean, std = x.mean(0), x.std(0)
        fitted = Ridge(alpha=1.0).fit((x - mean) / std, store.target[~own])
        expected[own] = fitted.predict((store.features[own] - mean) / std)
    found = teach(store, store, card, share=1.0).target
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9999


def test_the_share_mixes_linearly_and_leaves_the_rest(store, card):
    whole, half, none = (teach(store, store, card, share=share) for share in (1.0, 0.25, 0.0))
    np.testing.assert_allclose(half.target, 0.75 * store.target + 0.25 * whole.target, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(none.target, store.target)
    assert whole.features is store.features
    assert whole.target.dtype == np.float32


def test_one_section_has_no_teacher(store, card):
    one = store.take(np.arange(30))
    with pytest.raises(ValueError, match="only one section"):
        teach(one, one, card, share=0.5)


def test_some_spots_of_a_store(store):
    rows = np.array([80, 3])
    taken = store.take(rows)
    for name in ("target", "section", "features", "counts"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(store, name)[rows])
    assert len(taken) == 2


@pytest.fixture(scope="module")
def patients():
    return list(stp.datasets.simulate(2, 1, n_genes=6, shape=(720, 880), mpp=1.2, seed=0).sections.values())


@pytest.mark.slow
def test_a_network_with_a_teacher(patients, tmp_path):
    panel = list(patients[0]["table"].var_names)[:4]

    def train(out, **config):
        settings = {"epochs": 2, "batch_size": 6, "device": "cpu", "precision": "float32", "lr": 1e-2, **config}
        return stp.tl.train(patients, "m2ost", panel=panel, out=tmp_path / out, hparams=TINY, mpp=1.2, config=settings)

    plain, taught, again = train("a"), train("b", teacher=TEACHER), train("c", teacher=TEACHER)
    assert taught.card.training["config"]["teacher"] == TEACHER
    assert plain.card.training["config"]["teacher"] is None
    assert taught.history["train_loss"].tolist() == again.history["train_loss"].tolist()
    assert taught.history["train_loss"].tolist() != plain.history["train_loss"].tolist()
    assert taught.card.target == plain.card.target
    with pytest.raises(ValueError, match=r"only one section.*sdatas=.*leave out 'teacher' in config="):
        stp.tl.train(
            patients[0], "m2ost", panel=panel, out=tmp_path / "d", hparams=TINY, mpp=1.2, config={"teacher": TEACHER}
        )


def test_a_teacher_given_as_tuples_and_arrays_is_resumed(patients, tmp_path):
    panel = list(patients[0]["table"].var_names)[:4]
    config = {
        "batch_size": 6,
        "device": "cpu",
        "precision": "float32",
        "teacher": {**TEACHER, "alpha": np.float64(2.0)},
    }

    def train(epochs, **options):
        return stp.tl.train(
            patients,
            "m2ost",
            panel=panel,
            out=tmp_path / "run",
            hparams=TINY,
            mpp=1.2,
            config={**config, "epochs": epochs},
            **options,
        )

    train(1).checkpoint.unlink()
    assert len(train(2, resume=True).history) == 2


@pytest.mark.parametrize(
    ("model", "config", "words"),
    [
        ("m2ost", {"teacher": {"rank_of": 8}}, "no hyper-parameters.*rank_of"),
        ("m2ost", {"teacher": TEACHER, "teacher_share": 1.5}, "teacher_share"),
        ("m2ost", {"teacher": 3}, "teacher"),
        ("mean", {"teacher": TEACHER}, "closed form.*Leave out 'teacher' in config="),
    ],
)
def test_unfit_teachers_are_refused_before_any_work(measured, tmp_path, model, config, words):
    hparams = TINY if model == "m2ost" else None
    with pytest.raises(ValueError, match=words):
        stp.tl.train([measured], model, panel=list("abcd"), out=tmp_path / "run", hparams=hparams, config=config)
    assert not (tmp_path / "run").exists()
