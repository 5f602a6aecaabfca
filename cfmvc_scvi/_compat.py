"""The only place that imports private names of scvi-tools or depends on its version."""

from __future__ import annotations

import os
from typing import Any

import rich.pretty  # noqa: F401  # scvi-tools' view_anndata_setup() uses it without importing it
import torch
from scvi.model._utils import parse_device_args
from scvi.module._constants import MODULE_KEYS

__all__ = ["MODULE_KEYS", "parse_device", "read_pickled_model"]


def parse_device(accelerator: str, device: int | str) -> torch.device:
    """The one device that scvi-tools chooses for these arguments."""
    *_, chosen = parse_device_args(
        accelerator=accelerator, devices=device, return_device="torch", validate_single_device=True
    )
    return chosen


def read_pickled_model(dir_path: str, prefix: str | None = None) -> dict[str, Any]:
    """Content of a model in scvi-tools' format.

    The file is a pickle: reading it runs what it holds, as :meth:`load` of scvi-tools itself does.
    """
    path = os.path.join(dir_path, f"{prefix or ''}model.pt")
    return torch.load(path, map_location="cpu", weights_only=False)
