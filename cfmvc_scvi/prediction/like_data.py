"""What makes a result fit the data it stands beside: levels, layer, coordinates, colours, annotations of genes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd

from cfmvc_scvi._base import ModelBase
from cfmvc_scvi.prediction.request import ReturnType
from cfmvc_scvi.prediction.sources import SourceCells
from cfmvc_scvi.registration.spelling import texts_of


class LikeDataMixin(ModelBase):
    """Likeness of results to the data of :class:`~cfmvc_scvi.CFMVC`.

    Relies on :class:`~cfmvc_scvi._base.ModelBase` alone: the registration and the data.
    """

    @property
    def _perturbation_column(self) -> str:
        """Column of a result that holds the perturbation."""
        return "perturbation" if self._has_presence_matrix else self.setup_keys.perturbation_key

    def _native(self, field: str) -> dict[str, Any]:
        """Levels of a field by their text, as the data have them: text, or numbers."""
        levels = self._levels(field)
        pairs = list(zip(texts_of(levels), levels.tolist(), strict=True))
        return {str(level): level for _, level in pairs} | dict(pairs)

    def _counts_layer(self, return_type: ReturnType) -> str | None:
        """Layer of a result that holds its counts, as the registered layer does in the data."""
        return self.setup_keys.layer if return_type in ("mean", "counts") else None

    def _coordinates(self, sources: Sequence[SourceCells], draws: int) -> dict[str, np.ndarray]:
        """Coordinates of the cells of every block of a result, where the model has any."""
        key, parts = self.setup_keys.spatial_key, []
        for source in sources:
            spatial = source.cells.context.spatial
            parts += [] if spatial is None else [spatial[: source.n_cells].numpy()] * draws
        return {} if key is None or not parts else {key: np.concatenate(parts)}

    def _colors(self, obs: pd.DataFrame) -> dict[str, Any]:
        """Colours that the registered data have for columns whose levels are the same in a result."""
        adata = self._registered
        if adata is None:
            return {}
        return {
            f"{name}_colors": adata.uns[f"{name}_colors"]
            for name in obs
            if f"{name}_colors" in adata.uns
            and name in adata.obs
            and isinstance(obs[name].dtype, pd.CategoricalDtype)
            and isinstance(adata.obs[name].dtype, pd.CategoricalDtype)
            and obs[name].cat.categories.equals(adata.obs[name].cat.categories)
        }

    def _gene_var(self) -> pd.DataFrame:
        names = pd.Index(self._var_names, dtype=str)
        if self._registered is None or not names.isin(self._registered.var_names).all():
            return pd.DataFrame(index=names)
        return cast(pd.DataFrame, self._registered.var).loc[names].copy()

    def _where(self) -> dict[str, str | None]:
        """What of the registration tells a reader of the result: doses, counts, and how labels are split."""
        keys = self.setup_keys
        names = {"dosage_column": keys.dosage_key, "layer": keys.layer}
        return names | {"combination_delimiter": self.vocabulary.combination_delimiter}
