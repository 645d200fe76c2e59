"""Reports: one file that needs nothing else, says what is known, and changes nothing."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import st_predict as stp
from st_predict._record import Record
from st_predict.pl import _report_figures

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Texts, pictures and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.words, self.addresses, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href", "action", "data", "poster"}]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def pictures(self):
        data = [one.partition("base64,")[2] for one in self.addresses if one.startswith("data:")]
        return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in data]


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """Draw few pixels, as a page is made in most tests."""
    monkeypatch.setattr(_report_figures, "DPI", 40)


@pytest.fixture
def predicted(measured, checkpoint):
    """A slide with a prediction of four genes at 11 of 12 spots."""
    stp.tl.predict(measured, checkpoint(mpp=0.5), mpp=0.5, key_added="pred")
    measured["table"].obsm["pred"][3] = np.nan
    return measured


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def test_a_page_says_what_was_predicted_and_how(predicted, tmp_path):
    path = stp.pl.report(predicted, "pred", tmp_path / "slide.html", genes=["b"])
    page = read(path)
    assert path == tmp_path / "slide.html"
    for words in (
        "11 of 12 predicted, 1 left out",
        "0.5 um per pixel, from argument",
        "SHA-256",
        "not stated by the card",
        "it is unknown which genes are reliable",
        "key_added='pred', mpp=0.5",
        "These values were not measured",
        "ceiling",
        "neighbours",
    ):
        assert words in page.text, words
    assert len(page.pictures()) == 2


def test_a_page_asks_no_host(predicted, tmp_path):
    text = stp.pl.report(predicted, "pred", tmp_path / "slide.html", genes=["b"]).read_text(encoding="utf-8")
    page = Page(text)
    assert all(one.startswith("data:image/webp;base64,") for one in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    assert not re.search(r"url\(|@import", text)


def test_the_slide_is_not_changed(predicted, tmp_path):
    table = predicted["table"]
    before = {name: sorted(map(str, getattr(table, name))) for name in ("obs", "var", "uns", "obsm", "layers")}
    counts = table.X.copy()
    stp.pl.report(predicted, "pred", tmp_path / "slide.html", n_genes=1)
    assert before == {name: sorted(map(str, getattr(table, name))) for name in before}
    np.testing.assert_array_equal(table.X, counts)
    assert predicted["table"] is table


def test_texts_are_escaped(predicted, tmp_path):
    record = Record.read(predicted["table"].uns, "pred")
    params = {**record.params, "warnings": ["<script>alert(1)</script>"]}
    Record(card=record.card, params=params).write(predicted["table"].uns, "pred")
    page = read(stp.pl.report(predicted, "pred", tmp_path / "<b>.html", genes=["a"], score=False))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text
    assert "<b>" in page.text


def test_warnings_of_the_prediction_are_on_the_page(measured, checkpoint, tmp_path):
    stp.tl.predict(measured, checkpoint(mpp=0.5), mpp=0.5)
    said = Record.read(measured["table"].uns, "pred_m2ost").params["warnings"]
    assert any("bare glass" in one for one in said)
    page = read(stp.pl.report(measured, None, tmp_path / "slide.html", genes=["a"], score=False))
    assert " ".join(said[0].split()) in page.text
    assert "The prediction was not scored." in page.text


def test_the_overview_shows_both_kinds_of_spots(predicted, tmp_path):
    overview, _ = read(stp.pl.report(predicted, "pred", tmp_path / "s.html", genes=["a"], score=False)).pictures()
    pixels = np.asarray(overview).astype(int)
    orange = (pixels[..., 0] > pixels[..., 2] + 60) & (pixels[..., 1] < 170)
    assert orange.any()


@pytest.fixture
def trusted(simulated, tmp_path):
    """A slide predicted by weights whose card knows which genes to trust."""
    train, slide = simulated
    weights = stp.tl.train([train], "ridge", panel=10, out=tmp_path / "w", hparams={"encoder": "rgb"}).checkpoint
    stp.tl.predict(slide, weights)
    scored = stp.checkpoints.add_reliability(
        weights, stp.tl.evaluate([slide], key="pred_ridge"), out=tmp_path / "scored.safetensors"
    )
    stp.tl.predict(slide, scored, key_added="known")
    return train, slide


@pytest.fixture(scope="module")
def _simulated():
    return stp.datasets.simulate(2, 1, n_genes=30, shape=(1504, 1504), mpp=1.2, seed=3).sections


@pytest.fixture
def simulated(_simulated):
    return list(_simulated.values())


def test_maps_are_of_genes_to_trust_best_first(trusted, tmp_path):
    _, slide = trusted
    scores = stp.get.reliability(slide, "known")
    best = scores[scores["trusted"]].sort_values("partial", ascending=False).index[:3].tolist()
    assert len(best) == 3
    text = stp.pl.report(slide, "known", tmp_path / "s.html", n_genes=3).read_text(encoding="utf-8")
    assert re.findall(r'alt="Map of (\w+)"', text) == best
    assert "Another patient: section" in text
    rows = Page(text).text
    assert f"{scores['partial'].max():.2f}" in rows


def test_scores_of_an_evaluation_beside_fitted_baselines(trusted, tmp_path):
    train, slide = trusted
    evaluation = stp.tl.evaluate([slide], key="known", train=[train])
    page = read(stp.pl.report(slide, "known", tmp_path / "s.html", n_genes=1, evaluation=evaluation))
    assert "of a patient that was not trained on:" in page.text
    value = evaluation.summary.set_index("predictor").loc["position", "gene_partial"]
    assert f"position {value:z.2f}" in page.text
    assert "Baselines fitted" not in page.text


def test_a_slide_without_counts_says_why_there_are_no_scores(sdata, checkpoint, tmp_path):
    del sdata.tables["table"]
    stp.tl.predict(sdata, checkpoint(mpp=0.5), mpp=0.5)
    page = read(stp.pl.report(sdata, None, tmp_path / "s.html", n_genes=1))
    assert "The prediction could not be scored." in page.text


def test_a_cohort_has_an_index(predicted, tmp_path):
    index = stp.pl.report({"one": predicted, "b/two.zarr": predicted}, "pred", tmp_path / "all", n_genes=1, score=False)
    assert sorted(one.name for one in index.parent.iterdir()) == ["index.html", "one.html", "two.html"]
    assert {"one.html", "two.html"} < set(read(index).addresses)
    assert "index.html" in read(index.parent / "two.html").addresses
    with pytest.raises(FileExistsError):
        stp.pl.report({"one": predicted}, "pred", tmp_path / "all", n_genes=1, score=False)
    assert len(list(index.parent.iterdir())) == 3


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"path": "slide.pdf"}, ValueError, "html file"),
        ({"path": "none/slide.html"}, FileNotFoundError, "does not exist"),
        ({"genes": ["z"]}, KeyError, "'z'"),
        ({"n_genes": 0}, ValueError, "n_genes"),
        ({"key": "nope"}, KeyError, "nope"),
        ({"evaluation": {}}, ValueError, "mapping is for a cohort"),
        ({"held_out": "plate"}, ValueError, "held_out"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(predicted, tmp_path, monkeypatch, changes, error, words):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=words):
        stp.pl.report(predicted, **{"key": "pred", "path": "s.html", "score": False, "genes": ["a"], **changes})
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_exists_is_kept_unless_the_caller_says_so(predicted, tmp_path):
    path = tmp_path / "s.html"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite"):
        stp.pl.report(predicted, "pred", path, genes=["a"], score=False)
    assert path.read_text() == "mine"
    stp.pl.report(predicted, "pred", path, genes=["a"], score=False, overwrite=True)
    assert path.read_text() != "mine"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_a_network_and_without_scrolling_sideways(predicted, tmp_path, width, loopback):
    page = stp.pl.report(predicted, "pred", tmp_path / "slide.html", genes=["a", "b"])
    probe = "<script>onload = () => document.title = [document.documentElement.scrollWidth, "
    probe += "[...document.images].filter(i => i.complete && i.naturalWidth > 0).length].join()</script>"
    (tmp_path / "probe.html").write_text(page.read_text(encoding="utf-8").replace("</body>", f"{probe}</body>"))
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    quiet.append("--disable-features=NetworkTimeServiceQuerying")
    shown = subprocess.run(
        [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", *quiet, f"--window-size={width},900"),
            *(f"--proxy-server={loopback.url}", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"),
            f"file://{tmp_path / 'probe.html'}",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    scroll, images = map(int, re.search(r"<title>(\d+),(\d+)</title>", shown).groups())
    assert scroll <= max(width, 500)  # the smallest window of the browser
    assert images == 3
    assert loopback.asked == []


def test_what_holds_for_all_genes_is_said_once(predicted, tmp_path, caplog):
    table = predicted["table"]
    predicted.tables["table"] = table[:, :3].copy()
    stp.pl.report(predicted, "pred", tmp_path / "s.html", genes=["a", "b"], score=False)
    said = [one.getMessage() for one in caplog.records if "panel genes are not in the table" in one.getMessage()]
    assert len(said) == 1


def test_a_section_of_a_table_with_several(two_regions, checkpoint, tmp_path):
    stp.tl.predict(
        two_regions, checkpoint(mpp=0.5), mpp=0.5, key_added="pred", image_key={"spots": "he", "more": "mirrored"}
    )
    two_regions["table"].obsm["pred"][0] = np.nan  # the first row is of "spots"
    said = {
        region: read(stp.pl.report(two_regions, "pred", tmp_path / f"{region}.html", genes=["a"], **where)).text
        for region, where in {
            "spots": {"region": "spots", "image_key": "he"},
            "more": {"region": "more", "image_key": "mirrored"},
        }.items()
    }
    assert "11 of 12 predicted, 1 left out" in said["spots"]
    assert "12 of 12 predicted, 0 left out" in said["more"]
    with pytest.raises(ValueError, match="region="):
        stp.pl.report(two_regions, "pred", tmp_path / "both.html", genes=["a"], image_key="he")


def test_genes_of_a_table_that_lost_some(trusted, tmp_path):
    """The card has all genes; places in it are not places in the table."""
    _, slide = trusted
    scores = stp.get.reliability(slide, "known")
    prediction = stp.get.prediction(slide, "known")
    best, *_, worst = scores.sort_values("partial", ascending=False).index
    del slide["table"].obsm["known"]
    slide.tables["known"] = prediction[:, [worst, best]].copy()
    text = stp.pl.report(slide, "known", tmp_path / "s.html", n_genes=1, score=False).read_text(encoding="utf-8")
    assert re.findall(r'alt="Map of (\w+)"', text) == [best]
    assert f"<td>{best}</td><td>{scores['partial'].max():.2f}</td>" in text


def test_sections_without_scores_are_not_passed_over(trusted, tmp_path):
    _, slide = trusted
    with pytest.raises(ValueError, match=r"scores for \['patient'\], .*'section'.*held_out="):
        stp.pl.report(slide, "known", tmp_path / "s.html", held_out="section")
    assert list(tmp_path.glob("*.html")) == []


def test_names_of_slides_may_have_dots(predicted, tmp_path):
    slides = {"HER2.A": predicted, "HER2.B": predicted}
    folder = stp.pl.report(slides, "pred", tmp_path / "all", n_genes=1, score=False).parent
    assert sorted(one.name for one in folder.iterdir()) == ["HER2.A.html", "HER2.B.html", "index.html"]


def test_an_error_names_the_slide_and_leaves_nothing(predicted, sdata, tmp_path):
    bare = type(sdata)(images={"he": sdata["he"]})
    with pytest.raises(KeyError, match="Slide 'bare':"):
        stp.pl.report({"one": predicted, "bare": bare}, "pred", tmp_path / "all", n_genes=1, score=False)
    assert not (tmp_path / "all").exists()


def test_an_index_has_small_pictures(predicted, tmp_path):
    index = stp.pl.report({"one": predicted}, "pred", tmp_path / "all", n_genes=1, score=False)
    (small,), (large, *_) = read(index).pictures(), read(index.parent / "one.html").pictures()
    assert small.width == pytest.approx(large.width / 3, abs=2)


def test_scores_of_a_training_section_are_marked(trusted, tmp_path):
    train, slide = trusted
    stp.tl.predict(train, tmp_path / "scored.safetensors", key_added="known")
    index = stp.pl.report({"old": train, "new": slide}, "known", tmp_path / "all", n_genes=1)
    words = "which was trained on, so that its scores do not hold for other slides"
    assert words in read(index.parent / "old.html").text
    assert words not in read(index.parent / "new.html").text
    assert read(index).text.count(words) == 1
