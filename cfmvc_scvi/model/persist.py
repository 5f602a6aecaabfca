"""Saving and loading: safetensors and JSON, which hold values and never code; genes of new data checked by name."""

# our arguments are others than those of scvi-tools' methods of the same name
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import anndata
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS, settings
from scvi.data import AnnDataManager

from cfmvc_scvi._base import ModelBase
from cfmvc_scvi._compat import parse_device, read_pickled_model
from cfmvc_scvi._constants import CFMVC_KEYS
from cfmvc_scvi._messages import missing_genes, shortened
from cfmvc_scvi._rows import DiskRows, is_on_disk
from cfmvc_scvi._types import same_names
from cfmvc_scvi.calibration import CalibrationState, make_calibration
from cfmvc_scvi.io.archive import (
    archive_exists,
    check_attribute_names,
    check_file,
    read_archive,
    read_head,
    write_archive,
)
from cfmvc_scvi.io.files import atomic_write, h5ad_size, require_space
from cfmvc_scvi.model.data_module import CountsDataModule, check_data_module
from cfmvc_scvi.registration.keys import counts_matrix
from cfmvc_scvi.registration.spelling import texts_of
from cfmvc_scvi.train.processes import save_once

_ARCHIVE, _PICKLE, _DATA = "model", "model.pt", "adata.h5ad"


