"""Data to work with: sections that are simulated, and sections that are downloaded."""

from __future__ import annotations

from st_predict.datasets._her2st import her2st
from st_predict.datasets._simulate import SectionTruth, Simulation, simulate, toy

__all__ = ["SectionTruth", "Simulation", "her2st", "simulate", "toy"]
