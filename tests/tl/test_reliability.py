"""Scores of each gene on held-out sections, computed again by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors import safe_open
from scipy.stats import pearsonr

import st_predict as stp
from st_predict import checkpoints, metrics
from st_predict.specs import ModelCard, Reliability

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

KEY = "pred_ridge"
TRAIN = "P1S1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, SpatialData], stp.tl.TrainResult]:
    """Sections of two patients, predicted by ridge regression on one of them."""
    folder = tmp_path_factory.mktemp("reliability")
    sections = stp.datasets.simulate(2, 2, n_genes=6, shape=(1304, 1304), mpp=1.2, seed=0).sections
    panel = sections[TRAIN].tables["table"].var_names.tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ST_PREDICT_CACHE", str(folder / "cache"))
        result = stp.tl.train(
            sections[TRAIN],
            "ridge",
            panel=panel,
            out=folder / "run",
            hparams={"encoder": "rgb", "rank": 4},
            min_counts=1,
        )
        for section in sections.values():
            stp.tl.predict(section, result)
    return sections, result


def evaluate(trained: tuple[dict[str, SpatialData], stp.tl.TrainResult], *names: str) -> stp.tl.Evaluation:
    return stp.tl.evaluate([trained[0][name] for name in names], min_counts=1)


def residual(values: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """What a least-squares fit of the covariates and a constant leaves."""
    design = np.column_stack([np.ones(len(values)), covariates])
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def by_hand(section: SpatialData, card: ModelCard) -> tuple[np.ndarray, np.ndarray]:
    """Partial correlations of the genes, and of 200 resamples of blocks, from counts and predictions."""
    table = section.tables["table"]
    counts = table.to_df()[list(card.genes)].to_numpy(dtype=float)
    totals = table.to_df().to_numpy(dtype=float).sum(axis=1)
    predicted, xy = table.obsm[KEY].astype(float), section.tables["table"].obsm["spatial"]
    share, theta = np.array(card.target.reference.proportions), card.target.theta
    mean = totals[:, None] * share
    limit = np.sqrt(len(counts))
    truth = np.clip((counts - mean) / np.sqrt(mean + mean**2 / theta), -limit, limit)
    covariates = np.column_stack([np.log(totals), np.log(totals) ** 2])

    def partial(rows: np.ndarray) -> list[float]:
        pairs = (residual(values[rows], covariates[rows]) for values in (predicted, truth))
        return [pearsonr(a, b).statistic for a, b in zip(*(pair.T for pair in pairs), strict=True)]

    blocks = metrics.spatial_blocks(xy, len(xy) // 12)
    times = np.random.default_rng(0).multinomial(
        blocks.max() + 1, np.full(blocks.max() + 1, 1 / (blocks.max() + 1)), 200
    )
    drawn = [np.concatenate([np.repeat(np.flatnonzero(blocks == b), n) for b, n in enumerate(row)]) for row in times]
    return np.array(partial(np.arange(len(xy)))), np.array([partial(rows) for rows in drawn])


def test_intervals_of_each_gene(trained) -> None:
    evaluation = evaluate(trained, "P2S1")
    own = evaluation.genes.query("predictor == 'pred_ridge'")
    score, drawn = by_hand(trained[0]["P2S1"], trained[1].card)
    np.testing.assert_allclose(own["partial"], score, atol=1e-6)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    np.testing.assert_allclose(own["partial_low"], low, atol=1e-5)
    np.testing.assert_allclose(own["partial_high"], high, atol=1e-5)
    assert (high - low > 0.02).all()
    assert set(own["held_out"]) == {"patient"}
    (found,) = evaluation.reliability()
    assert (found.held_out, found.sections, found.patients) == ("patient", ("P2S1",), ("P2",))
    assert found.n_spots == trained[0]["P2S1"].tables["table"].n_obs
    np.testing.assert_allclose(found.partial, score, atol=6e-5)  # four digits
    np.testing.assert_allclose(found.low, low, atol=6e-5)
    np.testing.assert_allclose(found.high, high, atol=6e-5)
    np.testing.assert_allclose(found.ceiling, own["ceiling_partial"], atol=6e-5)


def test_a_constant_has_no_interval(trained) -> None:
    genes = evaluate(trained, "P2S1").genes.query("predictor == 'section_mean'")
    assert genes[["partial", "partial_low", "partial_high"]].isna().all(axis=None)


def test_what_a_section_is_to_the_training(trained) -> None:
    evaluation = evaluate(trained, *trained[0])
    kinds = evaluation.genes.groupby("section")["held_out"].unique().map(list).to_dict()
    assert kinds == {"P1S1": ["training"], "P1S2": ["section"], "P2S1": ["patient"], "P2S2": ["patient"]}
    patient, section = evaluation.reliability()
    assert (patient.sections, patient.patients) == (("P2S1", "P2S2"), ("P2",))
    assert (section.held_out, section.sections) == ("section", ("P1S2",))
    with pytest.raises(
        ValueError, match=r"No section is known to be held out: \{'P1S1': 'training'\}\. Evaluate sections"
    ):
        evaluate(trained, TRAIN).reliability()


def test_several_sections_are_averaged(trained) -> None:
    (both,) = evaluate(trained, "P2S1", "P2S2").reliability()
    each = [evaluate(trained, name).reliability()[0] for name in ("P2S1", "P2S2")]
    np.testing.assert_allclose(both.partial, np.mean([one.partial for one in each], axis=0), atol=1e-4)
    np.testing.assert_allclose(both.ceiling, np.mean([one.ceiling for one in each], axis=0), atol=1e-4)
    assert both.n_spots == sum(one.n_spots for one in each)
    # half of the draws take a section twice, so that the difference of sections counts
    drawn = [by_hand(trained[0][name], trained[1].card)[1] for name in ("P2S1", "P2S2")]
    rng = np.random.default_rng(1)
    which, row = rng.integers(2, size=(20_000, 2)), rng.integers(200, size=(20_000, 2))
    means = np.stack(drawn)[which, row].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    np.testing.assert_allclose(both.low, low, atol=0.03)  # of 1000 draws
    np.testing.assert_allclose(both.high, high, atol=0.03)


def test_a_card_that_does_not_say_what_it_was_trained_on(trained) -> None:
    evaluation = evaluate(trained, "P2S1")
    (section,) = evaluation.sections
    silent = replace(evaluation, sections=(replace(section, relation="unknown"),))
    with pytest.raises(
        ValueError, match=r"held out: \{'P2S1': 'unknown'\}.*Or say what they are with unknown=|unknown="
    ):
        silent.reliability()
    assert silent.reliability(unknown="patient") == evaluation.reliability()
    with pytest.raises(ValueError, match="unknown must be"):
        silent.reliability(unknown="organ")


@pytest.mark.parametrize("changes", [{"training": {}}, {"group_key": "donor"}])
def test_unknown_training(trained, changes) -> None:
    """Without sections, or with patients of another column, nobody knows whose a section is."""
    sections, result = trained
    card = result.card
    training = {**card.training, **changes} if "group_key" in changes else {}
    section = sections["P2S1"]
    before = section.tables["table"].uns["st_predict"]
    try:
        record = {**before[KEY], "card": replace(card, training=training).to_json()}
        section.tables["table"].uns["st_predict"] = {**before, KEY: record}
        evaluation = stp.tl.evaluate(section, min_counts=1)
        assert set(evaluation.genes["held_out"]) == {"unknown"}
        known = stp.tl.evaluate(section, train=sections[TRAIN], min_counts=1)
        assert set(known.genes["held_out"]) == {"patient"}
    finally:
        section.tables["table"].uns["st_predict"] = before


def test_genes_that_a_table_lacks_are_undefined(trained) -> None:
    section = trained[0]["P2S1"]
    table = section.tables["table"]
    try:
        section.tables["table"] = table[:, 1:].copy()
        evaluation = stp.tl.evaluate(section, missing="drop", min_counts=1)
        (found,) = evaluation.reliability()
    finally:
        section.tables["table"] = table
    assert found.partial[0] is found.low[0] is found.ceiling[0] is None
    own = evaluation.genes.query("predictor == 'pred_ridge'")
    np.testing.assert_allclose(found.partial[1:], own["partial"], atol=6e-5)
    assert 0 not in found.trusted(min_score=-1, reliable=False)


# In the card


def weights_of(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping


def test_the_card_gets_the_scores_and_the_weights_stay(trained, tmp_path) -> None:
    result, out = trained[1], tmp_path / "scored.safetensors"
    before = result.checkpoint.read_bytes()
    evaluation = evaluate(trained, "P2S1")
    assert checkpoints.add_reliability(result, evaluation, out=out) == out
    assert result.checkpoint.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]
    card = ModelCard.of_file(out)
    assert card == replace(result.card, reliability=evaluation.reliability())
    old, new = weights_of(result.checkpoint), weights_of(out)
    assert old.keys() == new.keys()
    assert all(a.dtype == new[name].dtype and np.array_equal(a, new[name]) for name, a in old.items())
    header = int.from_bytes(out.read_bytes()[:8], "little")
    assert header % 8 == 0
    assert checkpoints.load(out)[1] == card


def test_kinds_are_added_and_replaced(trained, tmp_path) -> None:
    out = tmp_path / "scored.safetensors"
    checkpoints.add_reliability(trained[1], evaluate(trained, "P2S1"), out=out)
    checkpoints.add_reliability(out, evaluate(trained, "P1S2"), overwrite=True)
    checkpoints.add_reliability(out, evaluate(trained, "P2S2"), overwrite=True)
    assert [(one.held_out, one.sections) for one in ModelCard.of_file(out).reliability] == [
        ("patient", ("P2S2",)),
        ("section", ("P1S2",)),
    ]
    assert list(tmp_path.iterdir()) == [out]


def test_nothing_is_overwritten_unasked(trained, tmp_path) -> None:
    evaluation = evaluate(trained, "P2S1")
    before = trained[1].checkpoint.read_bytes()
    for model, out in ((trained[1], None), (trained[1].checkpoint, None), (trained[1], trained[1].checkpoint)):
        with pytest.raises(FileExistsError, match=r"ridge\.safetensors' exists; name another file"):
            checkpoints.add_reliability(model, evaluation, out=out)
    with pytest.raises(ValueError, match=r"'m2ost' are released weights.* Name a file to write with out="):
        checkpoints.add_reliability("m2ost", evaluation, overwrite=True)
    assert trained[1].checkpoint.read_bytes() == before


def test_released_weights_are_not_replaced_because_of_a_file_of_their_name(trained, tmp_path, monkeypatch) -> None:
    evaluation, released = evaluate(trained, "P2S1"), checkpoints.find_weights("m2ost")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m2ost").write_bytes(b"mine")
    before = released.read_bytes()
    with pytest.raises(ValueError, match=r"'m2ost' are released weights.*out="):
        checkpoints.add_reliability("m2ost", evaluation, overwrite=True)
    assert released.read_bytes() == before


def test_scores_of_another_network_are_refused(trained, tmp_path) -> None:
    other = tmp_path / "other.safetensors"
    network, card = checkpoints.load(trained[1].checkpoint)
    checkpoints.save(other, network, replace(card, training={**card.training, "note": 1}, license="MIT"))
    with pytest.raises(
        ValueError, match=r"evaluation does not belong to '.*other\.safetensors': the cards differ in \['training'\]"
    ):
        checkpoints.add_reliability(other, evaluate(trained, "P2S1"), overwrite=True)
    with pytest.raises(TypeError, match=r"evaluation must be a result of st_predict\.tl\.evaluate, got dict"):
        checkpoints.add_reliability(other, {})


def test_a_carried_notice_stays(trained, tmp_path) -> None:
    source = tmp_path / "a.safetensors"
    shutil.copy(trained[1].checkpoint, source)
    content = source.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"]["notice"] = "of an encoder"
    text = json.dumps(header).encode()
    source.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    checkpoints.add_reliability(source, evaluate(trained, "P2S1"), overwrite=True)
    with safe_open(source, framework="np") as file:
        assert file.metadata()["notice"] == "of an encoder"
    assert all(np.array_equal(a, weights_of(source)[name]) for name, a in weights_of(trained[1].checkpoint).items())


def test_an_ensemble_has_no_scores(trained, tmp_path) -> None:
    sections, result = trained
    scored = checkpoints.add_reliability(result, evaluate(trained, "P2S1"), out=tmp_path / "a.safetensors")
    copied = type(sections["P2S2"])(images=dict(sections["P2S2"].images), shapes=dict(sections["P2S2"].shapes))
    copied.tables["table"] = sections["P2S2"].tables["table"].copy()
    stp.tl.predict(copied, [scored, result], key_added="both")
    with pytest.raises(ValueError, match="card of 'both' has no scores"):
        stp.get.reliability(copied, "both")
    stp.tl.predict(copied, scored, key_added="one")
    assert len(stp.get.reliability(copied, "one")) == 6


# Rules of the card


SCORES = {
    "held_out": "patient",
    "sections": ("S",),
    "patients": ("P",),
    "n_spots": 100,
    "partial": (0.5, 0.3, None, 0.1),
    "low": (0.4, -0.1, None, None),
    "high": (0.6, 0.5, None, None),
    "ceiling": (0.9, 0.9, 0.9, 0.9),
}


def test_who_is_trusted() -> None:
    found = Reliability(**SCORES)
    assert found.trusted() == [0]
    assert found.trusted(reliable=False) == [0, 1, 3]
    assert found.trusted(min_score=0.3, reliable=False) == [0, 1]
    assert found.trusted(min_score=0.51) == []
    assert found.only([3, 0]).partial == (0.1, 0.5)
    zero = Reliability(**{**SCORES, "low": (0.0, 0.1, None, None), "high": (0.6, 0.5, None, -0.1)})
    assert zero.trusted() == [1]
    assert zero.n_by_chance == 1
    assert found.n_by_chance == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": "organ"}, "held_out must be 'patient' or 'section'"),
        ({"low": (0.1,)}, r"one value per gene, got \[4, 1, 4, 4\]"),
        ({"partial": (1.5, 0.3, None, 0.1)}, "partial"),
        ({"n_spots": 0}, "n_spots"),
    ],
)
def test_scores_that_are_none(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        Reliability(**{**SCORES, **changes})


def test_a_card_has_each_kind_once_and_every_gene(trained) -> None:
    card = trained[1].card
    with pytest.raises(ValueError, match="one score per gene, got 4 for 6 genes"):
        replace(card, reliability=(Reliability(**SCORES),))
    small = card.only([0, 1, 2, 3])
    patient = Reliability(**SCORES)
    with pytest.raises(ValueError, match=r"once, got \['patient', 'patient'\]"):
        replace(small, reliability=(patient, patient))
    section = replace(patient, held_out="section")
    both = replace(small, reliability=(section, patient))
    assert both.reliability_on() == both.reliability_on("patient") == patient
    assert both.reliability_on("section") == replace(small, reliability=(section,)).reliability_on() == section
    assert small.reliability_on() is None
    assert ModelCard.from_json(both.to_json()) == both
    assert "reliability" not in json.loads(small.to_json())


# Colours


def test_the_card_keeps_the_colours_of_training(trained, tmp_path, quick) -> None:
    sections, result = trained
    colours = result.card.training["colours"]
    image = np.asarray(sections[TRAIN].images["he"]["scale0"]["image"])
    # crops of 512 um cover a section of 2 mm several times, and white beyond it
    assert colours["n_crops"] == min(32, sections[TRAIN].tables["table"].n_obs)
    assert colours["mpp"] == result.card.crop.mpp
    assert np.all(np.abs(np.array(colours["mean"]) - image.mean(axis=(1, 2)) / 255) < 0.1)
    assert np.all(np.array(colours["sd"]) > 0.01)


def test_colours_of_crops(measured, tmp_path, quick) -> None:
    tiny = dict(stp.models.get_spec("m2ost").tiny)
    panel = measured.tables["table"].var_names.tolist()
    result = stp.tl.train(
        measured, panel=panel, out=tmp_path / "out", hparams=tiny, config=quick(epochs=1), preset="paper"
    )
    colours = result.card.training["colours"]
    assert (colours["n_crops"], colours["mpp"]) == (12, None)
    image = np.full((3, 1200, 1200), 255.0)
    image[:, 300:700, 300:900] = np.asarray(measured.images["he"]["scale0"]["image"])
    # the finest level, by slices of the padded image; the wider ones only average it
    xy = [(x, y) for y in (50, 200, 390) for x in (10, 150, 300, 590)]
    crops = []
    for level in result.card.crop.levels:
        half = int(level.fov) // 2
        crops.append([image[:, 300 + y - half : 300 + y + half, 300 + x - half : 300 + x + half] for x, y in xy])
    mean = np.mean([[crop.mean(axis=(1, 2)) for crop in level] for level in crops], axis=(0, 1)) / 255
    np.testing.assert_allclose(colours["mean"], mean, atol=0.01)


def test_a_model_that_reads_nothing_has_no_colours(measured, tmp_path) -> None:
    panel = measured.tables["table"].var_names.tolist()
    result = stp.tl.train(measured, "mean", panel=panel, out=tmp_path / "out", min_counts=1)
    assert "colours" not in result.card.training
