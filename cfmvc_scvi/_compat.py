"""The only place that imports private names of scvi-tools or depends on its version."""

from __future__ import annotations

import os

import rich.pretty  # noqa: F401  # scvi-tools' view_anndata_setup() uses it without importing it
import torch
from scvi.module._constants import MODULE_KEYS

__all__ = ["MODULE_KEYS", "read_saved_var_names"]


def read_saved_var_names(dir_path: str, prefix: str | None = None) -> list[str]:
    """Genes of a model in scvi-tools' format.

    The file is a pickle: reading it runs what it holds, as :meth:`load` of scvi-tools itself does.
    """
    path = os.path.join(dir_path, f"{prefix or ''}model.pt")
    saved = torch.load(path, map_location="cpu", weights_only=False)
    return list(saved["var_names"])
