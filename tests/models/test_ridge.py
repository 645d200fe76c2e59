"""Ridge regression, against that of scikit-learn on its principal components."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from st_predict.crops import Batch
from st_predict.models import get_spec
from st_predict.models.ridge import Ridge, best_penalty

if TYPE_CHECKING:
    from collections.abc import Callable

N, D, G = 60, 12, 3


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) * 10 ** rng.uniform(-2, 2, D) + 1000 * rng.normal(size=D)
    y = (x - x.mean(0)) / x.std(0) @ rng.normal(size=(D, G)) + 3 * rng.normal(size=(N, G)) + [5, -70, 0.1]
    return x.astype(np.float32), y.astype(np.float32)


def batches(x: np.ndarray, y: np.ndarray, size: int) -> list[Batch]:
    parts = [slice(start, start + size) for start in range(0, len(x), size)]
    return [
        Batch(crops=(), index=torch.arange(len(x))[p], features=torch.tensor(x[p]), target=torch.tensor(y[p]))
        for p in parts
    ]


def fit(x: np.ndarray, y: np.ndarray, size: int = 7, **hparams: object) -> np.ndarray:
    network = Ridge(y.shape[1], **hparams)
    network.finalize(batches(x, y, size))
    return network(batches(x, y, len(x))[0]).numpy()


@pytest.mark.parametrize(("n_components", "alpha"), [(256, 3.0), (5, 3.0), (5, 0.0), (4, "hest")])
def test_is_that_of_sklearn(data, n_components, alpha):
    x, y = data
    k = min(n_components, D)
    penalty = 100 / (k * G) if alpha == "hest" else alpha
    reference = make_pipeline(StandardScaler(), PCA(k, svd_solver="full"), SklearnRidge(penalty))
    expected = reference.fit(x.astype(np.float64), y.astype(np.float64)).predict(x.astype(np.float64))
    np.testing.assert_allclose(fit(x, y, n_components=n_components, alpha=alpha), expected, atol=2e-3)


def test_parts_of_a_single_section_are_left_out(data):
    x, y = data
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    errors = []
    for penalty in np.logspace(-6, 4, 41):
        error = 0
        for rest, out in KFold(5).split(wide_x):
            scores = make_pipeline(StandardScaler(), PCA(6, svd_solver="full")).fit(wide_x[rest])
            strength = penalty * (scores.transform(wide_x[rest]) ** 2).sum(0).mean()
            ridge = SklearnRidge(strength).fit(scores.transform(wide_x[rest]), wide_y[rest])
            error += ((ridge.predict(scores.transform(wide_x[out])) - wide_y[out]) ** 2).sum()
        errors.append(error)
    best = np.logspace(-6, 4, 41)[np.argmin(errors)]
    assert 1e-6 < best < 1e4
    scores = make_pipeline(StandardScaler(), PCA(6, svd_solver="full")).fit_transform(wide_x)
    strength = float(best * (scores**2).sum(0).mean())
    np.testing.assert_allclose(fit(x, y, n_components=6), fit(x, y, n_components=6, alpha=strength), atol=1e-4)


def test_sections_are_left_out_to_choose_the_penalty(data):
    x, y = data
    section = np.arange(N) // 20
    y = y + np.random.default_rng(2).normal(size=(3, G))[section].astype(np.float32) * 20
    network = Ridge(G, n_components=8)
    network.finalize([replace(b, section=torch.tensor(section)[b.index]) for b in batches(x, y, 7)])
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)

    def reference(rows, penalty):
        scores = make_pipeline(StandardScaler(), PCA(8, svd_solver="full")).fit(wide_x[rows])
        strength = penalty * (scores.transform(wide_x[rows]) ** 2).sum(0).mean()
        ridge = SklearnRidge(strength).fit(scores.transform(wide_x[rows]), wide_y[rows])
        return lambda some: ridge.predict(scores.transform(some))

    def error(penalty):
        parts = [(section != s, section == s) for s in range(3)]
        return sum(((reference(rest, penalty)(wide_x[out]) - wide_y[out]) ** 2).sum() for rest, out in parts)

    grid = np.logspace(-6, 4, 41)
    best = grid[np.argmin([error(penalty) for penalty in grid])]
    assert grid[0] < best < grid[-1]
    expected = reference(slice(None), best)(wide_x)
    np.testing.assert_allclose(network(batches(x, y, N)[0]).numpy(), expected, atol=2e-3)
    assert np.abs(fit(x, y, n_components=8) - expected).max() > 0.1  # parts of the spots give another penalty


@pytest.fixture
def many_genes() -> tuple[np.ndarray, np.ndarray]:
    """Thirty genes in three programmes, and noise."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(N, D))
    y = x @ rng.normal(size=(D, 3)) @ rng.normal(size=(3, 30)) + rng.normal(size=(N, 30)) + 5 * rng.normal(size=30)
    return x.astype(np.float32), y.astype(np.float32)


