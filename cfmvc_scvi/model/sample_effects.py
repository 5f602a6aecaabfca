"""The change that was measured in every sample (donor, animal, plate): what an effect looks like behind its mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from cfmvc_scvi.calibration.change import lognorm_expression
from cfmvc_scvi.model.effects import EFFECT_UNITS, EffectMixin

#: Cells that are made dense together.
_CHUNK = 4096


class SampleEffectMixin(EffectMixin):
    """Effects within samples of :class:`~cfmvc_scvi.CFMVC`.

    Relies on the reading of requests and of cell types, and on the registered data.
    """

    def get_sample_effects(
        self, perturbation: str, labels: str | Sequence[str] | None = None, *, dosage: float | str | None = None
    ) -> pd.DataFrame:
        """Measured change of every gene's mean in every sample; nothing of it is estimated by the model.

        :func:`cfmvc_scvi.pl.forest` draws it beside the estimate.

        Samples are those of ``sample_key``; where the model has none, its batches. The change is that of mean log1p of
        counts per 10,000 of the perturbed cells that were not held out from the control cells of the same sample and
        cell type; in a sample without control cells of the type, from the mean of the control samples.

        Parameters
        ----------
        perturbation
            A perturbation or combination.
        labels
            Cell type, or several; ``None`` is all that have control cells. Several are averaged in proportion to their
            control cells, over the types that a sample has.
        dosage
            Dose of the perturbation.

        Returns
        -------
        DataFrame (sample x genes) of the samples that have perturbed cells, in units of
        :meth:`get_perturbation_effect`; ``attrs`` has ``n_perturbed`` (cells, by sample), ``paired`` (samples with
        controls of their own), the condition, the cell types and the units.

        Raises
        ------
        ValueError
            For an unknown perturbation or cell type, a model with neither samples nor batches, and a condition that was
            not measured in these cell types.
        RuntimeError
            When the flow is not trained, or the model was loaded without data.
        """
        self._require_flow("give effects within samples")
        adata, keys = self._require_adata("give effects within samples"), self.setup_keys
        key = keys.batch_key if keys.sample_key is None else keys.sample_key
        if key is None:
            raise ValueError(
                "The model knows neither samples nor batches: pass `sample_key=`, the donor, animal or plate of every "
                "cell, to `setup_anndata` and train again."
            )
        [request] = self._requests(perturbation, dosage, None)
        codes = self._codes_with_controls(labels)
        found, rows = self._conditions_of(adata), self._fitted_rows
        known = [code for code, one in enumerate(found.conditions) if one.key == request.condition.key]
        types = self._cells(None).context.labels.numpy()
        names = adata.obs[key].astype(str).to_numpy()
        rows = rows[np.isin(types[rows], codes) & np.isin(found.code[rows], [0, *known])]
        measured = found.code[rows] > 0
        if not known or not measured.any() or request.condition.is_control:
            raise ValueError(
                f"{request.condition.label!r} was not measured in {[self.cell_types[code] for code in codes]}, so "
                "there are no changes within samples. `get_perturbation_effect` gives the model's estimate."
            )
        levels = sorted(set(names[rows]))
        means, sizes = self._means(rows, types[rows], measured, names[rows], codes, levels)
        return self._differences(request.condition.label, means, sizes, codes, levels)

    def _means(
        self,
        rows: np.ndarray,
        types: np.ndarray,
        measured: np.ndarray,
        names: np.ndarray,
        codes: np.ndarray,
        levels: list[str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean log1p CP10k and number of cells by cell type, arm (control, perturbed) and sample."""
        shape = (len(codes), 2, len(levels))
        place = (np.searchsorted(codes, types), measured.astype(int), np.searchsorted(levels, names))
        group = np.ravel_multi_index(place, shape)
        sizes = np.bincount(group, minlength=int(np.prod(shape)))
        sums = np.zeros((len(sizes), len(self._var_names)))
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            cells = self._cells(None, rows[part])
            n = len(group[part])
            of_group = sparse.csr_matrix((np.ones(n), (group[part], np.arange(n))), shape=(len(sums), n))
            sums += of_group @ lognorm_expression(cells.dense(slice(None)), cells.library)
        means = sums / np.maximum(sizes, 1)[:, None]
        return means.reshape(*shape, -1), sizes.reshape(shape)

    def _differences(
        self, label: str, means: np.ndarray, sizes: np.ndarray, codes: np.ndarray, levels: list[str]
    ) -> pd.DataFrame:
        controls, perturbed = sizes[:, 0] > 0, sizes[:, 1] > 0
        weights = sizes[:, 0].sum(axis=1)
        typical = np.stack([means[i, 0, has].mean(axis=0) for i, has in enumerate(controls)])
        table, paired, n_perturbed = {}, [], {}
        for at, name in enumerate(levels):
            there = np.flatnonzero(perturbed[:, at])
            if not len(there):
                continue
            base = np.where(controls[there, at, None], means[there, 0, at], typical[there])
            change = means[there, 1, at] - base
            table[name] = np.average(change, axis=0, weights=weights[there])
            n_perturbed[name] = int(sizes[:, 1, at].sum())
            paired += [name] if controls[there, at].all() else []
        frame = pd.DataFrame(table, index=pd.Index(self.get_var_names(), name="gene")).T.rename_axis("sample")
        frame.attrs = {
            "perturbation": label,
            "labels": [self.cell_types[code] for code in codes],
            "n_perturbed": n_perturbed,
            "paired": paired,
            "units": EFFECT_UNITS,
        }
        return frame