class PersistenceMixin(ModelBase):
    """Saving and loading of :class:`~cfmvc_scvi.CFMVC`.

    Relies on :class:`~cfmvc_scvi._base.ModelBase` alone: its list of state attributes.

    A saved model holds the counts of up to 128 control cells per cell type, which the calibration stands on.
    """

    def save(
        self,
        dir_path: str,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        datamodule: CountsDataModule | None = None,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Save the model into a folder.

        The folder gets ``model.json`` (everything but arrays), ``model-<checksum>.safetensors`` (weights and other
        arrays) and, on request, ``adata.h5ad``. Neither of them can run code when it is loaded. They are written aside
        and renamed: an interrupted save leaves the folder as it was. After a training over several processes only the
        first one writes; the others go on when it is done.

        Parameters
        ----------
        dir_path
            The folder.
        prefix
            Put before the names of the files, so that one folder can hold several models.
        overwrite
            Write into a folder that exists, over a model of the same prefix.
        save_anndata
            Save the registered AnnData as well; counts that are on disk are read into memory for it.
        datamodule
            As scvi-tools asks for it; nothing of it is saved.
        **anndata_write_kwargs
            Arguments of :meth:`anndata.AnnData.write_h5ad`.

        Raises
        ------
        ValueError
            When the folder exists and ``overwrite`` is off.
        TypeError
            When the model has an attribute that cannot be saved; says which.
        OSError
            When the disk is full or read-only. A model saved there before is still whole.
        """
        if save_anndata:
            self._require_adata("save its data")
        elif anndata_write_kwargs:
            raise TypeError(f"Unknown arguments {sorted(anndata_write_kwargs)}: they are for `save_anndata=True`.")
        save_once(
            dir_path, lambda: self._save(Path(dir_path), prefix or "", overwrite, save_anndata, anndata_write_kwargs)
        )

    def _save(
        self, folder: Path, prefix: str, overwrite: bool, save_anndata: bool, anndata_write_kwargs: dict[str, Any]
    ) -> None:
        if not folder.exists():
            with atomic_write(folder, "the model", folder=True) as aside:
                self._write(aside, prefix, save_anndata, anndata_write_kwargs)
        elif overwrite:
            self._write(folder, prefix, save_anndata, anndata_write_kwargs)
        else:
            raise ValueError(f"{os.fspath(folder)} already exists: choose another folder, or pass `overwrite=True`.")

    def _write(self, folder: Path, prefix: str, save_anndata: bool, anndata_write_kwargs: dict[str, Any]) -> None:
        content = {
            "class": type(self).__name__,
            "var_names": [str(name) for name in self.get_var_names()],
            "attributes": self._saved_attributes(),
            "module": dict(self.module.state_dict()),
        }
        attached: tuple[str, ...] = ()
        if save_anndata:
            attached = (f"{prefix}{_DATA}",)
            adata = self._require_adata("save its data")
            if any(isinstance(matrix, DiskRows) for matrix in (adata.X, *adata.layers.values())):
                adata = adata.to_memory()  # anndata cannot write rows of several files
            require_space(folder, h5ad_size(adata), "the AnnData")
            with atomic_write(folder / attached[0], "the AnnData") as aside:
                adata.write_h5ad(aside, **anndata_write_kwargs)
        write_archive(folder, f"{prefix}{_ARCHIVE}", content, "the model", attached)
        (folder / f"{prefix}{_PICKLE}").unlink(missing_ok=True)  # of an earlier save, which this one replaces

    def _saved_attributes(self) -> dict[str, Any]:
        """Attributes whose name ends with an underscore, as in scvi-tools: our state, its own, and what users add."""
        named = {name: value for name, value in vars(self).items() if name.endswith("_") and not name.startswith("_")}
        calibration = self.calibration_
        return named | {"calibration_": None if calibration is None else calibration.state.to_saved()}

    @classmethod
    def load(
        cls,
        dir_path: str,
        adata: AnnData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        allowed_classes_names_list: list[str] | None = None,
        *,
        allow_pickle: bool = False,
        datamodule: CountsDataModule | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a saved model.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` wrote.
        adata
            Data organised as the training data; genes may come in another order and there may be more of them: they are
            matched by name, on a copy. ``None`` takes the data saved with the model, ``False`` none.
        accelerator, device
            Where the networks go, as in scvi-tools.
        prefix
            Prefix given to :meth:`save`.
        allowed_classes_names_list
            Names of other classes whose models may be loaded.
        allow_pickle
            Read ``model.pt``, the format of scvi-tools itself, where there is no ``model.json``. That file is a pickle,
            which runs whatever code was put into it: allow it for files you trust only.
        datamodule
            Data from :meth:`~cfmvc_scvi.CFMVC.setup_annbatch` in place of ``adata``.
        **kwargs
            Further arguments of :meth:`scvi.model.base.BaseModelClass.load`, for ``model.pt`` alone.

        Raises
        ------
        FileNotFoundError
            When there is no model in the folder.
        ValueError
            When genes of the model are missing from the data, the model is of another class, a file is truncated,
            changed or of a later version, or there is a ``model.pt`` alone and ``allow_pickle`` is off.
        """
        if not isinstance(adata, (AnnData, bool, type(None))):
            raise TypeError(
                f"`adata` is a {type(adata).__name__}; give an AnnData, such as `anndata.read_h5ad(path)`, `None` for "
                "the data saved with the model, or `False` for none."
            )
        if datamodule is not None:
            check_data_module(datamodule)
            if isinstance(adata, AnnData):
                raise ValueError("`adata` and `datamodule` are both given: the data can be one of them.")
            adata = datamodule.adata
        found = _which_format(Path(dir_path), prefix or "", allow_pickle)
        common = {
            "accelerator": accelerator,
            "device": device,
            "allowed_classes_names_list": allowed_classes_names_list,
        }
        if found == "pickle":
            if isinstance(adata, AnnData):
                adata = align_genes(adata, list(read_pickled_model(dir_path, prefix)["var_names"]))
            given = cast("AnnData | None", adata)  # scvi-tools knows False too
            return super().load(dir_path, adata=given, prefix=prefix, **common, **kwargs)
        if kwargs:
            raise TypeError(f"Unknown arguments {sorted(kwargs)}: they are for scvi-tools' own format.")
        return cls._load_archive(Path(dir_path), prefix or "", adata, **common)

    @classmethod
    def _load_archive(
        cls,
        folder: Path,
        prefix: str,
        adata: AnnData | bool | None,
        accelerator: str,
        device: int | str,
        allowed_classes_names_list: list[str] | None,
    ) -> Self:
        content = read_archive(folder, f"{prefix}{_ARCHIVE}")
        _check_class(cls.__name__, content["class"], allowed_classes_names_list)
        if adata is None:
            adata = _saved_data(folder, prefix)
        attributes = content["attributes"]
        registry = attributes.pop("registry_")
        if isinstance(adata, AnnData):
            adata = align_genes(adata, content["var_names"])
            _check_levels(adata, registry)
            cls.setup_anndata(adata, source_registry=registry, **registry["setup_args"])
        model = cls._restore(adata if isinstance(adata, AnnData) else None, registry, attributes)
        model.module.load_state_dict(content["module"])
        model.to_device(parse_device(accelerator, device))
        model.module.eval()
        if model.adata is not None:
            model._validate_anndata(model.adata)
        return model

    @classmethod
    def _restore(cls, adata: AnnData | None, registry: dict, attributes: dict[str, Any]) -> Self:
        """A model with its attributes, from the arguments it was made with."""
        check_attribute_names(attributes)
        init = attributes.pop("init_params_")
        variable = {name: value for group in init["kwargs"].values() for name, value in group.items()}
        model = cls(adata, registry=registry, **init["non_kwargs"], **variable)
        calibration = attributes.pop("calibration_")
        vars(model).update(attributes)
        if calibration is not None:
            state = CalibrationState.from_saved(calibration)
            model.calibration_ = make_calibration(state, model.module, model.vocabulary)
        return model

    @staticmethod
    def view_setup_args(dir_path: str, prefix: str | None = None) -> None:
        """Show the arguments of :meth:`setup_anndata` that a saved model was made with.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` wrote.
        prefix
            Prefix given to :meth:`save`.
        """
        AnnDataManager.view_setup_method_args(PersistenceMixin.load_registry(dir_path, prefix))

    @staticmethod
    def load_registry(dir_path: str, prefix: str | None = None) -> dict:
        """Registry of a saved model: which field is found where, and the categories of each.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` wrote.
        prefix
            Prefix given to :meth:`save`.
        """
        _which_format(Path(dir_path), prefix or "", allow_pickle=False)
        return read_archive(dir_path, f"{prefix or ''}{_ARCHIVE}")["attributes"]["registry_"]


def align_genes(adata: AnnData, var_names: Sequence[str]) -> AnnData:
    """The same cells with these genes in this order; ``adata`` itself where it has them already."""
    wanted = pd.Index(var_names)
    if same_names(adata.var_names, wanted):
        return adata
    missing = wanted.difference(adata.var_names)
    if len(missing):
        raise ValueError(missing_genes(missing, adata.var_names, wanted=f"the model's {len(wanted)} genes"))
    on_disk = is_on_disk(adata.X) or any(is_on_disk(layer) for layer in adata.layers.values())
    return _ordered_on_disk(adata, wanted) if on_disk else adata[:, wanted].copy()


def _ordered_on_disk(adata: AnnData, names: pd.Index) -> AnnData:
    """The same without reading what is on disk."""
    columns = adata.var_names.get_indexer(names)

    def ordered(matrix: Any, layer: str | None) -> Any:
        if matrix is None or not is_on_disk(matrix):
            return None if matrix is None else matrix[:, columns]
        rows: DiskRows = counts_matrix(adata, layer)
        return rows.with_columns(columns)

    layers: dict[Any, Any] = {name: ordered(matrix, name) for name, matrix in adata.layers.items()}
    tables: dict[str, Any] = {"obs": adata.obs, "obsm": dict(adata.obsm), "uns": dict(adata.uns), "layers": layers}
    return AnnData(ordered(adata.X, None), var=cast(pd.DataFrame, adata.var).iloc[columns], **tables)


def _check_levels(adata: AnnData, registry: dict[str, Any]) -> None:
    """Raise for perturbations, batches and cell types that a model was not trained with."""
    fields = (CFMVC_KEYS.PERTURBATION_KEY, REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY)
    for field in fields:
        state = registry["field_registries"][field]["state_registry"]
        key, levels = state.get("original_key"), state.get("categorical_mapping")
        if key is None or levels is None or key not in adata.obs:
            continue
        further = sorted(set(texts_of(adata.obs[key].dropna())) - set(texts_of(levels)))
        if further:
            raise ValueError(
                f"adata.obs[{key!r}] has levels that the model was not trained with: {shortened(further)}. `load` "
                "takes the data the model was trained on. For other cells load with `adata=False` and give them to the "
                "methods, as in `model.predict_perturbation(cells, ...)`; or leave the cells with these levels out."
            )


def _which_format(folder: Path, prefix: str, allow_pickle: bool) -> str:
    if archive_exists(folder, f"{prefix}{_ARCHIVE}"):
        return "archive"
    if not (folder / f"{prefix}{_PICKLE}").is_file():
        there = sorted(os.listdir(folder))[:10] if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"There is no model in {os.fspath(folder)!r}: {prefix}{_ARCHIVE}.json is missing. Found: {there}. Pass the "
            "folder that `save` wrote, and the `prefix` it was given, if any."
        )
    if allow_pickle:
        return "pickle"
    raise ValueError(
        f"{folder / (prefix + _PICKLE)} is a pickle (the format of scvi-tools itself), and loading it runs whatever "
        "code it holds. If you trust where it comes from, pass `allow_pickle=True`, and save the model again: `save` "
        "writes files that cannot run code."
    )


def _check_class(own: str, saved: str, allowed: list[str] | None) -> None:
    if saved != own and saved not in (allowed or []):
        raise ValueError(
            f"The saved model is of a different class: {saved}, not {own}. Load it with {saved}.load, or name the "
            "class in `allowed_classes_names_list`."
        )


def _saved_data(folder: Path, prefix: str) -> AnnData | None:
    """Data saved with the model, or ``None`` with a warning."""
    file = f"{prefix}{_DATA}"
    if not (folder / file).is_file():
        warnings.warn(
            f"No data were saved with the model ({file} is not there) and none were passed as `adata`: it is loaded "
            "without. Pass `adata=False` if that is what you want.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
        return None
    name = f"{prefix}{_ARCHIVE}"
    head = read_head(folder, name)
    if file in head["files"]:
        check_file(folder, name, head, file)
    return anndata.read_h5ad(folder / file)
