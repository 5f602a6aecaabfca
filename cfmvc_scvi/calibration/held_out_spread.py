r"""What cells outside training say of the spread within a population: how much of it the latent explains.

The decoder remembers its training cells: their decoded means follow their own counts, noise included, and the
dispersion that is learned beside them is too small. For validation cells, encoded with a tenth of the genes hidden at a
time, the decoded means of the hidden genes know nothing of these genes' own noise. With :math:`\mu_{ig}` the mean of a
cell's population at its library size and :math:`d_{ig}` the decoded deviation from it on the log scale,

.. math:: E[x_{ig}] \approx \mu_{ig} \, e^{\lambda_g d_{ig}}, \qquad
          \hat\lambda_g = \frac{\sum_i w_{ig} (x_{ig} - \mu_{ig}) d_{ig}}{\sum_i w_{ig} \mu_{ig} d_{ig}^2}, \qquad
          w_{ig} = \frac{1}{1 + \phi_g \mu_{ig}}

(one step of iteratively reweighted least squares), drawn towards the typical gene by its standard error. The part
:math:`R_g^2 = \sum_i \mu_{ig}^2 (e^{\lambda_g d_{ig}} - 1)^2 / (\phi_g \sum_i \mu_{ig}^2)` of the overdispersion
:math:`\phi_g` within populations belongs to the latent, the rest to the likelihood: :math:`1 / \theta_g = (1 - R_g^2)
\phi_g`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse

from cfmvc_scvi._constants import CP10K
from cfmvc_scvi._types import CellSplit
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.module import CFMVCModule

#: Parts of the genes that are hidden in turn.
_N_PARTS = 10
#: Cells of a population that its mean takes; smaller ones are pooled over the perturbations of their batch and type.
_MIN_CELLS = 5
#: Validation cells below which the spread stays as it was learned.
_MIN_VALIDATION = 50
#: Most cells of training and of validation that are read.
_MOST_CELLS = 2048
#: Halvings of the interval in which the factor on deviations is looked for.
_N_HALVINGS = 8
#: Largest part of the overdispersion that the latent may take.
_MOST_EXPLAINED = 0.98


@dataclass(frozen=True)
class HeldOutSpread:
    """Spread within populations, per gene; each (n_genes,).

    Attributes
    ----------
    explained
        Part of the overdispersion that the latent explains in cells outside training, 0 to 1.
    signal
        Factor on the deviations of decoded training cells from their population, on the log scale, that gives them
        the spread that is explained.
    """

    explained: np.ndarray
    signal: np.ndarray


def set_spread(module: CFMVCModule, cells: CellTable, condition: np.ndarray, split: CellSplit, seed: int = 0) -> None:
    """Give the likelihood and the module the spread that validation cells show; nothing changes without enough of them.

    Parameters
    ----------
    module
        With a trained stage 1.
    cells, condition
        All cells and the code of each one's condition, shape (n,).
    split
        Rows of training and validation cells.
    seed
        Of all draws.
    """
    module.gene_signal.fill_(1.0)
    overdispersion = module.likelihood.overdispersion
    if overdispersion is None or len(split.validation) < _MIN_VALIDATION:
        return
    rng = np.random.default_rng(seed)

    def some(rows: np.ndarray) -> tuple[CellTable, np.ndarray]:
        rows = np.sort(rng.choice(rows, _MOST_CELLS, replace=False)) if len(rows) > _MOST_CELLS else rows
        table = cells.take(rows)
        context = table.context
        return table, populations_of(context.batch.numpy(), context.labels.numpy(), condition[rows])

    spread = held_out_spread(module, some(split.train), some(split.validation), overdispersion, seed)
    module.likelihood.leave_to_latent(spread.explained)
    module.gene_signal.copy_(torch.from_numpy(spread.signal))


def populations_of(batch: np.ndarray, labels: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Code of every cell's population (n,): batch, cell type and condition; without the condition where it is small."""
    fine, coarse = (
        np.unique(np.stack(columns), axis=1, return_inverse=True)[1].ravel()
        for columns in ([batch, labels, condition], [batch, labels])
    )
    small = np.bincount(fine)[fine] < _MIN_CELLS
    return np.unique(np.where(small, -1 - coarse, fine), return_inverse=True)[1]


def keep_signal(
    log_share: Float[np.ndarray, "n n_genes"],
    library: Float[np.ndarray, " n"],
    population: Int[np.ndarray, " n"],
    signal: Float[np.ndarray, " n_genes"],
) -> Float[np.ndarray, "n n_genes"]:
    """Log shares whose deviations from their population's mean are multiplied, while its mean counts stay.

    Parameters
    ----------
    log_share
        Log of decoded shares, shape (n, n_genes).
    library
        Library sizes, shape (n,).
    population
        Code of every cell's population, shape (n,).
    signal
        Factor per gene, :attr:`HeldOutSpread.signal`.
    """
    if (signal == 1.0).all():
        return log_share
    population = np.unique(population, return_inverse=True)[1]
    member, _ = _members(population)
    kept = signal * _deviation(log_share, population)
    weighted = member.multiply(library).tocsr()
    level = np.log((weighted @ np.exp(log_share)) / np.maximum(weighted @ np.exp(kept), 1e-30))
    return (level[population] + kept).astype(log_share.dtype)


