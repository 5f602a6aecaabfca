"""The only place that imports private names of scvi-tools or depends on its version."""

from __future__ import annotations

import os
from typing import Any, cast

import rich.pretty  # noqa: F401  # scvi-tools' view_anndata_setup() uses it without importing it
import torch
from scvi.model._utils import parse_device_args
from scvi.model.base import BaseModelClass
from scvi.module._constants import MODULE_KEYS

__all__ = ["MODULE_KEYS", "forget_registered", "parse_device", "read_pickled_model"]


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


def read_pickled_model(dir_path: str, prefix: str | None = None) -> dict[str, Any]:
    """Content of a model in scvi-tools' format.

    The file is a pickle: reading it runs what it holds, as :meth:`load` of scvi-tools itself does.
    """
    path = os.path.join(dir_path, f"{prefix or ''}model.pt")
    return torch.load(path, map_location="cpu", weights_only=False)