def reduced(
    x: np.ndarray, y: np.ndarray, *, rank: int, penalty: float, n_components: int = D
) -> Callable[..., np.ndarray]:
    """Ridge regression on principal components of features, of principal components of targets, by scikit-learn."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    regression = make_pipeline(StandardScaler(), PCA(n_components, svd_solver="full"), SklearnRidge(penalty))
    model = TransformedTargetRegressor(regression, transformer=PCA(rank, svd_solver="full"), check_inverse=False)
    return lambda some: model.fit(x, y).predict(some.astype(np.float64))


@pytest.mark.parametrize(("rank", "alpha"), [(1, 3.0), (8, 3.0), (8, 0.0), (29, 1.0)])
def test_reduced_rank_is_that_of_sklearn(many_genes, rank, alpha):
    x, y = many_genes
    expected = reduced(x, y, rank=rank, penalty=alpha)(x)
    np.testing.assert_allclose(fit(x, y, rank=rank, alpha=alpha), expected, atol=1e-4)
    assert np.abs(fit(x, y, alpha=alpha) - expected).max() > 1e-3


def test_predictions_lie_in_an_affine_space_of_that_dimension(many_genes):
    x, y = many_genes
    network = Ridge(30, rank=8, alpha=0.1)
    network.finalize(batches(x, y, N))
    far = 100 * np.random.default_rng(4).normal(size=(50, D)).astype(np.float32)
    predicted = network(batches(far, np.zeros((50, 30), np.float32), 50)[0]).double().numpy()
    centre = y.astype(np.float64).mean(0)
    spread = np.linalg.svd(predicted - centre, compute_uv=False)
    assert (spread[8:] < 1e-5 * spread[0]).all()
    assert spread[7] > 1e-3 * spread[0]
    components = PCA(8, svd_solver="full").fit(y.astype(np.float64)).components_
    np.testing.assert_allclose((predicted - centre) @ components.T @ components, predicted - centre, atol=2e-2)


@pytest.mark.parametrize("rank", [30, 500])
@pytest.mark.parametrize("alpha", [2.0, "cv"])
def test_a_rank_of_all_genes_is_full_rank(many_genes, rank, alpha):
    np.testing.assert_allclose(fit(*many_genes, rank=rank, alpha=alpha), fit(*many_genes, alpha=alpha), atol=1e-5)


def test_a_rank_of_all_spots_is_full_rank(many_genes):
    x, y = many_genes
    few = fit(x[:9], y[:9], rank=8, alpha=2.0)  # nine spots about their mean span eight dimensions
    np.testing.assert_allclose(few, fit(x[:9], y[:9], alpha=2.0), atol=1e-4)


def test_components_of_targets_do_not_see_the_part_that_is_left_out(many_genes):
    x, y = many_genes
    section = np.arange(N) // 20
    y[section == 2, :4] += 300 * np.random.default_rng(5).normal(size=(20, 4)).astype(np.float32)  # of one section only
    y_wide = y.astype(np.float64)

    def error(penalty, targets):
        total = 0.0
        for out in range(3):
            rest = section != out
            scores = make_pipeline(StandardScaler(), PCA(D, svd_solver="full")).fit_transform(
                x[rest].astype(np.float64)
            )
            strength = penalty * (scores**2).sum(0).mean()
            predicted = reduced(x[rest], targets[rest], rank=2, penalty=strength)(x[~rest])
            total += ((predicted - y_wide[~rest]) ** 2).sum()
        return total

    grid = np.logspace(-6, 4, 41)
    whole = PCA(2, svd_solver="full").fit(y_wide)
    leaking = whole.inverse_transform(whole.transform(y_wide))
    best, leaked = (grid[np.argmin([error(penalty, t) for penalty in grid])] for t in (y_wide, leaking))
    wide_x, arguments = x.astype(np.float64), {"n_components": D, "rank": 2}
    assert best_penalty(wide_x, y_wide, section, **arguments) == pytest.approx(best)
    assert leaked != best


def test_batches_make_no_difference(data):
    np.testing.assert_allclose(fit(*data, size=7), fit(*data, size=N), atol=1e-4)


def test_features_that_do_not_vary_count_for_nothing(data):
    x, y = data
    constant = np.concatenate([x, np.full((N, 2), 7.5, np.float32)], axis=1)
    network = Ridge(G, alpha=1.0)
    network.finalize(batches(constant, y, 9))
    np.testing.assert_allclose(network.weight_DG[-2:], 0, atol=1e-9)
    assert bool(network.weight_DG[:-2].all())


def test_spots_that_are_all_alike_give_the_mean(data):
    _, y = data
    x = np.full((N, D), 3.0, np.float32)
    np.testing.assert_allclose(fit(x, y), np.tile(y.mean(0), (N, 1)), rtol=1e-5)


def test_a_single_spot_gives_itself(data):
    x, y = data
    np.testing.assert_allclose(fit(x[:1], y[:1]), y[:1], rtol=1e-6)


def test_more_features_than_spots():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(8, 30)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
    assert np.isfinite(fit(x, y)).all()
    np.testing.assert_allclose(fit(x, y, alpha=0.0), y, atol=1e-3)  # interpolates


def test_other_features_are_refused(data):
    x, y = data
    network = Ridge(G)
    network.finalize(batches(x, y, N))
    with pytest.raises(ValueError, match="fitted to 12 features of 'rgb', the batch has 11"):
        network(batches(x[:, 1:], y, N)[0])
    with pytest.raises(ValueError, match="reads 'features'"):
        network(Batch(crops=(), index=torch.arange(2)))


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"n_components": 0}, "n_components must be"),
        ({"rank": 0}, "rank must be at least 1, or None"),
        ({"alpha": -1.0}, "alpha must be"),
        ({"alpha": "loo"}, "alpha must be"),
    ],
)
def test_unfit_hyper_parameters(hparams, message):
    with pytest.raises(ValueError, match=message):
        Ridge(G, **hparams)


def test_no_spot_at_all():
    with pytest.raises(ValueError, match="at least one spot, got 0"):
        Ridge(G).finalize([])


def test_crops_are_those_of_the_encoder():
    spec = get_spec("ridge")
    assert spec.crop_for({"encoder": "UNI"}).mpp == 0.5
    assert spec.crop_for({"encoder": "UNI"}) != spec.crop


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_counted(data, bad):
    x, y = data
    x[[3, 5], 2] = bad
    with pytest.raises(ValueError, match=r"2 of 60 training spots have features of 'rgb' that are not finite\. Leave"):
        fit(x, y)
    x, y = np.nan_to_num(x, posinf=0), y.copy()
    y[4, 1] = bad
    with pytest.raises(ValueError, match="1 of 60 training spots have targets that are not finite"):
        fit(x, y)


def test_a_decomposition_that_fails_is_explained(data, monkeypatch):
    def fail(*_, **__):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", fail)
    with pytest.raises(ValueError, match=r"12 features of 60 spots have no principal components \(SVD did not"):
        fit(*data, alpha=1.0)
