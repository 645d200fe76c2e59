"""Records of results: what is written comes back, and what others wrote stays."""

from __future__ import annotations

import json
import logging
import threading

import pytest

from st_predict._errors import InvalidValueError
from st_predict._record import Record, warnings_into
from st_predict._version import __version__
from st_predict.specs import CropSpec, LevelSpec, ModelCard

CARD = ModelCard(model="m2ost", genes=("a", "b"), crop=CropSpec(levels=(LevelSpec(size=224),)))


def test_a_record_comes_back() -> None:
    record = Record(
        card=CARD,
        params={"context": {"column": "known", "spots": ["s1", "s2"]}, "device": "cpu"},
        derived=("p_std",),
        calibration={"coverage": 0.9},
    )
    uns = {"theirs": 1, "st_predict": {"other": {"encoder": "{}"}}}
    record.write(uns, "p")
    assert Record.read(uns, "p") == record
    assert (record.kind, record.genes, record.context, record.version) == (
        "prediction",
        ("a", "b"),
        ("s1", "s2"),
        __version__,
    )
    assert Record.keys(uns) == ["other", "p"]
    stored = dict(uns["st_predict"]["p"])
    assert stored.pop("genes").tolist() == ["a", "b"]
    assert Record.genes_of(uns, "p") == ("a", "b")
    assert all(isinstance(value, str) for value in stored.values())  # which zarr and h5ad can store
    Record.remove(uns, "p")
    Record.remove(uns, "other")
    assert uns == {"theirs": 1}


def test_what_is_not_there() -> None:
    assert Record.read({}, "p") is None
    assert Record.keys({"st_predict": "a text of the user"}) == []
    assert Record.kind_of({"st_predict": {"p": {"version": "1"}}}, "p") is None
    assert Record.derived_of({}, "p") == ()
    assert Record.genes_of({}, "p") is None
    assert Record.genes_of({"st_predict": {"p": {"card": CARD.to_json()}}}, "p") is None  # of an earlier version


def test_an_embedding_has_no_genes() -> None:
    uns: dict = {}
    Record(encoder={"name": "rgb"}).write(uns, "X")
    read = Record.read(uns, "X")
    assert read is not None
    assert (read.kind, read.genes, read.card, read.encoder) == ("embedding", (), None, {"name": "rgb"})
    assert Record.genes_of(uns, "X") is None


def test_fields_of_others_are_kept() -> None:
    uns = {"st_predict": {"p": {"card": CARD.to_json(), "note": "mine"}}}
    record = Record.read(uns, "p")
    assert record is not None
    record.write(uns, "p")
    assert uns["st_predict"]["p"]["note"] == "mine"
    copy: dict = {}
    Record.copy({"st_predict": {"p": {"note": "mine"}}}, copy, "p")
    assert copy == {"st_predict": {"p": {"note": "mine"}}}  # nothing is added


def test_a_newer_card_is_refused_only_where_it_is_read() -> None:
    card = json.loads(CARD.to_json()) | {"format_version": 99}
    uns = {"st_predict": {"p": {"card": json.dumps(card), "derived": '["p_std"]', "genes": ["a", "b"]}}}
    assert Record.kind_of(uns, "p") == "prediction"
    assert Record.derived_of(uns, "p") == ("p_std",)
    assert Record.genes_of(uns, "p") == ("a", "b")
    with pytest.raises(ValueError, match="Upgrade st_predict"):
        Record.read(uns, "p")


@pytest.mark.parametrize("name", ["params", "encoder", "derived", "calibration"])
@pytest.mark.parametrize("stored", ["{not json", "3", b"\xff"])
def test_a_damaged_field_is_named(name: str, stored: object) -> None:
    uns = {"st_predict": {"p": {name: stored}}}
    with pytest.raises(
        InvalidValueError, match=rf"\.uns\['st_predict'\]\['p'\] is damaged: {name} .*Make the result again"
    ):
        Record.read(uns, "p")
    if name == "derived":
        with pytest.raises(InvalidValueError, match="is damaged: derived"):
            Record.derived_of(uns, "p")


@pytest.mark.parametrize("card", ["{not json", "[]", "{}", 3])
def test_a_damaged_card_is_named(card: object) -> None:
    with pytest.raises(InvalidValueError, match=r"The record \.uns\['st_predict'\]\['p'\]"):
        Record.read({"st_predict": {"p": {"card": card}}}, "p")


def test_genes_are_a_list() -> None:
    with pytest.raises(InvalidValueError, match="genes must be a list of names, got 'abc'"):
        Record.genes_of({"st_predict": {"p": {"genes": "abc"}}}, "p")


def test_records_that_are_no_mapping_are_none() -> None:
    uns = {"st_predict": {"p": "derived card genes"}}
    assert Record.read(uns, "p") is None
    assert (Record.derived_of(uns, "p"), Record.genes_of(uns, "p"), Record.kind_of(uns, "p")) == ((), None, None)
    assert not Record.is_copy(uns)


def test_warnings_of_other_threads_belong_to_other_results():
    logger, said = logging.getLogger("st_predict.somewhere"), []
    with warnings_into(said):
        other = threading.Thread(target=logger.warning, args=("of another slide",))
        other.start()
        other.join()
        logger.warning("of %s", "this slide")
        logger.warning("of this slide")
        logger.info("no warning")
    logger.warning("too late")
    assert said == ["of this slide"]
