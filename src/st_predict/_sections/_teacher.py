"""The teacher of a distillation: ridge regression on features of the same spots."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from st_predict._errors import Advice, InvalidValueError
from st_predict._sections._inputs import encoder_of
from st_predict._sections._store import store_of
from st_predict._training import teach
from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from st_predict._runtime import Compute
    from st_predict._sections._observed import Observed
    from st_predict._training import CropStore, TrainConfig
    from st_predict.specs import ModelCard

__all__ = ["taught", "teacher_of"]


def teacher_of(card: ModelCard, hparams: Mapping[str, Any]) -> ModelCard:
    """Return the card of the teacher of a network, with its panel, units and resolution.

    Raises
    ------
    ValueError
        If ridge regression has no such hyper-parameters.
    """
    spec = get_spec("ridge")
    spec.check_names(hparams)
    settled = spec.complete({**spec.hparams, **hparams})
    crop = spec.crop_for(settled)
    crop = crop if card.crop.mpp is None else replace(crop, mpp=card.crop.mpp)
    return replace(card, model=spec.name, hparams=settled, crop=crop, pixels=spec.pixels_for(settled))


def taught(
    data: CropStore,
    observed: Sequence[Observed],
    card: ModelCard,
    config: TrainConfig,
    *,
    folder: Path,
    compute: Compute,
) -> CropStore:
    """Return training spots whose targets are mixed with the predictions of a teacher, if one is asked for.

    Parameters
    ----------
    data
        Training spots of the network.
    observed
        Their sections.
    card
        Card of the network.
    config
        ``teacher`` and ``teacher_share``.
    folder
        Place for the crops of a teacher that reads these.
    compute
        Device and precision of the features.
    """
    if config.teacher is None:
        return data
    teacher = teacher_of(card, config.teacher)
    if lacking := [one.section.image_key for one in observed if one.section.lacks(teacher.crop)]:
        raise InvalidValueError(
            f"The teacher needs all levels that it reads, and the images {sorted(set(lacking))} are coarser than some.",
            Advice("leave out 'teacher' in {}", "config"),
            Advice("leave out these sections and {}", "missing_levels"),
        )
    read = store_of(observed, teacher, encoder_of(teacher), folder=folder, compute=compute)
    return teach(data, read, teacher, share=config.teacher_share)
