"""Run networks: device, precision, batches."""

from __future__ import annotations

from st_predict._runtime._compute import Compute
from st_predict._runtime._device import pick_device, pick_precision
from st_predict._runtime._inference import Inference, Moments
from st_predict._runtime._network import Network
from st_predict._runtime._process import keeping_generator

__all__ = ["Compute", "Inference", "Moments", "Network", "keeping_generator", "pick_device", "pick_precision"]
