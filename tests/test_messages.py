"""Inputs that are common in practice, and messages that name what is wrong with them."""

from __future__ import annotations

import gzip
import logging
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.sparse import csr_matrix
from spatialdata.models import Image2DModel
from typer.testing import CliRunner

import st_predict as stp
from st_predict._errors import InvalidValueError
from st_predict.cli import app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

XY = [(x, y) for y in (2, 3) for x in (2, 3, 4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of a section of six spots."""
    names = [f"{x}x{y}" for x, y in XY]
    pd.DataFrame({"A": range(1, 7), "B": 1}, index=names).to_csv(tmp_path / "c.tsv", sep="\t")
    spots = pd.DataFrame(XY, columns=["x", "y"])
    spots["pixel_x"], spots["pixel_y"] = spots["x"] * 100, spots["y"] * 100
    spots.to_csv(tmp_path / "s.tsv", sep="\t", index=False)
    Image.fromarray(np.zeros((500, 500, 3), np.uint8)).save(tmp_path / "h.png")
    return tmp_path


def read(folder: Path) -> SpatialData:
    return stp.io.read_legacy_st(folder / "c.tsv", folder / "s.tsv", folder / "h.png", section="S", patient="P")


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "CRLF": lambda content: content.replace(b"\n", b"\r\n"),
    "CR": lambda content: content.replace(b"\n", b"\r"),
    "gzip without the suffix": gzip.compress,
    "quoted names": lambda content: content.replace(b"2x2", b'"2x2"').replace(b"pixel_x", b'"pixel_x"'),
    "spaces in the header": lambda content: content.replace(b"pixel_x", b" pixel_x "),
    "commas": lambda content: content.replace(b"\t", b","),
}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("file", ["c.tsv", "s.tsv"])
def test_texts_of_other_programs_are_read_alike(folder: Path, name: str, file: str) -> None:
    plain = read(folder)
    path = folder / file
    path.write_bytes(ENCODINGS[name](path.read_bytes()))
    other = read(folder)
    assert list(other["table"].obs_names) == list(plain["table"].obs_names)
    np.testing.assert_array_equal(other["table"].X.toarray(), plain["table"].X.toarray())
    np.testing.assert_array_equal(other["table"].obsm["spatial"], plain["table"].obsm["spatial"])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("s.tsv", lambda c: c.decode().encode("utf-16"), r"s\.tsv is not a text in UTF-8.*Save it as UTF-8"),
        ("c.tsv", lambda c: c.replace(b"A", b"\xe9"), r"c\.tsv is not a text in UTF-8"),
        ("s.tsv", lambda c: c.replace(b"400", b"400,5"), "values of the column 'pixel_x' are not numbers.*'400,5'"),
        ("s.tsv", lambda c: c.replace(b"\t", b";"), "separated by tabs or commas"),
        ("c.tsv", lambda c: gzip.compress(c)[:-12], r"c\.tsv cannot be read.*Get it again"),
        ("s.tsv", lambda c: gzip.compress(c)[:-12], r"s\.tsv cannot be read.*Get it again"),
    ],
)
def test_texts_that_cannot_be_read_are_named(folder: Path, file: str, change: Callable, message: str) -> None:
    path = folder / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InvalidValueError, match=message):
        read(folder)


def test_counts_with_a_row_per_gene_are_to_be_transposed(folder: Path) -> None:
    counts = pd.read_csv(folder / "c.tsv", sep="\t", index_col=0)
    counts.T.to_csv(folder / "c.tsv", sep="\t")
    with pytest.raises(
        InvalidValueError, match=r"a column per spot \(\['2x2'.*a row per gene \(\['A', 'B'\].*Transpose"
    ):
        read(folder)


@pytest.mark.parametrize("dense", [True, False])
def test_lazy_counts_are_read(measured: SpatialData, tmp_path: Path, dense: bool) -> None:
    counts = measured["table"].X.copy()
    plain = stp.tl.train(measured, "mean", panel=["a", "b"], out=tmp_path / "plain")
    lazy = da.from_array(counts if dense else csr_matrix(counts), chunks=(12, 4))
    measured["table"].X = lazy
    result = stp.tl.train(measured, "mean", panel=["a", "b"], out=tmp_path / "lazy")
    assert result.card.target == plain.card.target
    stp.tl.predict(measured, result.checkpoint)
    assert stp.tl.evaluate(measured, min_counts=0).summary["n_genes"].eq(2).all()
    stp.pl.spatial(measured, "a")
    assert measured["table"].X is lazy


def test_a_store_of_any_name_is_read(measured: SpatialData, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    measured.write(tmp_path / "sample1")
    run = CliRunner().invoke(
        app, ["predict", str(tmp_path / "sample1"), "--model", str(checkpoint()), "--out", str(tmp_path / "o.h5ad")]
    )
    assert run.exit_code == 0, run.output
    (tmp_path / "empty").mkdir()
    run = CliRunner().invoke(app, ["predict", str(tmp_path / "empty"), "--out", str(tmp_path / "p.h5ad")])
    assert run.exit_code == 1
    assert "is not a readable SpatialData store" in run.output
    with pytest.raises(InvalidValueError, match=r"is a folder, and a slide is a file.*spatialdata\.read_zarr"):
        stp.io.read_wsi(tmp_path / "sample1")


def test_an_empty_path_is_not_the_working_directory(
    measured: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValueError, match="out must be a path that is not empty, got ''"):
        stp.tl.train(measured, "mean", panel=["a", "b"], out="")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "why"),
    [("gpu", "a GPU is called 'cuda'"), ("tpu", "its kind is unknown"), ("CPU", "it is written 'cpu'")],
)
def test_devices_that_do_not_exist(
    measured: SpatialData, checkpoint: Callable[..., Path], device: str, why: str
) -> None:
    with pytest.raises(InvalidValueError, match=rf"{why}.*There are \['auto', 'cpu'.*device=\"auto\""):
        stp.tl.predict(measured, checkpoint(), device=device)


def test_no_message_ends_in_two_signs() -> None:
    quoted = InvalidValueError("config is unfit: Did you mean 'lr'?.", "is it 'x'?")
    assert "?." not in str(quoted)


@pytest.mark.parametrize(
    "other",
    [
        (np.uint16, ["r", "g", "b"]),  # a fluorescence image
        (np.uint8, ["DAPI"]),
        (np.float32, ["r", "g", "b"]),
    ],
)
def test_the_only_image_that_can_be_meant(
    measured: SpatialData, checkpoint: Callable[..., Path], other: tuple, caplog: pytest.LogCaptureFixture
) -> None:
    stp.tl.predict(measured, checkpoint())
    expected = measured["table"].obsm["pred_m2ost"].copy()
    pixels = np.zeros((len(other[1]), 40, 60), other[0])
    measured.images["another"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=other[1])
    with caplog.at_level(logging.INFO, logger="st_predict"):
        stp.tl.predict(measured, checkpoint())
    assert "Image 'he' of ['another', 'he'] is read" in caplog.text
    np.testing.assert_array_equal(measured["table"].obsm["pred_m2ost"], expected)
    measured.images["second"] = measured.images["he"]
    with pytest.raises(InvalidValueError, match=r"could be meant are \['he', 'second'\]\. Choose one with image_key="):
        stp.tl.predict(measured, checkpoint())
