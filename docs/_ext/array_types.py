"""Show array types by their class: ``ndarray``, without the type variables of its shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_origin

import numpy as np

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config


def format_array(annotation: Any, _config: Config) -> str | None:
    """Return the role for an array, and ``None`` for anything else, which is formatted as usual."""
    return (
        ":py:class:`~numpy.ndarray`" if get_origin(annotation) is np.ndarray else None
    )


def setup(app: Sphinx) -> dict[str, Any]:
    """Give the function to sphinx-autodoc-typehints."""
    app.connect(
        "config-inited",
        lambda _app, config: setattr(config, "typehints_formatter", format_array),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
