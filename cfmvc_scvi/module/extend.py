"""A trained module with rows added to its tables: new batches, cell types and perturbations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.module.cfmvc_module import CFMVCModule

#: Tables with a row for every cell type; all others that grow have one for every batch.
_OF_LABELS = ("encoder.covariates.tables.1.weight", "context_encoder.covariates.tables.1.weight", "adapter.gate.weight")
#: Cells at which what they say of a new batch has half its full weight.
_HALF_WEIGHT = 10.0
#: Counts of every gene, and of what is expected of it, that draw the ratio of the two towards 1.
_PSEUDOCOUNT = 2.0
#: Rounds in which the decoder's offset is found.
_N_ROUNDS = 10


@torch.no_grad()
def take_over(module: CFMVCModule, trained: Mapping[str, Tensor], like: Sequence[int]) -> None:
    """Give a larger module the weights of a trained one, so that it does with its levels what that one did.

    A new batch is the average of the trained ones and a new cell type is like one of them, until cells say more
    (:func:`set_batch`); a new perturbation without a vector does nothing.

    Parameters
    ----------
    module
        The larger module: more batches, cell types or perturbation features; else of the same shape.
    trained
        State of the trained one.
    like
        For each new cell type, the code of the trained one that it is taken for.
    """
    state = {}
    for name, new in module.state_dict().items():
        old = trained[name].to(new.device)
        if old.shape == new.shape:
            state[name] = old
        elif name == "decoder.output.weight":
            state[name] = _with_offsets(module, old)
        elif name == "adapter.first.weight":
            state[name] = torch.cat([old, old.new_zeros(len(old), new.shape[1] - old.shape[1])], dim=1)
        elif name in _OF_LABELS and len(new) - len(old) == len(like):
            state[name] = torch.cat([old, old[torch.as_tensor(list(like), dtype=torch.long)]])
        else:
            state[name] = torch.cat([old, old.mean(dim=0, keepdim=True).expand(len(new) - len(old), *old.shape[1:])])
    module.load_state_dict(state)


def _with_offsets(module: CFMVCModule, old: Tensor) -> Tensor:
    """Weights of the decoder's output with zero offsets of new batches; those of the trained ones sum to zero."""
    n_offsets = module.decoder.n_offsets
    n_before = module.decoder.output.in_features - n_offsets
    latent, offsets = old[:, :n_before], old[:, n_before:]
    if offsets.shape[1]:
        offsets = offsets - offsets.mean(dim=1, keepdim=True)
    return torch.cat([latent, offsets, old.new_zeros(len(old), n_offsets - offsets.shape[1])], dim=1)


@torch.no_grad()
def set_batch(module: CFMVCModule, code: int, cells: CellTable, profiles: np.ndarray) -> None:
    r"""Set what belongs to a new batch from its control cells of trained types, in closed form.

    What the encoder takes off its input is the mean difference of the cells from the trained controls of their type,
    times :math:`n / (n + 10)` with n cells. The prior of the technical latent has the moments of the cells' posteriors.
    The decoder's offset is the log ratio of the summed counts to those that are decoded without it, both with a
    pseudocount, in ten rounds, since shares sum to one. The other batches keep what they had.

    Parameters
    ----------
    module
        After :func:`take_over`.
    code
        Code of the batch.
    cells
        Its control cells of cell types that were trained on.
    profiles
        Mean log1p CP10k of the trained control cells of each of these cells' types, shape (n, n_genes).
    """
    module.eval()
    batch = cells.batch(slice(None)).to(module.device)
    lognorm = batch.lognorm.dense()
    difference = lognorm.mean(dim=0) - torch.from_numpy(profiles.mean(axis=0)).to(lognorm)
    module.encoder.gene_offset[code] = len(cells) / (len(cells) + _HALF_WEIGHT) * difference
    intrinsic, technical = module.posterior_of(batch)
    variance = technical.loc.var(dim=0, correction=0) + technical.variance.mean(dim=0)
    module.tech_prior_mean.weight[code] = technical.loc.mean(dim=0)
    module.tech_prior_logvar.weight[code] = variance.log()
    seen, library = batch.counts.dense().sum(dim=0), batch.library.to(lognorm)[:, None]
    weight, output = module.decoder.offset_weight, module.decoder.output
    for _ in range(_N_ROUNDS):
        share = module.decoder.share(intrinsic.loc, technical.loc, batch.context.batch)
        before = (share * library).sum(dim=0) / weight[:, code].exp()
        ratio = ((seen + _PSEUDOCOUNT) / (before + _PSEUDOCOUNT)).log()
        output.bias.add_((ratio - weight[:, code]) / module.decoder.n_offsets)  # the mean is taken off all batches
        weight[:, code] = ratio
