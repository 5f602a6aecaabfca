"""Checksums of the registered parts of an AnnData, to tell whether a run goes on with the same data."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
from anndata import AnnData

from cfmvc_scvi._types import obs_of
from cfmvc_scvi.registration.counts import cell_totals
from cfmvc_scvi.registration.keys import SetupKeys, counts_matrix, perturbation_labels


def data_fingerprint(adata: AnnData, keys: SetupKeys) -> dict[str, str]:
    """Short checksums of the names of the cells, the genes, the registered columns, and the counts' totals per cell."""
    totals = cell_totals(counts_matrix(adata, keys.layer))
    names = [keys.batch_key, keys.labels_key, keys.dosage_key, keys.size_factor_key, keys.sample_key]
    names += [*(keys.categorical_covariate_keys or []), *(keys.continuous_covariate_keys or [])]
    columns = [obs_of(adata)[name].astype(str) for name in dict.fromkeys(names) if name in adata.obs]
    return {
        "cells": _digest(adata.obs_names),
        "genes": _digest(adata.var_names),
        "columns": _digest(*columns),
        "perturbations": _digest(perturbation_labels(adata, keys)),
        "counts": hashlib.sha256(totals.tobytes()).hexdigest()[:16],
    }


def _digest(*values: pd.Index | pd.Series | np.ndarray) -> str:
    digest = hashlib.sha256()
    for some in values:
        digest.update(pd.util.hash_array(np.asarray(some, dtype=object), categorize=True).tobytes())
    return digest.hexdigest()[:16]
