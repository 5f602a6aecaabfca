"""A decoded change, and how it is put on an observed cell."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from cfmvc_scvi._constants import CP10K
from cfmvc_scvi.likelihood import Likelihood


@dataclass(frozen=True)
class LevelChange:
    """What a perturbation does to the level of every gene in some cells; all of shape (n, n_genes), float32.

    Attributes
    ----------
    shift
        Change of log1p of counts per 10,000.
    scale, center
        Factor on the spread of the gene, and the level it spreads around.
    """

    shift: Float[Tensor, "*n n_genes"]
    scale: Float[Tensor, "*#n n_genes"]
    center: Float[Tensor, "*#n n_genes"]


@dataclass(frozen=True)
class RateChange:
    """What a perturbation does to the mean of every gene's counts in some cells; both of shape (n, n_genes).

    Attributes
    ----------
    log_ratio
        Log of the factor on the mean.
    mean0
        The mean before, in counts.
    """

    log_ratio: np.ndarray
    mean0: np.ndarray

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray, correction: np.ndarray, library: np.ndarray) -> RateChange:
        """Change between log shares, with a correction of the log ratio; library sizes (n,)."""
        return cls(after - before + correction, np.exp(before) * library[:, None])


def decoded_change(before: Float[Tensor, "n n_genes"], after: Float[Tensor, "n n_genes"]) -> Float[Tensor, "n n_genes"]:
    r"""Change of log1p of counts per 10,000 between shares, :math:`\log(1 + 10^4 a) - \log(1 + 10^4 b)`.

    Worked out as one logarithm, :math:`\log((10^{-4} + a) / (10^{-4} + b))`; of equal shares it is zero.
    """
    return torch.add(after, 1e-4).div_(before + 1e-4).log_()


def expected_counts(
    x: Float[np.ndarray, "n n_genes"],
    library: Float[np.ndarray, " n"],
    change: LevelChange,
    highest: Float[np.ndarray, " n_genes"],
) -> Float[np.ndarray, "n n_genes"]:
    r"""Counts of a cell after a change of its log1p counts per 10,000, at its own library size :math:`L`.

    .. math:: y' = \operatorname{clip}\left(y + \Delta + (k - 1)(y - m),\; 0,\; \max(y, h)\right), \qquad
              y = \log(1 + 10^4 x / L)

    solved for the counts as :math:`x' = x + (x + L / 10^4)(e^{y' - y} - 1)`, so that :math:`\Delta = 0, k = 1`
    returns :math:`x` to the bit.

    Parameters
    ----------
    x
        Observed counts, shape (n, n_genes).
    library
        Library sizes, shape (n,).
    change
        The shift :math:`\Delta`, the factor :math:`k` on the spread of the gene, and the level :math:`m` it spreads
        around.
    highest
        :math:`h`, the highest level of the gene in the training cells, which no change exceeds; shape (n_genes,).
    """
    counts = torch.from_numpy(x)
    unit = torch.from_numpy(library / np.float32(CP10K)).unsqueeze(-1)
    y = (counts / unit).log1p_()
    delta = (y - change.center).mul_(change.scale - 1.0).add_(change.shift)
    room = (torch.from_numpy(highest) - y).clamp_(min=0.0)
    delta = torch.minimum(torch.maximum(delta, y.neg_()), room)
    return delta.expm1_().mul_(counts + unit).add_(counts).clamp_(min=0.0).numpy()


def lognorm_expression(x: np.ndarray, library: np.ndarray) -> np.ndarray:
    """log1p of counts per 10,000, shape (n, n_genes), float32."""
    unit = torch.from_numpy(np.asarray(library, dtype=np.float32) / np.float32(CP10K)).unsqueeze(-1)
    return (torch.as_tensor(x, dtype=torch.float32) / unit).log1p_().numpy()


def drawn_counts(
    x: np.ndarray, batch: Tensor, change: RateChange, likelihood: Likelihood, generators: list[np.random.Generator]
) -> sparse.csr_matrix:
    """Counterfactual counts of cells of batches (n,), a generator per cell; CSR (n, n_genes) of float32 whole numbers.

    Raises
    ------
    ValueError
        When the cells hold values that are not counts.
    """
    if (x != np.floor(x)).any():
        raise ValueError(
            "`return_type='counts'` takes from or adds to the observed counts, and these cells have fractional values: "
            "choose 'mean', 'lognorm' or 'latent'."
        )
    rows = [
        sparse.csr_matrix(
            likelihood.in_batches(own).draw_counterfactual(cell, mean0, log_ratio, rng).astype(np.float32)
        )
        for own, cell, mean0, log_ratio, rng in zip(
            batch.split(1), x, change.mean0, change.log_ratio, generators, strict=True
        )
    ]
    return cast(sparse.csr_matrix, sparse.vstack(rows, format="csr"))


def cell_generators(names: list[str], seed: int, *purpose: object) -> list[np.random.Generator]:
    """One random generator per cell, fixed by the cell's name, the seed and the purpose alone.

    Draws for a cell are then the same whichever other cells are in the call and in whatever order. A name that
    occurs again gets a stream of its own.
    """
    seen: dict[str, int] = {}
    generators = []
    for name in names:
        occurrence = seen.get(name, 0)
        seen[name] = occurrence + 1
        digest = hashlib.blake2b(repr((name, occurrence, seed, *purpose)).encode(), digest_size=16).digest()
        key = np.frombuffer(digest, dtype=np.uint64)
        generators.append(np.random.Generator(np.random.Philox(key=key)))
    return generators
