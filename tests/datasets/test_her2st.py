"""HER2+ sections: the real ones, and the download of a small one from a server on loopback."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import threading
from functools import lru_cache
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._keys import Keys
from st_predict.datasets import _her2st
from st_predict.datasets._her2st import her2st
from st_predict.io import find_mpp, open_pyramid, read_legacy_st, read_spots, spots_outside

ROOT = Path(os.environ.get("ST_PREDICT_CACHE", Path(__file__).parents[3] / "shared" / "data" / "her2st"))
needs_data = [
    pytest.mark.data,
    pytest.mark.skipif(not (ROOT / "data" / "ST-cnts").is_dir(), reason=f"no her2st at {ROOT}; set ST_PREDICT_CACHE"),
]


def _marks(function):
    for mark in needs_data:
        function = mark(function)
    return function


def _sections():
    return [f"{p}{i}" for p, n in zip("ABCDEFGH", (6, 6, 6, 6, 3, 3, 3, 3), strict=True) for i in range(1, n + 1)]


def test_the_registry_names_every_file_of_36_sections():
    registry = _her2st._registry()
    assert re.fullmatch("[0-9a-f]{40}", registry["commit"])
    labelled = [section for section in _sections() if "labels" in _her2st._paths(section)]
    assert labelled == ["A1", "B1", "C1", "D1", "E1", "F1", "G2", "H1"]
    paths = [path for section in _sections() for path in _her2st._paths(section).values()]
    assert sorted(paths) == sorted(registry["files"])
    assert len(paths) == 3 * 36 + 8
    for entry in registry["files"].values():
        ((kind, value),) = entry.items()
        assert len(value) == {"sha256": 64, "git_blob": 40}[kind]


def test_an_unknown_section_is_named_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match=re.escape("her2st has no section 'C7'; there are ['A1', 'A2'")):
        her2st(["C2", "C7"], cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


@lru_cache(maxsize=1)  # a third of a gigabyte
def real(section):
    return her2st(section, cache=ROOT)


@pytest.mark.slow
@_marks
def test_counts_are_those_of_the_file():
    table = real("B4")["table"]
    frame = pd.read_csv(ROOT / "data/ST-cnts/B4.tsv.gz", sep="\t", index_col=0)
    assert list(table.var_names) == list(frame.columns)
    assert set(frame.index) == {name.removeprefix("B4_") for name in table.obs_names}
    np.testing.assert_array_equal(table.X.toarray(), frame.loc[[n.removeprefix("B4_") for n in table.obs_names]])
    assert np.median(np.asarray(table.X.sum(axis=1))) == 648
    assert set(table.obs[Keys.PATIENT]) == {"B"}


@pytest.mark.slow
@_marks
@pytest.mark.parametrize("section", ["B4", "C2", "C6"])
def test_spots_are_on_the_tissue_at_the_known_resolution(section):
    sdata = real(section)
    assert find_mpp(sdata).value == pytest.approx(0.687, rel=0.005)
    spots, reader = read_spots(sdata, image_key="he"), open_pyramid(sdata)
    assert not spots_outside(spots, reader.level_shapes[0]).any()
    height, width = reader.level_shapes[3]
    image = reader.read(0, 0, width, height, level=3).mean(axis=2)
    under = np.array([image[int(y / 8), int(x / 8)] for x, y in spots.xy])
    assert under.mean() < image.mean() - 30
    # tissue is what is clearly darker than the slide, which is most of the image
    assert (under < np.median(image) - 15).mean() > 0.8


@_marks
@pytest.mark.parametrize("section", ["G2", "H1"])
def test_fat_by_the_pathologist_is_fat_by_its_genes(section, tmp_path):
    """The file of labels counts pixels from below; places on the array are what links it to the spots."""
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "he.png")
    table = read_legacy_st(
        ROOT / f"data/ST-cnts/{section}.tsv.gz",
        ROOT / f"data/ST-spotfiles/{section}_selection.tsv",
        tmp_path / "he.png",  # the real one is not needed here
        labels=ROOT / f"data/ST-pat/lbl/{section}_labeled_coordinates.tsv",
        section=section,
        patient=section[0],
    )["table"]
    assert table.obs[Keys.LABEL].isna().sum() <= 1
    genes = table[:, ["ADIPOQ", "FABP4", "PLIN1", "PLIN4"]].X.sum(axis=1)
    share = pd.Series(np.asarray(genes / table.X.sum(axis=1)).ravel(), index=table.obs_names)
    fat = table.obs[Keys.LABEL] == "adipose tissue"
    assert share[fat].mean() > 4 * share[~fat].mean()


@pytest.fixture
def server(tmp_path):
    """A repository with section C1, whose image is small, and its own registry."""
    root = tmp_path / "served"
    files = {
        "data/ST-cnts/C1.tsv.gz": pd.DataFrame(
            [[1, 0, 3], [0, 2, 5], [7, 7, 1], [4, 4, 4]], index=["3x4", "3x5", "4x4", "4x5"], columns=["G1", "G2", "G3"]
        ),
        "data/ST-spotfiles/C1_selection.tsv": pd.DataFrame(
            [(x, y, x, y, 30 * x, 30 * y, 1) for x in (3, 4) for y in (4, 5)],
            columns=["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"],
        ),
        "data/ST-pat/lbl/C1_labeled_coordinates.tsv": pd.DataFrame(
            [(3.02, 4.01, "invasive cancer"), (3.98, 4.99, "adipose tissue")], columns=["x", "y", "label"]
        ),
    }
    for path, frame in files.items():
        (root / "abc" / path).parent.mkdir(parents=True)
        frame.to_csv(root / "abc" / path, sep="\t", index="cnts" in path)
    image = root / "abc" / "data/ST-imgs/C/C1/he.png"
    image.parent.mkdir(parents=True)
    Image.fromarray(np.full((200, 160, 3), 200, np.uint8)).save(image)
    handler = functools.partial(_Quiet, directory=root)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        httpd.url, httpd.root = f"http://127.0.0.1:{httpd.server_port}", root
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args):
        pass


@pytest.fixture
def registry(server, monkeypatch):
    """The registry of what is served; images by their git blob, the rest by SHA-256."""
    entries = {}
    for path in sorted(path for path in (server.root / "abc").rglob("*") if path.is_file()):
        content = path.read_bytes()
        entry = {"sha256": hashlib.sha256(content).hexdigest()}
        if path.suffix == ".png":
            entry = {"git_blob": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
        entries[path.relative_to(server.root / "abc").as_posix()] = entry
    registry = {"commit": "abc", "files": entries}
    monkeypatch.setattr(_her2st, "_registry", lambda: json.loads(json.dumps(registry)))
    return registry


@pytest.mark.usefixtures("registry")
def test_a_section_is_downloaded_once(server, tmp_path):
    sdata = her2st("C1", cache=tmp_path / "cache", url=server.url)
    table = sdata["table"]
    assert list(table.obs_names) == ["C1_3x4", "C1_3x5", "C1_4x4", "C1_4x5"]
    assert table.X.toarray()[2].tolist() == [7, 7, 1]
    assert table.obs[Keys.LABEL].dropna().to_dict() == {"C1_3x4": "invasive cancer", "C1_4x5": "adipose tissue"}
    assert find_mpp(sdata).value == pytest.approx(200 / 30)
    assert (tmp_path / "cache/her2st/data/ST-imgs/C/C1/he.png").is_file()
    shutil.rmtree(server.root)  # nothing is left to download
    again = her2st(["C1"], cache=tmp_path / "cache", url=server.url)
    np.testing.assert_array_equal(again["C1"]["table"].X.toarray(), table.X.toarray())
    # a copy of the repository is used as it is
    assert len(her2st("C1", cache=tmp_path / "cache" / "her2st", url=server.url)["table"]) == 4


@pytest.mark.usefixtures("registry")
def test_the_environment_names_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "from environment"))
    her2st("C1", url=server.url)
    assert (tmp_path / "from environment/her2st/data/ST-cnts/C1.tsv.gz").is_file()


@pytest.mark.usefixtures("registry")
def test_a_changed_file_is_refused(server, tmp_path):
    image = server.root / "abc" / "data/ST-imgs/C/C1/he.png"
    Image.fromarray(np.zeros((200, 160, 3), np.uint8)).save(image)
    with pytest.raises(ValueError, match=r"he\.png is not the expected file: git blob"):
        her2st("C1", cache=tmp_path / "cache", url=server.url)
    assert not (tmp_path / "cache/her2st/data/ST-imgs/C/C1/he.png").exists()


def test_arguments_of_another_type_are_named(tmp_path):
    for sections in (None, 3):
        with pytest.raises(InvalidTypeError, match="sections must be one name or several, got"):
            her2st(sections, cache=tmp_path)
    with pytest.raises(InvalidValueError, match="her2st has no section 3"):
        her2st([3], cache=tmp_path)
    with pytest.raises(InvalidValueError, match="cache must be a path, got 3"):
        her2st("A1", cache=3)
    with pytest.raises(InvalidValueError, match="url must be a string, got 3"):
        her2st("A1", cache=tmp_path, url=3)
