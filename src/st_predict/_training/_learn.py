"""Train a network as its model needs: in closed form, by gradients, or in rounds of pseudo-labelling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st_predict import checkpoints
from st_predict._runtime import Inference, pick_device
from st_predict._training._loader import in_order
from st_predict._training._ranks import Ranks
from st_predict._training._scores import validation_scores
from st_predict.models import get_spec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from st_predict._training._config import TrainConfig
    from st_predict._training._loader import Loader
    from st_predict._training._store import CropStore
    from st_predict.models import SpotModel
    from st_predict.specs import ModelCard

__all__ = ["learn"]


def learn(
    card: ModelCard,
    data: CropStore,
    val_data: CropStore | None = None,
    *,
    config: TrainConfig,
    folder: Path,
    resume: bool = False,
    unlabelled: CropStore | None = None,
    rounds: int = 5,
    ranks: Ranks | None = None,
) -> tuple[SpotModel, list[dict[str, float]]]:
    """Train the network of a card.

    Parameters
    ----------
    card
        Network, panel and units.
    data
        Training spots.
    val_data
        Validation spots, which choose the best epoch. Without them, the last epoch is kept.
    config
        Configuration of training.
    folder
        Existing folder for the state of an interrupted run; not used by models in closed form.
    resume
        Whether to continue from the last epoch in ``folder``.
    unlabelled
        Spots without target, for pseudo-labelling.
    rounds
        Number of rounds of pseudo-labelling.
    ranks
        Devices, and the number of this process; ``None`` for one device.

    Returns
    -------
    tuple of SpotModel and list
        The trained network in evaluation mode, and the history of scores per epoch.
    """
    if get_spec(card.model).closed_form:
        return solve(card, data, val_data, config=config)
    # importing Lightning takes 2 s; only training should pay for it
    from st_predict._training._fit import fit
    from st_predict._training._rounds import fit_rounds
    from st_predict._training._several import fit_on_several

    if unlabelled is None:
        ranks = ranks or Ranks()
        function = fit if ranks.world == 1 or ranks.external else fit_on_several
        network, history = function(card, data, val_data, config=config, folder=folder, resume=resume, ranks=ranks)
    else:
        network, history = fit_rounds(
            card, data, val_data, unlabelled, config=config, folder=folder, resume=resume, rounds=rounds
        )
    network.finalize(in_order(data, card, config))
    return network, history


def solve(
    card: ModelCard, data: CropStore, val_data: CropStore | None = None, *, config: TrainConfig
) -> tuple[SpotModel, list[dict[str, float]]]:
    """Fit a model in closed form."""
    network = checkpoints.build(card).eval()
    network.finalize(in_order(data, card, config))
    scores = {} if val_data is None else _validate(network, val_data, in_order(val_data, card, config))
    return network, [{"epoch": 0, **scores}]


def predict(network: SpotModel, loader: Loader) -> NDArray[np.float32]:
    """Predict all spots on the CPU, ``(n_spots, n_genes)``."""
    inference = Inference(network, device=pick_device("cpu"), precision="float32")
    return np.concatenate([prediction.numpy() for _, prediction in inference.over(loader)])


def _validate(network: SpotModel, val_data: CropStore, loader: Loader) -> dict[str, float]:
    scores = validation_scores(predict(network, loader), val_data.target, val_data.section)
    return {**scores, "val_loss": scores["val_mse"]}
