"""One seeded split of the cells, for both stages; and which share of them a process has."""

from __future__ import annotations

import numpy as np
from lightning.pytorch import Trainer

from cfmvc_scvi._types import CellSplit


def split_cells(n_cells: int, train_size: float | None, validation_size: float | None, seed: int) -> CellSplit:
    """Draw training, validation and test rows.

    Parameters
    ----------
    n_cells
        Cells to split.
    train_size
        Fraction for training; ``None`` is 0.9.
    validation_size
        Fraction for validation; ``None`` is all the rest.
    seed
        The same seed gives the same split.
    """
    train_size = 0.9 if train_size is None else train_size
    validation_size = 1.0 - train_size if validation_size is None else validation_size
    if not 0.0 < train_size <= 1.0 or validation_size < 0.0 or train_size + validation_size > 1.0 + 1e-9:
        raise ValueError(
            f"`train_size` {train_size} and `validation_size` {validation_size} must be fractions, the first above 0, "
            "with a sum of at most 1."
        )
    n_train = max(1, round(n_cells * train_size))
    no_test = train_size + validation_size > 1.0 - 1e-9
    n_validation = n_cells - n_train if no_test else min(n_cells - n_train, round(n_cells * validation_size))
    rows = np.random.default_rng(seed).permutation(n_cells)
    cuts = [n_train, n_train + n_validation]
    train, validation, test = (np.sort(part) for part in np.split(rows, cuts))
    return CellSplit(train, validation, test)


def shard_of(trainer: Trainer | None, n_cells: int) -> tuple[int, int]:
    """Index of this process and number of processes that share the batches of some cells.

    Parameters
    ----------
    trainer
        What runs the processes; ``None`` outside a training.
    n_cells
        Cells to share. Where they are fewer than the processes, every process has them all.
    """
    if trainer is None or n_cells < trainer.world_size:
        return 0, 1
    return trainer.global_rank, trainer.world_size
