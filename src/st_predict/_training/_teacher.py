"""Distillation: targets that a teacher has smoothed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from st_predict._errors import Advice, InvalidValueError
from st_predict._training._config import TrainConfig
from st_predict._training._learn import predict, solve
from st_predict._training._loader import in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_predict._training._store import CropStore
    from st_predict.specs import ModelCard

__all__ = ["teach"]


def teach(data: CropStore, read: CropStore, card: ModelCard, *, share: float) -> CropStore:
    """Mix each target with the prediction of a teacher that has not seen its section.

    Counts are noisy; a teacher with few parameters predicts what sections have in common. Each section is predicted by a teacher
    that was fitted to the others, so that the mixed target holds no noise of its own section twice.

    Parameters
    ----------
    data
        Training spots of the network.
    read
        The same spots in the same order, with the inputs of the teacher.
    card
        Card of the teacher: a model in closed form, with the panel and the units of the network.
    share
        Weight of the teacher in the mixed target, 0 to 1.

    Returns
    -------
    CropStore
        The training spots with mixed targets.

    Raises
    ------
    ValueError
        If there is only one section.
    """
    sections = np.unique(read.section)
    if len(sections) < 2:
        raise InvalidValueError(
            "A teacher predicts each section after it was fitted to the others, and there is only one section.",
            Advice("give several sections with {}", "sdatas"),
            Advice("leave out 'teacher' in {}", "config"),
        )
    taught = np.empty_like(data.target)
    for section in sections:
        own = read.section == section
        taught[own] = _predict(card, read.take(np.flatnonzero(~own)), read.take(np.flatnonzero(own)))
    return replace(data, target=((1 - share) * data.target + share * taught).astype(np.float32))


def _predict(card: ModelCard, others: CropStore, own: CropStore) -> NDArray[np.float32]:
    """Fit the teacher to some spots and predict others."""
    config = TrainConfig(device="cpu", precision="float32")
    network, _ = solve(card, others, config=config)
    return predict(network, in_order(own, card, config))
