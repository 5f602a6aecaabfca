"""Looking inside the model: embeddings, effect coefficients, velocities."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData


class InspectionMixin:
    """Inspection of :class:`~cfmvc_scvi.CFMVC`."""

    def get_perturbation_embedding(self) -> pd.DataFrame:
        """Embedding of every perturbation of the training data, common to all cell types.

        Returns
        -------
        DataFrame (perturbation x dims); control, at the origin, comes first.
        """
        self._require_flow("embed perturbations")
        labels = [self.vocabulary.control_label, *sorted(self.vocabulary.names)]
        p = self._vectors(labels)
        with torch.inference_mode():
            values = self.module.adapter.embed(p).cpu().numpy()
        return pd.DataFrame(values, index=pd.Index(labels, name="perturbation"))

    def get_effect_coefficients(self) -> pd.DataFrame:
        """Effect coefficients alpha of every perturbation in every cell type.

        Returns
        -------
        DataFrame ((perturbation, cell type) x basis); exactly zero for control.
        """
        self._require_flow("give effect coefficients")
        labels = [self.vocabulary.control_label, *sorted(self.vocabulary.names)]
        types = self.cell_types
        p = self._vectors(labels).repeat_interleave(len(types), dim=0)
        codes = torch.arange(len(types), device=self._device).repeat(len(labels))
        with torch.inference_mode():
            alpha = self.module.coefficients(p, codes).cpu().numpy()
        index = pd.MultiIndex.from_product([labels, types], names=["perturbation", "cell_type"])
        return pd.DataFrame(alpha, index=index, columns=[f"basis_{k}" for k in range(alpha.shape[1])])

    def get_velocity(
        self, adata: AnnData | None = None, perturbation: str | None = None, t: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Base and effect velocity of cells at their latents.

        Parameters
        ----------
        adata
            Cells with the model's genes; ``None`` takes the registered ones.
        perturbation
            A perturbation or combination; ``None`` is control, whose effect is zero.
        t
            Time of the flow, from 0 to 1.

        Returns
        -------
        Two arrays (n_cells, n_latent), in latent units per unit of flow time.
        """
        self._require_flow("give velocities")
        if not 0.0 <= t <= 1.0:
            raise ValueError(f"`t` is {t}; flow time goes from 0 to 1.")
        cells = self._cells(adata)
        posterior = self._encode(cells)
        p = self._vectors([self.vocabulary.control_label if perturbation is None else perturbation])
        base, effect = [], []
        for rows in cells.chunks(4096):
            z = self.module.standardize(posterior.mean[rows].to(self._device))
            context = cells.context[rows].to(self._device)
            with torch.inference_mode():
                times = torch.full((len(z),), float(t), device=self._device)
                parts = self.module.velocity(z, times, context, p.expand(len(z), -1))
            base.append((parts.base * self.module.flow_scale).cpu().numpy())
            effect.append((parts.effect * self.module.flow_scale).cpu().numpy())
        return np.concatenate(base), np.concatenate(effect)

    def _vectors(self, labels: list[str]) -> torch.Tensor:
        conditions = [self.vocabulary.parse(label) for label in labels]
        return torch.from_numpy(self.vocabulary.encode(conditions)).to(self._device)
