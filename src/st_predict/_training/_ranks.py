"""Devices of a training, and the number of this process among those that train together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from st_predict._errors import Advice, InvalidValueError
from st_predict._validated import Count, Natural, check

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Ranks", "Strategy"]

Strategy = Literal["auto", "ddp", "ddp_find_unused_parameters_true"]

ONE_DEVICE: Literal["auto"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Processes that train together, one per device.

    Parameters
    ----------
    devices
        Number of devices per machine, or their indices.
    num_nodes
        Number of machines.
    strategy
        Strategy of Lightning.
    rank
        Number of this process; process 0 writes the results.
    local_rank
        Number of this process on its machine.
    external
        Whether another program, such as torchrun or srun, has started the processes.
    """

    devices: int | list[int] = 1
    num_nodes: int = 1
    strategy: str = ONE_DEVICE
    rank: int = 0
    local_rank: int = 0
    external: bool = False

    @classmethod
    def of(
        cls,
        devices: int | Sequence[int],
        num_nodes: int,
        strategy: Strategy,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> Ranks:
        """Check the arguments, and read the number of this process from the environment.

        Parameters
        ----------
        devices
            Number of devices per machine, or their indices.
        num_nodes
            Number of machines.
        strategy
            Strategy of Lightning; ``"auto"`` is ``"ddp"`` on several devices.
        environment
            Environment variables; ``None`` for this process's own.

        Raises
        ------
        ValueError
            If an argument is invalid, or several machines are asked for and nothing has started a process on each.
        """
        asked: int | list[int] = check("devices", devices, Count | list[Natural])
        num_nodes, strategy = check("num_nodes", num_nodes, Count), check("strategy", strategy, Strategy)
        n = asked if isinstance(asked, int) else len(set(asked))
        if n == 0 or (not isinstance(asked, int) and n < len(asked)):
            raise InvalidValueError(f"The devices must be different indices, got {asked}.")
        if n * num_nodes == 1:
            return cls(devices=asked)
        strategy = "ddp" if strategy == ONE_DEVICE else strategy
        ranks = _started(os.environ if environment is None else environment, n)
        if ranks is None and num_nodes > 1:
            raise InvalidValueError(
                f"Nothing has started this program on {num_nodes} machines.",
                "start it once per device, with torchrun or srun",
                Advice("train on this machine only, with {}", "num_nodes", 1),
            )
        _check_number(os.environ if environment is None else environment, n * num_nodes, started=ranks is not None)
        rank, local_rank = ranks or (0, 0)
        return cls(
            devices=asked,
            num_nodes=num_nodes,
            strategy=strategy,
            rank=rank,
            local_rank=local_rank,
            external=ranks is not None,
        )

    @property
    def n_local(self) -> int:
        """Number of processes per machine."""
        return self.devices if isinstance(self.devices, int) else len(self.devices)

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.n_local * self.num_nodes

    def describe(self) -> dict[str, int]:
        """Return the card's entry about several devices."""
        return {} if self.world == 1 else {"devices": self.world}

    def wait(self) -> None:
        """Wait for all processes, if another program has started them: the first one still writes the results."""
        if self.external:
            import torch

            torch.distributed.barrier()

    @property
    def writes(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0


def _check_number(environment: Mapping[str, str], world: int, *, started: bool) -> None:
    """Refuse another number of processes than devices: each process trains on its share of the spots."""
    n = int(environment.get("WORLD_SIZE", world)) if started else world
    if n != world:
        raise InvalidValueError(
            f"{n} processes were started, but devices and num_nodes name {world}.",
            Advice("make them agree by {}", "devices"),
            "start as many processes",
        )


def _started(environment: Mapping[str, str], n_local: int) -> tuple[int, int] | None:
    """Return this process's number, and its number on its machine, if another program has started the processes."""
    if "RANK" in environment and "LOCAL_RANK" in environment:  # torchrun
        return int(environment["RANK"]), int(environment["LOCAL_RANK"])
    if "LOCAL_RANK" in environment:  # Lightning's own names
        local_rank = int(environment["LOCAL_RANK"])
        return int(environment.get("NODE_RANK", 0)) * n_local + local_rank, local_rank
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1:  # srun
        return int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
    return None
