"""Looking inside the model: embeddings, effect coefficients, velocities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from cfmvc_scvi._arguments import cells_and_perturbation
from cfmvc_scvi._base import single_precision
from cfmvc_scvi.cells.vectors import ConditionVectors
from cfmvc_scvi.prediction.request import RequestMixin, default_solver
from cfmvc_scvi.prediction.support import SupportMixin
from cfmvc_scvi.registration.vocabulary import Condition

#: Perturbations whose vectors are laid out at a time.
_SOME_LABELS = 256


class InspectionMixin(RequestMixin, SupportMixin):
    """Inspection of :class:`~cfmvc_scvi.CFMVC`.

    Relies on the calibration's reference cells, the support of conditions and the reading of requests.
    """

    @single_precision
    def get_perturbation_embedding(
        self, perturbation: Sequence[str] | pd.DataFrame | None = None, *, dosage: float | str | None = None
    ) -> pd.DataFrame:
        """Embedding of perturbations: how far each moves the intrinsic latent, mean over control cells.

        The mean is over the control cells that stand for each cell type (up to 128), and then over cell types, so
        that perturbations of one effect lie near each other whatever they are called.

        Parameters
        ----------
        perturbation
            Labels, or a DataFrame of conditions, as in :meth:`predict_perturbation`: combinations, and perturbations
            that were not in training but have a vector. ``None`` is every single perturbation that training cells
            had, at its reference dose.
        dosage
            Dose of the perturbations.

        Returns
        -------
        DataFrame (perturbation x n_latent), in units of the latent; control, at the origin, comes first.
        """
        self._require_flow("embed perturbations")
        control = Condition(self.vocabulary.control_label)
        if perturbation is None and dosage is None:
            asked = [self._reference_condition(name) for name in sorted(self._trained_names)]
        else:
            asked = [request.condition for request in self._requests(perturbation, dosage, None)]
        conditions = [control, *(condition for condition in asked if not condition.is_control)]
        values = np.stack([self._mean_move(condition) for condition in conditions])
        index = pd.Index([condition.label for condition in conditions], name="perturbation")
        return pd.DataFrame(values, index=index, columns=[f"z_int_{i}" for i in range(values.shape[1])])

    def _reference_condition(self, name: str) -> Condition:
        return Condition(name, (name,), (self.vocabulary.reference_dose.get(name, 1.0),))

    def _mean_move(self, condition: Condition) -> np.ndarray:
        """Mean displacement (n_latent,) of the cells that stand for the cell types."""
        p, solver = self.vocabulary.encode([condition])[0], default_solver()
        moves = []
        for label in self._types_with_controls():
            cells = self._calibration.reference(int(label), solver)
            moves.append((cells.moved(p, self.module, solver) - cells.z).mean(dim=0))
        return torch.stack(moves).mean(dim=0).cpu().numpy()

    @single_precision
    def get_effect_coefficients(self) -> pd.DataFrame:
        """Effect coefficients alpha of every perturbation in every cell type.

        Returns
        -------
        DataFrame ((perturbation, cell type) x basis); exactly zero for control.
        """
        self._require_flow("give effect coefficients")
        labels = [self.vocabulary.control_label, *sorted(self._trained_names)]
        types = sorted(self.cell_types)
        members = self.vocabulary.members(self._at_reference(labels))
        vectors, device = ConditionVectors(members, self.module.device), self.module.device
        codes = torch.tensor([self.cell_types.index(name) for name in types], device=device)
        with torch.inference_mode():
            parts = [
                self.module.coefficients(
                    vectors.rows(some).repeat_interleave(len(types), dim=0), codes.repeat(len(some))
                )
                for some in torch.arange(len(labels), device=device).split(_SOME_LABELS)
            ]
        alpha = torch.cat(parts).cpu().numpy()
        index = pd.MultiIndex.from_product([labels, types], names=["perturbation", "cell_type"])
        return pd.DataFrame(alpha, index=index, columns=[f"basis_{k}" for k in range(alpha.shape[1])])

    @single_precision
    def get_velocity(
        self, adata: AnnData | str | None = None, perturbation: str | None = None, t: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Base and effect velocity of cells at their latents.

        Parameters
        ----------
        adata
            Cells with the model's genes; ``None`` takes the registered ones, and so does a perturbation that stands
            here alone.
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
        adata, perturbation = cells_and_perturbation(adata, perturbation)
        cells = self._cells(adata)
        posterior = self._encode(cells)
        p = self._vectors([self.vocabulary.control_label if perturbation is None else perturbation])
        base, effect = [], []
        for rows in cells.chunks(4096):
            z = self.module.standardize(posterior.mean[rows].to(self.module.device))
            context = cells.context[rows].to(self.module.device)
            with torch.inference_mode():
                times = torch.full((len(z),), float(t), device=self.module.device)
                parts = self.module.velocity(z, times, context, p.expand(len(z), -1))
            base.append((parts.base * self.module.flow_scale).cpu().numpy())
            effect.append((parts.effect * self.module.flow_scale).cpu().numpy())
        return np.concatenate(base), np.concatenate(effect)

    def _vectors(self, labels: list[str]) -> torch.Tensor:
        """Vectors of a few perturbations, combinations or control, at their reference doses."""
        return torch.from_numpy(self.vocabulary.encode(self._at_reference(labels))).to(self.module.device)

    def _at_reference(self, labels: list[str]) -> list[Condition]:
        parsed = [self.vocabulary.parse(label) for label in labels]
        self._check_trained(parsed)
        reference = self.vocabulary.reference_dose
        return [Condition(c.label, c.members, tuple(reference.get(m, 1.0) for m in c.members)) for c in parsed]
