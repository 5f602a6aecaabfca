"""Start of stage 1: the linear paths of encoder and decoder set to the leading components of the data."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd

from cfmvc_scvi._constants import CP10K
from cfmvc_scvi.module.batch_effects import batch_effects, batch_log_ratios
from cfmvc_scvi.module.cfmvc_module import CFMVCModule

#: Standard deviation given to the leading component, in latent units.
_LEADING_SCALE = 3.0
#: Log-variance the posterior of the intrinsic latent starts with.
_START_LOGVAR = -3.0


@torch.no_grad()
def initialize_linear_paths(
    module: CFMVCModule, counts: np.ndarray, library: np.ndarray, batch: np.ndarray, group: np.ndarray, seed: int = 0
) -> None:
    r"""Set encoder and decoder to the principal components of log1p of counts per 10,000.

    The components are those of the data after the batch effects are taken out, estimated beside the groups
    (cell type and perturbation) in one ridge regression. The batch effects become what the encoder takes off its
    input; the decoder's offsets start at their counterpart for the rates (:func:`batch_log_ratios`) and the
    dispersions at those of the counts around the groups' means. The decoder's linear map is the derivative of the log
    rate by log1p expression, :math:`1 / \max(\bar y_g, 0.3)` at most 2, times the loadings.

    Parameters
    ----------
    counts
        Raw counts of (a sample of) the training cells, shape (n, n_genes), dense float32. They are overwritten: the
        components are computed in their memory.
    library
        Library sizes, shape (n,).
    batch, group
        Integer codes of batch and of the biological group, shape (n,).
    """
    sums = counts.sum(axis=0, dtype=np.float64) + 0.5
    stratum = np.unique(np.stack([batch, group]), axis=1, return_inverse=True)[1].ravel()
    module.likelihood.start_from(counts, library, stratum, batch)
    if module.decoder.n_offsets:
        ratios = batch_log_ratios(counts, library, batch, group, module.n_batch)
        module.decoder.offset_weight.copy_(torch.from_numpy(ratios.T))
    y = _lognorm_in_place(counts, library)
    center = y.mean(axis=0)
    y -= center
    offsets = batch_effects(y, batch, group, module.n_batch)
    for start in range(0, len(y), 2048):
        y[start : start + 2048] -= offsets[batch[start : start + 2048]]
    n_components = min(module.n_latent, min(y.shape) - 1)
    if n_components < 1:
        raise ValueError(f"{len(y)} training cells and {y.shape[1]} genes are too few to train on.")
    _, singular, loadings = randomized_svd(y, n_components, random_state=seed)
    scale = float(singular[0]) / np.sqrt(len(y)) / _LEADING_SCALE
    weights = torch.from_numpy(loadings.astype(np.float32))
    _set_encoder(module, weights / scale, center, offsets)
    _set_decoder(module, weights * scale, sums, library, center)


def _lognorm_in_place(counts: np.ndarray, library: np.ndarray) -> np.ndarray:
    counts *= (CP10K / library.astype(np.float64)).astype(np.float32)[:, None]
    return np.log1p(counts, out=counts)


def _set_encoder(module: CFMVCModule, weights: torch.Tensor, center: np.ndarray, offsets: np.ndarray) -> None:
    encoder, k = module.encoder, len(weights)
    encoder.linear_weight.mul_(0.1)
    encoder.linear_weight[:, :k] = weights.T
    encoder.linear_bias.copy_(-torch.from_numpy(center) @ encoder.linear_weight)
    encoder.gene_offset.copy_(torch.from_numpy(offsets))
    logvar = slice(len(encoder.heads.weight) // 2, len(encoder.heads.weight) // 2 + module.n_latent)
    encoder.heads.weight[logvar] *= 0.1
    encoder.heads.bias[logvar] = _START_LOGVAR


def _set_decoder(
    module: CFMVCModule, weights: torch.Tensor, sums: np.ndarray, library: np.ndarray, center: np.ndarray
) -> None:
    decoder, k = module.decoder, len(weights)
    rest = max(float(library.sum() - sums.sum()), 1.0) if decoder.panel else float(sums.sum())
    decoder.output.bias.copy_(torch.from_numpy(np.log(sums / rest)))
    slope = np.minimum(1.0 / np.maximum(center, 0.3), 2.0).astype(np.float32)
    decoder.linear_weight.normal_(std=0.02)
    decoder.linear_weight[:, :k] = weights.T * torch.from_numpy(slope)[:, None]
