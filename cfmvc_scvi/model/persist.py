"""Saving and loading: scvi-tools' own format, with the genes of new data checked by name."""

from __future__ import annotations

from typing import Any

import pandas as pd
from anndata import AnnData
from scvi.model.base import BaseModelClass

from cfmvc_scvi._compat import read_saved_var_names


class PersistenceMixin:
    """Loading of :class:`~cfmvc_scvi.CFMVC`; saving is scvi-tools'.

    A saved model holds the counts of up to 128 control cells per cell type, which the calibration stands on.
    """

    @classmethod
    def load(cls, dir_path: str, adata: AnnData | bool | None = None, **kwargs: Any) -> BaseModelClass:
        """Load a saved model.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` wrote.
        adata
            Data organised as the training data; genes may come in another order and there may be more of them: they are
            matched by name, on a copy. ``None`` takes the data saved with the model, ``False`` none.
        **kwargs
            Further arguments of :meth:`scvi.model.base.BaseModelClass.load`.

        Raises
        ------
        ValueError
            When genes of the model are missing from the data.
        """
        if isinstance(adata, AnnData):
            adata = align_genes(adata, read_saved_var_names(dir_path, kwargs.get("prefix")))
        return super().load(dir_path, adata=adata, **kwargs)


def align_genes(adata: AnnData, var_names: list[str]) -> AnnData:
    """The same cells with these genes in this order; ``adata`` itself where it has them already."""
    wanted = pd.Index(var_names)
    if adata.var_names.equals(wanted):
        return adata
    missing = wanted.difference(adata.var_names)
    if len(missing):
        raise ValueError(
            f"{len(missing)} of the model's {len(wanted)} genes are not in this AnnData: {list(missing[:5])}"
            f"{' ...' if len(missing) > 5 else ''}. Genes are matched by `var_names`."
        )
    return adata[:, wanted].copy()