@torch.inference_mode()
def drawn_shares(module: CFMVCModule, cells: CellTable, rng: np.random.Generator) -> Float[np.ndarray, "n n_genes"]:
    """Log of the shares of every gene, decoded from one draw of both latents of each cell; shape (n, n_genes)."""
    batch = cells.batch(slice(None)).to(module.device)
    draws = []
    for posterior in module.posterior_of(batch):
        noise = torch.from_numpy(rng.standard_normal(tuple(posterior.loc.shape), dtype=np.float32))
        draws.append(posterior.loc + posterior.scale * noise.to(module.device))
    return module.decoder(*draws, batch.context.batch).cpu().numpy()


@torch.inference_mode()
def held_out_spread(
    module: CFMVCModule,
    training: tuple[CellTable, np.ndarray],
    validation: tuple[CellTable, np.ndarray],
    overdispersion: np.ndarray,
    seed: int = 0,
) -> HeldOutSpread:
    """Spread that the latent explains; see the head of this file.

    Parameters
    ----------
    module
        With a trained stage 1.
    training, validation
        Cells and the codes of their populations (n,).
    overdispersion
        Overdispersion :math:`phi` of every gene within populations, shape (n_genes,).
    seed
        Of the parts of the genes, and of the draws of the latents.
    """
    module.eval()
    cells, population = validation
    counts = cells.dense(slice(None)).astype(np.float64)
    hidden = _decoded_while_hidden(module, cells, counts, seed)
    member, n = _members(population)
    library = cells.library.astype(np.float64)
    rate = (member @ counts) / (member @ library)[:, None]
    mean = rate[population] * library[:, None]
    deviation = _deviation(hidden, population)
    several = (n[population] > 1)[:, None]
    weight = several / (1.0 + overdispersion * mean)
    information = (weight * mean * deviation**2).sum(axis=0)
    slope = _towards_typical((weight * (counts - mean) * deviation).sum(axis=0), information)
    ratio = np.exp(slope * deviation)
    ratio /= ((member @ (library[:, None] * ratio)) / (member @ library)[:, None])[population]
    moved = (several * (mean * (ratio - 1.0)) ** 2).sum(axis=0)
    square = np.maximum((several * mean**2).sum(axis=0), 1e-12)
    explained = np.minimum(moved / square / overdispersion, _MOST_EXPLAINED)
    cells, population = training
    drawn = drawn_shares(module, cells, np.random.default_rng(seed))
    signal = _factor(drawn, cells.library, population, explained * overdispersion)
    return HeldOutSpread(explained, signal.astype(np.float32))


def _members(population: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Indicator of the cells of every population (n_populations, n), and how many they are."""
    member = sparse.csr_matrix((np.ones(len(population)), (population, np.arange(len(population)))))
    return member, np.asarray(member.sum(axis=1)).ravel()


def _deviation(log_share: np.ndarray, population: np.ndarray) -> np.ndarray:
    """Log shares (n, n_genes) less the mean of their population."""
    member, n = _members(population)
    return log_share - ((member @ log_share) / n[:, None])[population]


def _towards_typical(score: np.ndarray, information: np.ndarray) -> np.ndarray:
    """Slopes score / information within [0, 1.5], drawn towards their weighted mean by their errors (normal-normal)."""
    seen = information > 1e-9
    if not seen.any():
        return np.zeros_like(score)
    slope, variance = np.zeros_like(score), np.full_like(score, np.inf)
    slope[seen], variance[seen] = score[seen] / information[seen], 1.0 / information[seen]
    typical = np.average(slope[seen], weights=information[seen])
    excess = (slope[seen] - typical) ** 2 - variance[seen]
    between = max(float(np.average(excess, weights=information[seen] ** 2)), 0.0)
    weight = between / (between + variance) if between > 0 else np.zeros_like(score)
    return np.clip(weight * slope + (1.0 - weight) * typical, 0.0, 1.5)


def _decoded_while_hidden(module: CFMVCModule, cells: CellTable, counts: np.ndarray, seed: int) -> np.ndarray:
    """Log share of every gene, decoded from cells that were encoded without it; shape (n, n_genes)."""
    expression = torch.from_numpy(np.log1p(CP10K * counts / cells.library[:, None]).astype(np.float32))
    center = expression.mean(dim=0)
    part = np.random.default_rng(seed).permutation(np.arange(counts.shape[1]) % _N_PARTS)
    out = np.empty(counts.shape)
    for k in range(min(_N_PARTS, counts.shape[1])):
        hide = torch.from_numpy(part == k)
        x = torch.where(hide, center, expression).to(module.device)
        context = cells.context.to(module.device)
        q = module.encoder(x, context.codes, context.continuous)
        share = module.decoder(q.intrinsic[0], q.technical[0], context.batch)
        out[:, part == k] = share.cpu().numpy()[:, part == k]
    return out


def _factor(log_share: np.ndarray, library: np.ndarray, population: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Factor on the deviations, 0 to 1, with which means vary around their population's by ``wanted`` of its square."""
    member, n = _members(population)
    weighted = member.multiply(library / np.bincount(population, library)[population]).tocsr()
    several = (n[population] > 1)[:, None]
    mean = library[:, None] * (weighted @ np.exp(log_share))[population]
    square = np.maximum((several * mean**2).sum(axis=0), 1e-30)
    deviation = _deviation(log_share, population).astype(np.float32)
    low, high = np.zeros(len(wanted)), np.ones(len(wanted))
    for _ in range(_N_HALVINGS):
        middle = (low + high) / 2
        moved = np.exp(deviation * middle.astype(np.float32))
        moved /= (weighted @ moved)[population]
        too_wide = (several * (mean * (moved - 1.0)) ** 2).sum(axis=0) / square > wanted
        low, high = np.where(too_wide, low, middle), np.where(too_wide, middle, high)
    return high
