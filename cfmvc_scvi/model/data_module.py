"""scvi-tools' spelling for a model that is trained from disk: a data module in place of an AnnData."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS

from cfmvc_scvi._base import ModelBase
from cfmvc_scvi._compat import attach, latest_registry
from cfmvc_scvi._constants import CFMVC_KEYS
from cfmvc_scvi.data import import_counts, open_counts
from cfmvc_scvi.io.files import locked

logger = logging.getLogger(__name__)

#: Key of ``adata.uns`` that vectors of perturbations get where none is given.
_EMBEDDING = "perturbation_embedding"


class CountsDataModule:
    """Cells whose counts stay on disk, set up: what :meth:`cfmvc_scvi.CFMVC.setup_annbatch` returns.

    Attributes
    ----------
    adata
        The cells; counts are read when they are used.
    registry
        What was registered, for ``CFMVC(registry=...)``.
    """

    def __init__(self, adata: AnnData, registry: dict[str, Any]) -> None:
        self.adata, self.registry = adata, registry

    def __repr__(self) -> str:
        return f"CountsDataModule: {self.n_obs} cells, {self.n_vars} genes, {self.n_batch} batches on disk"

    @property
    def n_obs(self) -> int:
        """Cells."""
        return self.adata.n_obs

    @property
    def n_vars(self) -> int:
        """Genes."""
        return self.adata.n_vars

    @property
    def var_names(self) -> np.ndarray:
        """Names of the genes, shape (n_vars,)."""
        return np.asarray(self.adata.var_names)

    @property
    def n_batch(self) -> int:
        """Batches."""
        return len(self.batch_labels)

    @property
    def n_labels(self) -> int:
        """Cell types."""
        return len(self.label_keys)

    @property
    def batch_labels(self) -> list[Any]:
        """Batches in the order of their codes."""
        return self._levels(REGISTRY_KEYS.BATCH_KEY)

    @property
    def label_keys(self) -> list[Any]:
        """Cell types in the order of their codes."""
        return self._levels(REGISTRY_KEYS.LABELS_KEY)

    def _levels(self, field: str) -> list[Any]:
        return list(self.registry["field_registries"][field]["state_registry"]["categorical_mapping"])


class DataModuleMixin(ModelBase):
    """Setup from files for :class:`~cfmvc_scvi.CFMVC`, and the data of a model that was made from a registry.

    Relies on :class:`~cfmvc_scvi._base.ModelBase` alone: its registry and its data.
    """

    @classmethod
    def setup_annbatch(
        cls,
        paths: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        *,
        collection_path: str | os.PathLike | None = None,
        var_subset: Sequence[str] | None = None,
        perturbation_embedding: pd.DataFrame | Mapping[str, Any] | None = None,
        **setup_args: Any,
    ) -> CountsDataModule:
        """Set up cells whose counts stay on disk, in scvi-tools' spelling for such data.

        The data module takes the place of an AnnData: ``CFMVC(registry=dm.registry)``, ``train(datamodule=dm)``,
        ``save(path, datamodule=dm)``, ``load(path, adata=False, datamodule=dm)``. It carries all that
        :meth:`setup_anndata` registers. After ``train`` or ``load`` the model has the cells, so other methods are
        called as ever. annbatch need not be installed.

        Parameters
        ----------
        paths
            ``.h5ad`` files, zarr folders of an AnnData, and collections that annbatch wrote: one or several, read where
            they are. Genes are matched by name.
        collection_path
            A store, ending in ``.zarr``, that ``paths`` are brought together in first, with
            :func:`cfmvc_scvi.data.import_counts`. Where there is something already, a collection of annbatch or a store
            of an earlier call, it is opened and ``paths`` are not looked at. Counts of a ``layer`` are in its ``X``.
        var_subset
            Genes to keep where a store is written, in this order; ``None`` keeps those that all files have.
        perturbation_embedding
            A vector per perturbation, as ``adata.uns`` would hold it (collections have no ``uns``).
        **setup_args
            Arguments of :meth:`setup_anndata`, such as ``perturbation_key=``.

        Returns
        -------
        CountsDataModule with the cells as ``adata``, the ``registry``, and their numbers.

        Raises
        ------
        ValueError
            When there are neither ``paths`` nor a collection; and as :meth:`setup_anndata`.
        FileNotFoundError, OSError
            When a file is not there, or not whole.
        """
        layer = setup_args.get("layer")
        adata = _open(paths, collection_path, layer, var_subset)
        if collection_path is not None and layer is not None and layer not in adata.layers:
            setup_args["layer"] = None  # the store was made of it
        if perturbation_embedding is not None:
            key = setup_args.setdefault("perturbation_embedding_key", None) or _EMBEDDING
            adata.uns[key], setup_args["perturbation_embedding_key"] = perturbation_embedding, key
        cls.setup_anndata(adata, **setup_args)
        return CountsDataModule(adata, latest_registry(cls, adata))

    def _data_for(self, task: str, datamodule: CountsDataModule | None) -> AnnData:
        """The registered data; those of a data module, where one is given, become it."""
        self._require_not_adapted(task)
        if datamodule is not None and (self._registered is None or self._registered is not datamodule.adata):
            self._attach(datamodule)
        return self._require_adata(task)

    def _attach(self, datamodule: CountsDataModule) -> None:
        check_data_module(datamodule)
        if self._registered is not None:
            raise ValueError(
                "This model has data of its own, and `datamodule` holds others: leave it out, or make a model of its "
                "data, `CFMVC(registry=datamodule.registry)`."
            )
        if datamodule.registry is not self.registry:
            setup_args = cast("dict[str, Any]", self.registry["setup_args"])
            type(self).setup_anndata(datamodule.adata, source_registry=self.registry, **setup_args)
        attach(self, datamodule.adata)


def check_data_module(datamodule: Any) -> None:
    """Refuse data modules of other origin, which carry no perturbations.

    Raises
    ------
    TypeError
        For anything but a :class:`CountsDataModule`.
    """
    if not isinstance(datamodule, CountsDataModule):
        raise TypeError(
            f"`datamodule` is a {type(datamodule).__name__}; make one with `CFMVC.setup_annbatch(...)`: others say "
            "nothing of perturbations."
        )


def check_registry(registry: Any) -> None:
    """Refuse what other models, and scvi-tools' own data modules, register.

    Raises
    ------
    ValueError
        When there are no perturbations in it.
    """
    if CFMVC_KEYS.PERTURBATION_KEY not in registry.get("field_registries", {}):
        raise ValueError(
            "`registry` says nothing of perturbations: give that of `CFMVC.setup_annbatch(...)`, or the AnnData after "
            "`CFMVC.setup_anndata`."
        )


def _open(paths: Any, collection_path: str | os.PathLike | None, layer: str | None, genes: Any) -> AnnData:
    if collection_path is None:
        if paths is None:
            raise ValueError("Give `paths` of files to read, or a `collection_path`.")
        if genes is not None:
            raise ValueError("`var_subset` is for a store that is written: pass `collection_path=` as well.")
        return open_counts(paths)
    store = Path(collection_path)
    if store.exists():
        if paths is not None:
            logger.info("%s is there already: it is opened, and `paths` are not looked at.", store)
        return open_counts(store)
    if paths is None:
        raise FileNotFoundError(f"There is no collection at {os.fspath(store)!r}: give `paths` to make one.")
    if not store.parent.is_dir():
        raise FileNotFoundError(f"The folder of `collection_path` does not exist: {os.fspath(store.parent)!r}.")
    lock = store.with_name(f".{store.name}.lock")
    with locked(lock):  # of several processes of one training the first writes, the others wait
        adata = open_counts(store) if store.exists() else import_counts(paths, store, layer=layer, genes=genes)
        lock.unlink(missing_ok=True)  # from here on the store is there
    return adata
