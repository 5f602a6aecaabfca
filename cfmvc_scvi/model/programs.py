"""What each basis field of the velocity does to genes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from cfmvc_scvi._base import single_precision
from cfmvc_scvi._constants import CP10K
from cfmvc_scvi.calibration.reference import ReferenceCells
from cfmvc_scvi.cells.reader import unknown_level_message
from cfmvc_scvi.flow import Solver
from cfmvc_scvi.model.inspect import InspectionMixin
from cfmvc_scvi.prediction.request import default_solver


class ProgramMixin(InspectionMixin):
    """Effect programs of :class:`~cfmvc_scvi.CFMVC`.

    Relies on the effect coefficients of :class:`~cfmvc_scvi.model.inspect.InspectionMixin` and on the calibration's
    reference cells.
    """

    @single_precision
    def get_effect_basis(
        self, labels: str | None = None, *, n_top: int | None = None, step: float | None = None
    ) -> pd.DataFrame:
        r"""What each basis field does to genes, per unit of its coefficient.

        Control cells are carried along one basis field at a time and decoded,

        .. math:: \frac{1}{2 h} \left[ y(z + \phi_1(z_0; h e_k) - \phi_1(z_0; 0))
                  - y(z + \phi_1(z_0; -h e_k) - \phi_1(z_0; 0)) \right], \qquad y = \log(1 + 10^4 \rho)

        (a central difference, :math:`\phi_1` the flow to time 1 with the coefficients given), and averaged over cells.
        With :meth:`get_effect_coefficients` it says what a perturbation is made of: coefficients times basis is, to
        first order, its decoded change. The change is the latent path's own, before calibration.

        Parameters
        ----------
        labels
            Cell type whose control cells are carried; ``None`` averages over all cell types, each of which counts the
            same.
        n_top
            ``None`` returns all genes; a number returns the genes with the largest change of each basis instead.
        step
            :math:`h`, in units of the coefficients; ``None`` is for each basis the root mean square of its coefficients
            over the training perturbations.

        Returns
        -------
        DataFrame (basis x genes): change of log1p of counts per 10,000 (a natural-log fold change with a pseudocount of
        one in 10,000 counts) per unit of coefficient. With ``n_top``, a long table ``basis``, ``rank``, ``gene``,
        ``log_fold_change``, ranked by size.

        Raises
        ------
        ValueError
            For an unknown cell type, or a step or number of genes that is not positive.
        RuntimeError
            When the flow is not trained.
        """
        self._require_flow("decode its basis")
        if step is not None and not step > 0:
            raise ValueError(f"`step` is {step}; it must be positive, or None.")
        if n_top is not None and n_top < 1:
            raise ValueError(f"`n_top` is {n_top}; it must be at least 1, or None for all genes.")
        if labels is not None and labels not in self.cell_types:
            raise ValueError(unknown_level_message("cell type", "`labels`", [str(labels)], self.cell_types))
        codes = range(len(self.cell_types)) if labels is None else [self.cell_types.index(labels)]
        size = np.sqrt((self.get_effect_coefficients().to_numpy() ** 2).mean(axis=0))
        steps = np.where(size > 0, size, 1.0) if step is None else np.full(len(size), step)
        values = np.mean([self._decode_basis(code, steps) for code in codes], axis=0)
        names = pd.Index([f"basis_{k}" for k in range(len(values))], name="basis")
        table = pd.DataFrame(values, index=names, columns=pd.Index(self.get_var_names(), name="gene"))
        return table if n_top is None else rank_genes(table, n_top)

    @torch.inference_mode()
    def _decode_basis(self, code: int, steps: np.ndarray) -> np.ndarray:
        """Mean change (n_basis, n_genes) of reference cells per unit of each coefficient."""
        solver = default_solver()
        cells = self._calibration.reference(code, solver)
        changes = []
        for k, step in enumerate(steps.tolist()):
            up, down = (self._level_along(cells, k, sign * step, solver) for sign in (1.0, -1.0))
            changes.append((up - down).mean(axis=0) / (2.0 * step))
        return np.stack(changes)

    def _level_along(self, cells: ReferenceCells, basis: int, coefficient: float, solver: Solver) -> np.ndarray:
        """Decoded log1p CP10k (n, n_genes) of cells that are carried along one basis field."""
        alpha = torch.zeros(len(cells.z), self.module.flow_field.n_basis, device=cells.z.device)
        alpha[:, basis] = coefficient
        end = cells.z + self.module.displacement(alpha, cells.flow, solver)
        return np.log1p(CP10K * cells.decoded(end, self.module).exp().numpy())


def rank_genes(table: pd.DataFrame, n_top: int) -> pd.DataFrame:
    """Genes with the largest absolute value in each row of a table (basis x genes), as a long table."""
    n_top = min(n_top, table.shape[1])
    rows = []
    for name, values in table.iterrows():
        best = np.argsort(-np.abs(values.to_numpy()), kind="stable")[:n_top]
        rows += [(name, rank + 1, table.columns[i], values.iloc[i]) for rank, i in enumerate(best)]
    return pd.DataFrame(rows, columns=[table.index.name, "rank", "gene", "log_fold_change"])
