"""Released checkpoints: part of the package, or downloaded once and verified."""

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
        Name that users write as ``model=``: ``name`` or ``name@version``.
    version
        Version of the weights.
    file
        Name of the file, in the package or under the base URL.
    sha256, n_bytes
        SHA-256 and size of the file.
    embedded
        Whether the file is part of the package.
    summary
        Training data.
    note
        Advice for prediction; logged once.

    Examples
    --------
    >>> import st_predict as stp
    >>> weights = stp.checkpoints.list_weights()[0]
    >>> weights.name, weights.version, weights.embedded
    ('m2ost', '3', True)
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
    """Protocol of a training result with a checkpoint file, such as :class:`st_predict.tl.TrainResult`.

    Examples
    --------
    >>> from pathlib import Path
    >>> import st_predict as stp
    >>> class Result:
    ...     checkpoint = Path("run/ridge.safetensors")
    >>> isinstance(Result(), stp.checkpoints.Trained)
    True
    """

    @property
    def checkpoint(self) -> Path:
        """Path of the ``.safetensors`` file."""


def list_weights() -> list[Weights]:
    """List the released checkpoints, newest version of each name first.

    Returns
    -------
    list of Weights
        One entry per released checkpoint.

    Examples
    --------
    >>> import st_predict as stp
    >>> [f"{weights.name}@{weights.version}" for weights in stp.checkpoints.list_weights()]
    ['m2ost@3', 'ridge-effnet@1', 'm2ost@1']
    """
    try:
        return [Weights(**entry) for entry in _index()["weights"]]
    except StPredictError as error:
        raise error.about(f"{str(_FOLDER / _INDEX)!r} is damaged.") from error
    except (KeyError, TypeError) as error:
        raise _damaged(error) from error


def name_of(model: PathLike[str] | str | Trained) -> str:
    """Return the name of a checkpoint as records and messages show it.

    Parameters
    ----------
    model
        Name of released weights, path of a ``.safetensors`` file, or training result.

    Returns
    -------
    str
        The name or path as given, or the path of the training result.

    Raises
    ------
    TypeError
        If ``model`` is of another type.

    Examples
    --------
    >>> from pathlib import Path
    >>> import st_predict as stp
    >>> stp.checkpoints.name_of("m2ost@1"), stp.checkpoints.name_of(Path("run/ridge.safetensors"))
    ('m2ost@1', 'run/ridge.safetensors')
    """
    given = model.checkpoint if isinstance(model, Trained) else model
    if isinstance(given, str | os.PathLike) and isinstance(text := os.fspath(given), str):
        return text
    raise InvalidTypeError(
        f"model must be the name of released weights, the path of a .safetensors file or a training result, got {_short(given)}."
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


@shows_progress
def find_weights(
    model: PathLike[str] | str | Trained, *, mirror: str | None = None, progress: bool | None = None
) -> Path:
    """Path of a checkpoint. Released checkpoints are downloaded if missing.

    Parameters
    ----------
    model
        Path of a ``.safetensors`` file, training result, or ``name`` or ``name@version`` of a released checkpoint.
    mirror
        Address of the folder with the released files, instead of ``ST_PREDICT_WEIGHTS_URL`` and the index's ``base_url``, which
        is empty as long as the project has no download address.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Path
        Path of the file. The SHA-256 of released files is verified on every call.

    Raises
    ------
    FileNotFoundError
        If ``model`` looks like a path and the file does not exist.
    KeyError
        If no released checkpoint has that name. The message lists existing ones and the closest match, and says how to train a
        model without released weights.
    ValueError
        If the file differs from the released one.
    ConnectionError
        If the file is not in the cache and cannot be downloaded, no download address is set, or ``ST_PREDICT_OFFLINE`` is set; the
        message says where to put the file.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.checkpoints.find_weights("m2ost").name
    'm2ost-3.safetensors'
    """
    text, mirror = name_of(model), check("mirror", mirror, Text | None)
    released = list_weights()
    for weights in released:
        if text in {weights.name, f"{weights.name}@{weights.version}"}:
            return _get(weights, mirror)
    if Path(text).is_file():
        return Path(text)
    if text.endswith(".safetensors") or os.sep in text:
        raise FileNotFoundError(f"Found no checkpoint {text!r}.")
    raise _unknown(text, released)


def _unknown(text: str, released: list[Weights]) -> NotFoundError:
    """Error that lists alternatives to ``text``."""
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
            f"{weights.name}@{weights.version} is not there, and {OFFLINE} forbids downloads. {by_hand}"
        )
    try:
        return download(url, path, sha256=weights.sha256, n_bytes=weights.n_bytes)
    except ConnectionError as error:
        raise ConnectionError(f"{error} {by_hand} {WEIGHTS_URL} names a mirror.") from error


def _without_address(weights: Weights, path: Path) -> Path:
    """Return the verified file, which must already be in place: the index has no download address."""
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
