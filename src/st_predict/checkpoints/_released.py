"""Released checkpoints: in the package, or fetched once and checked."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from st_predict._errors import InvalidTypeError, InvalidValueError, NotFoundError, StPredictError
from st_predict._files import OFFLINE, cache_dir, download, is_offline, sha256_of_file
from st_predict._progress import shows_progress
from st_predict._validated import Natural, Text, check, validated
from st_predict.models import list_models

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["Trained", "Weights", "find_weights", "list_weights", "name_of"]

WEIGHTS_URL = "ST_PREDICT_WEIGHTS_URL"
_FOLDER = Path(__file__).parent / "weights"
_INDEX = "index.json"


@validated
class Weights:
    """A released checkpoint.

    Parameters
    ----------
    name
        What a user writes as ``model=``: ``name`` or ``name@version``.
    version
        Of the weights.
    file
        Name of the file, in the package or under the base URL.
    sha256, n_bytes
        Of the file.
    embedded
        Whether it comes with the package.
    summary
        What it was trained on.
    note
        What whoever predicts with it should know; it is logged once.
    """

    name: str
    version: str
    file: str
    sha256: str
    n_bytes: Natural
    embedded: bool
    summary: str
    note: str = ""


@runtime_checkable
class Trained(Protocol):
    """Result of a training that has a checkpoint file, as :class:`st_predict.tl.TrainResult`."""

    @property
    def checkpoint(self) -> Path:
        """Path of the ``.safetensors`` file."""


def list_weights() -> list[Weights]:
    """Released checkpoints, the newest version of each name first."""
    try:
        return [Weights(**entry) for entry in _index()["weights"]]
    except StPredictError as error:
        raise error.about(f"{str(_FOLDER / _INDEX)!r} is damaged.") from error
    except (KeyError, TypeError) as error:
        raise _damaged(error) from error


def name_of(model: PathLike[str] | str | Trained) -> str:
    """Name of a checkpoint in records and messages: the path or name that was given, or the path of a training result.

    Raises
    ------
    TypeError
        If it is none of these.
    """
    given = model.checkpoint if isinstance(model, Trained) else model
    if isinstance(given, str | os.PathLike) and isinstance(text := os.fspath(given), str):
        return text
    raise InvalidTypeError(
        f"A model is the name of released weights, the path of a .safetensors file or a training result, got {_short(given)}."
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


@shows_progress
def find_weights(
    model: PathLike[str] | str | Trained, *, mirror: str | None = None, progress: bool | None = None
) -> Path:
    """Path of a checkpoint: a file, the file of a training result, or a released checkpoint, fetched if need be.

    Parameters
    ----------
    model
        Path of a ``.safetensors`` file, result of a training, or ``name`` or ``name@version`` of a released checkpoint.
    mirror
        Address of the folder that holds the released files, in place of ``ST_PREDICT_WEIGHTS_URL`` and of the ``base_url``
        of the index, which is empty as long as the project has no address for downloads.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Path of a file whose sha256, for a released one, was checked just now.

    Raises
    ------
    FileNotFoundError
        If ``model`` looks like a path and there is no such file.
    KeyError
        If there is no released checkpoint of that name; the message lists those there are, says how to train a model
        without released weights, and names the closest match of what is neither.
    ValueError
        If the file is not the one that was released.
    ConnectionError
        If it is not in the cache and cannot be downloaded, no download address is set, or ``ST_PREDICT_OFFLINE`` is set; the
        message says where to put it.
    """
    text, mirror = name_of(model), check("mirror", mirror, Text | None)
    released = list_weights()
    for weights in released:
        if text in {weights.name, f"{weights.name}@{weights.version}"}:
            return _get(weights, mirror)
    if Path(text).is_file():
        return Path(text)
    if text.endswith(".safetensors") or os.sep in text:
        raise FileNotFoundError(f"There is no checkpoint {text!r}.")
    raise _unknown(text, released)


def _unknown(text: str, released: list[Weights]) -> NotFoundError:
    """Say what there is instead of ``text``."""
    names = [f"{w.name}@{w.version}" for w in released]
    models = set(list_models()) - {w.name for w in released}
    if (model := text.partition("@")[0]) in models:
        return NotFoundError(
            f"The model {model!r} has no released weights; there are {names}.",
            "train it with st_predict.tl.train, and give the result or the path of its .safetensors file instead of the name",
            "import weights of its publication with st_predict.checkpoints.import_published",
        )
    close = get_close_matches(text.lower(), sorted({*names, *(w.name for w in released), *models}), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return NotFoundError(
        f"No released checkpoint {text!r}; there are {names}.{hint} A path of a .safetensors file works as well."
    )


def _get(weights: Weights, mirror: str | None) -> Path:
    path = (_FOLDER if weights.embedded else cache_dir() / "weights") / weights.file
    base = mirror or os.environ.get(WEIGHTS_URL) or _index()["base_url"]
    if not base:
        return _without_address(weights, path)
    url = f"{base.rstrip('/')}/{weights.file}"
    by_hand = f"By hand: get {_identity(weights)} from {url} and put it into {str(path.parent)!r}."
    if is_offline() and not path.exists():
        raise ConnectionError(
            f"{weights.name}@{weights.version} is not there, and {OFFLINE} forbids to fetch it. {by_hand}"
        )
    try:
        return download(url, path, sha256=weights.sha256, n_bytes=weights.n_bytes)
    except ConnectionError as error:
        raise ConnectionError(f"{error} {by_hand} {WEIGHTS_URL} names a mirror.") from error


def _without_address(weights: Weights, path: Path) -> Path:
    """Return the checked file, which can only be there already: the index names no download address."""
    if not path.exists():
        raise ConnectionError(
            f"{weights.name}@{weights.version} is not in {str(path.parent)!r}, and no download address of released weights "
            f"is set. Set {WEIGHTS_URL} to the address of a mirror, or put {_identity(weights)} there by hand."
        )
    if (digest := sha256_of_file(path)) != weights.sha256:
        raise InvalidValueError(
            f"{path} is not the expected file: SHA-256 {digest} instead of {weights.sha256}.",
            "install st_predict again" if weights.embedded else "replace it with the released file",
        )
    return path


def _identity(weights: Weights) -> str:
    return f"{weights.file} ({weights.n_bytes / 1e6:.1f} MB, SHA-256 {weights.sha256})"


def _index() -> dict[str, Any]:
    try:
        return json.loads((_FOLDER / _INDEX).read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> InvalidValueError:
    return InvalidValueError(
        f"{str(_FOLDER / _INDEX)!r} is not a list of weights ({type(error).__name__}: {error}).",
        "install st_predict again",
    )
