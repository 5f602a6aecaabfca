"""The only place that imports private names of scvi-tools, anndata, Lightning and torch, or depends on versions."""

from __future__ import annotations

import os
import weakref
from typing import Any, cast

import numpy as np
import rich.pretty  # noqa: F401  # scvi-tools' view_anndata_setup() uses it without importing it
import torch
from anndata import AnnData
from anndata._core.file_backing import to_memory
from lightning.pytorch.strategies import DDPStrategy
from scvi.data._constants import _MANAGER_UUID_KEY
from scvi.model._utils import parse_device_args
from scvi.model.base import BaseModelClass
from scvi.module._constants import MODULE_KEYS
from scvi.train._progress import ProgressBar
from torch.distributed import distributed_c10d

from cfmvc_scvi._rows import DiskRows

__all__ = [
    "MODULE_KEYS",
    "ProgressBar",
    "attach",
    "common_store",
    "deregister",
    "forget_registered",
    "forget_with",
    "is_registered",
    "latest_registry",
    "parse_device",
    "read_pickled_model",
    "registered_codes",
    "start_method",
]


@to_memory.register(DiskRows)
def _read(matrix: DiskRows, *, copy: bool = False) -> Any:
    """What ``adata.to_memory()`` makes of our rows on disk; anndata would leave a matrix of an unknown kind there."""
    return matrix.to_memory()


def parse_device(accelerator: str, device: int | str) -> torch.device:
    """The one device that scvi-tools chooses for these arguments."""
    *_, chosen = cast(
        tuple,
        parse_device_args(accelerator=accelerator, devices=device, return_device="torch", validate_single_device=True),
    )
    return chosen


def forget_registered(model: BaseModelClass, *, keep_own: bool) -> None:
    """Let go of data that scvi-tools registered for one call of a model's method; it would keep them for good.

    With ``keep_own`` the model's own data stay; otherwise it is left without any.
    """
    own = model.adata_manager.adata_uuid
    managers = model._per_instance_manager_store.get(model.id, {})
    for other in set(managers) - ({own} if keep_own else set()):
        del managers[other]
    if not keep_own:
        model._setup_adata_manager_store.pop(own, None)
        model._adata = model._adata_manager = None


def latest_registry(model_class: type[BaseModelClass], adata: AnnData) -> dict[str, Any]:
    """What the last setup of an AnnData registered."""
    manager = cast(Any, model_class._get_most_recent_anndata_manager(adata, required=True))
    return manager.registry


def attach(model: BaseModelClass, adata: AnnData) -> None:
    """Make an AnnData that was set up the data of a model that has none."""
    manager = cast(Any, type(model)._get_most_recent_anndata_manager(adata, required=True))
    model._register_manager_for_instance(manager)
    model._adata, model._adata_manager = cast(Any, adata), manager
    model.registry_, model.summary_stats = manager.registry, manager.summary_stats


def deregister(model_class: type[BaseModelClass], adata: AnnData) -> None:
    """Let go of everything scvi-tools keeps of an AnnData for a class of models, and of what it wrote into it."""
    stores: list[Any] = [model_class._setup_adata_manager_store, *model_class._per_instance_manager_store.values()]
    for store in stores:
        for key in [key for key, manager in store.items() if manager.adata is adata]:
            del store[key]
    tables: tuple[Any, ...] = (adata.obs, adata.obsm, adata.uns)
    for table in tables:
        for name in [name for name in table if str(name).startswith("_scvi_")]:
            del table[name]


def forget_with(model: BaseModelClass) -> None:
    """Let scvi-tools' record of a model end with the model; it would be kept, and its data with it, for good."""
    weakref.finalize(model, model._per_instance_manager_store.pop, model.id, None).atexit = False


def is_registered(model: BaseModelClass, adata: AnnData) -> bool:
    """Whether an AnnData, not a copy of it, is registered with a model."""
    managers: Any = model._per_instance_manager_store.get(model.id, {}).values()
    return any(manager.adata is adata for manager in managers)


def registered_codes(model: BaseModelClass, field: str) -> np.ndarray | None:
    """Codes of a categorical field of the cells at registration; ``None`` where the data were set up anew since."""
    manager = model.adata_manager
    if manager is None or manager.adata is None or manager.adata.uns.get(_MANAGER_UUID_KEY) != manager.id:
        return None
    return np.asarray(manager.get_from_registry(field)).ravel()


def read_pickled_model(dir_path: str, prefix: str | None = None) -> dict[str, Any]:
    """Content of a model in scvi-tools' format.

    The file is a pickle: reading it runs what it holds, as :meth:`load` of scvi-tools itself does.
    """
    path = os.path.join(dir_path, f"{prefix or ''}model.pt")
    return torch.load(path, map_location="cpu", weights_only=False)


def start_method(strategy: DDPStrategy) -> str:
    """How a strategy starts its processes: ``"popen"`` (the script again), ``"fork"``, ``"spawn"``, ..."""
    return strategy._start_method


def common_store() -> Any:
    """Keys and values that all connected processes see."""
    return distributed_c10d._get_default_store()
