"""Record of a result in ``.uns["st_predict"][key]``: the origin of its values."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from st_predict._errors import InvalidValueError, StPredictError
from st_predict._keys import Keys
from st_predict._version import __version__
from st_predict.specs import ModelCard

__all__ = ["Kind", "Record", "warnings_into"]

Kind: TypeAlias = Literal["prediction", "embedding"]

_REDO = "make the result again"

_COPY = "X"
"""Value of the field ``values``."""

_FIELDS = {"card", "genes", "encoder", "params", "derived", "calibration", "version"}


class _Listener(logging.Handler):
    """Collects messages."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said, self._thread = said, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread and (message := record.getMessage()) not in self._said:
            self._said.append(message)


@contextmanager
def warnings_into(said: list[str]) -> Iterator[None]:
    """Collect the package's logged warnings, for the record of the result."""
    listener, package = _Listener(said), logging.getLogger(__package__)
    package.addHandler(listener)
    try:
        yield
    finally:
        package.removeHandler(listener)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Origin of the values under a key.

    Parameters
    ----------
    card
        Card of the network, for a prediction.
    encoder
        Description of the encoder, for an embedding.
    params
        Settings of the result: sections, device, precision, checkpoints.
    derived
        Further keys of ``.obsm`` of the prediction: standard deviations and interval bounds.
    calibration
        Coverage and sections of the calibration, after intervals were added.
    version
        Version of st_predict that wrote the values.
    others
        Other stored fields, kept unchanged.
    """

    card: ModelCard | None = None
    encoder: Mapping[str, Any] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    derived: tuple[str, ...] = ()
    calibration: Mapping[str, Any] | None = None
    version: str = __version__
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind | None:
        """Kind of result; ``None`` if the record does not have it."""
        return "prediction" if self.card is not None else "embedding" if self.encoder is not None else None

    @property
    def genes(self) -> tuple[str, ...]:
        """Gene panel of a prediction, in the order of its columns."""
        return () if self.card is None else self.card.genes

    @property
    def context(self) -> tuple[str, ...]:
        """Names of the context spots."""
        return tuple((self.params.get("context") or {}).get("spots", ()))

    @property
    def context_regions(self) -> tuple[str, ...]:
        """Region of each context spot; empty if names are unique in the table."""
        return tuple((self.params.get("context") or {}).get("regions", ()))

    @classmethod
    def read(cls, uns: Mapping[str, Any], key: str) -> Record | None:
        """Read the record of a key; ``None`` if there is none.

        Raises
        ------
        ValueError
            If the card was written by a newer version, or the record is damaged.
        """
        stored = _stored(uns).get(key)
        if not isinstance(stored, Mapping):
            return None
        return cls(
            card=_card(stored, key),
            encoder=_parsed(stored, "encoder", key),
            params=_parsed(stored, "params", key) or {},
            derived=tuple(_parsed(stored, "derived", key) or ()),
            calibration=_parsed(stored, "calibration", key),
            version=str(stored.get("version", "unknown")),
            others={name: value for name, value in stored.items() if name not in _FIELDS},
        )

    @staticmethod
    def keys(uns: Mapping[str, Any]) -> list[str]:
        """Return the keys with a record."""
        return sorted(_stored(uns))

    @staticmethod
    def derived_of(uns: Mapping[str, Any], key: str) -> tuple[str, ...]:
        """Return the further keys of ``.obsm`` of a result, without reading the card."""
        return tuple(_parsed(_fields(uns, key), "derived", key) or ())

    @staticmethod
    def genes_of(uns: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
        """Return gene names of a prediction, without reading the card; ``None`` if not stored."""
        genes = _fields(uns, key).get("genes")
        if genes is None:
            return None
        if isinstance(genes, str) or not isinstance(genes, Iterable):
            raise InvalidValueError(f"{_place(key)} is damaged: genes must be a list of names, got {genes!r}.", _REDO)
        return tuple(str(gene) for gene in genes)

    @staticmethod
    def copy(source: Mapping[str, Any], target: MutableMapping[str, Any], key: str) -> None:
        """Copy the stored record of a key, if there is one, from one ``.uns`` to another."""
        if key in _stored(source):
            target[Keys.UNS] = {**_stored(target), key: deepcopy(dict(_fields(source, key)))}

    @staticmethod
    def mark_copy(uns: MutableMapping[str, Any], key: str, units: str | None) -> None:
        """Mark this table as a copy of a prediction in ``.X``, and note units that are not the network's."""
        noted = {} if units is None else {"units": units}
        uns[Keys.UNS] = {**_stored(uns), key: {**_fields(uns, key), "values": _COPY, **noted}}

    @staticmethod
    def units_of(uns: Mapping[str, Any], key: str) -> str | None:
        """Return the units of a copied prediction; ``None`` for the network's units."""
        units = _fields(uns, key).get("units")
        return None if units is None else str(units)

    @staticmethod
    def is_copy(uns: Mapping[str, Any]) -> bool:
        """Return whether a table is a copy of a prediction."""
        return any(isinstance(stored, Mapping) and stored.get("values") == _COPY for stored in _stored(uns).values())

    @staticmethod
    def is_result(uns: Mapping[str, Any], name: str) -> bool:
        """Return whether a table of this name is a result of st_predict, not a table of spots."""
        return name in _stored(uns) or Record.is_copy(uns)

    @staticmethod
    def kind_of(uns: Mapping[str, Any], key: str) -> Kind | None:
        """Return the kind of a result, without reading the card; ``None`` if st_predict did not write it."""
        stored = _fields(uns, key)
        return "prediction" if "card" in stored else "embedding" if "encoder" in stored else None

    def write(self, uns: MutableMapping[str, Any], key: str) -> None:
        """Store the record under a key; records of other keys are kept."""
        stored = {**self.others, "version": self.version, "params": json.dumps(dict(self.params))}
        if self.card is not None:
            stored["card"] = self.card.to_json()
            stored["genes"] = np.array(self.genes, dtype=object)  # stored as an array of strings by h5ad and zarr
        if self.encoder is not None:
            stored["encoder"] = json.dumps(dict(self.encoder))
        if self.derived:
            stored["derived"] = json.dumps(list(self.derived))
        if self.calibration is not None:
            stored["calibration"] = json.dumps(dict(self.calibration))
        uns[Keys.UNS] = {**_stored(uns), key: stored}

    @staticmethod
    def remove(uns: MutableMapping[str, Any], key: str) -> None:
        """Delete the record of a key; the last one with the whole slot."""
        rest = {name: stored for name, stored in _stored(uns).items() if name != key}
        if rest:
            uns[Keys.UNS] = rest
        else:
            uns.pop(Keys.UNS, None)


def _place(key: str) -> str:
    return f"The record .uns[{Keys.UNS!r}][{key!r}]"


def _parsed(stored: Mapping[str, Any], name: str, key: str) -> Any:
    """Return a field stored as JSON, a mapping or a list; ``None`` if missing."""
    if name not in stored:
        return None
    try:
        value = json.loads(stored[name])
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValueError(f"{_place(key)} is damaged: {name} is not JSON ({error}).", _REDO) from error
    kind = list if name == "derived" else dict
    if not isinstance(value, kind):
        raise InvalidValueError(f"{_place(key)} is damaged: {name} must be a {kind.__name__}, got {value!r}.", _REDO)
    return value


def _card(stored: Mapping[str, Any], key: str) -> ModelCard | None:
    if "card" not in stored:
        return None
    try:
        return ModelCard.from_json(stored["card"])
    except StPredictError as error:
        raise error.about(f"{_place(key)} cannot be used.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidValueError(f"{_place(key)} is damaged: its card cannot be read ({error}).", _REDO) from error


def _fields(uns: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the stored record of a key; empty if there is none."""
    found = _stored(uns).get(key)
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


def _stored(uns: Mapping[str, Any]) -> Mapping[str, Any]:
    found = uns.get(Keys.UNS, {})
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}
