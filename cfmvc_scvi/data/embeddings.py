"""Vectors that describe perturbations: from their names, the expression of their genes, or their molecules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi._constants import CP10K
from cfmvc_scvi._messages import missing_genes, unknown_choice

#: Gene vectors are computed from at most this many cells; more cells change them little.
_MOST_CELLS = 20_000


def onehot_embedding(perturbations: Iterable[str]) -> pd.DataFrame:
    """Vectors without any likeness: each perturbation has a dimension of its own.

    They say no more than the names do: useful as a baseline, or beside further features.

    Parameters
    ----------
    perturbations
        Names, without the control; a repeated name counts once.

    Returns
    -------
    DataFrame (perturbation x perturbation) of 0 and 1.
    """
    names = list(dict.fromkeys(str(name) for name in perturbations))
    return pd.DataFrame(np.eye(len(names), dtype=np.float32), index=names, columns=names)


def gene_loadings(
    adata: AnnData,
    perturbations: Iterable[str] | Mapping[str, str],
    *,
    n_components: int = 32,
    layer: str | None = None,
    missing: Literal["error", "drop"] = "error",
) -> pd.DataFrame:
    r"""Principal component loadings of the genes that are perturbed, from control cells.

    Genes that vary together among unperturbed cells get similar vectors. With :math:`X = U S V^\top` the centred
    log1p counts per 10,000 of :math:`n` cells, the vector of gene :math:`g` is :math:`V_{g \cdot} S / \sqrt{n - 1}`, so
    inner products approach the covariance of the genes.

    Parameters
    ----------
    adata
        Raw counts of control cells, shape (n_cells, n_genes). Pass control cells alone, as in
        ``adata[adata.obs["perturbation"] == "control"]``: effects of the perturbations do not belong here.
    perturbations
        Names of perturbations that are genes of ``adata``, or a mapping from perturbation to gene.
    n_components
        Length of the vectors, at most the smaller dimension of ``adata``.
    layer
        Layer with the counts; ``None`` takes ``adata.X``.
    missing
        ``"error"`` refuses perturbations whose gene is not in ``adata``; ``"drop"`` leaves them out.

    Returns
    -------
    DataFrame (perturbation x n_components), float32.

    Raises
    ------
    ValueError
        When genes are missing; the message names them, and genes of ``adata`` with similar names.
    """
    genes, columns = _gene_columns(adata, perturbations, missing)
    return _loadings(_lognorm(adata, layer), n_components, columns, genes, scale=False)


def coexpression_embedding(
    adata: AnnData,
    perturbations: Iterable[str] | Mapping[str, str],
    *,
    n_components: int = 32,
    layer: str | None = None,
    missing: Literal["error", "drop"] = "error",
) -> pd.DataFrame:
    r"""Co-expression of the genes that are perturbed with all genes, from control cells.

    As :func:`gene_loadings`, with every gene at unit variance: inner products approach the Pearson correlation of the
    genes over control cells, whatever their level. The parameters and errors are the same.

    Returns
    -------
    DataFrame (perturbation x n_components), float32.
    """
    genes, columns = _gene_columns(adata, perturbations, missing)
    return _loadings(_lognorm(adata, layer), n_components, columns, genes, scale=True)


def smiles_fingerprints(smiles: Mapping[str, str], *, radius: int = 2, n_bits: int = 1024) -> pd.DataFrame:
    """Morgan fingerprints of molecules (Rogers and Hahn, 2010); needs RDKit.

    Parameters
    ----------
    smiles
        Mapping from perturbation to the SMILES of its molecule.
    radius
        Bonds around each atom that are looked at.
    n_bits
        Length of the vectors.

    Returns
    -------
    DataFrame (perturbation x n_bits) of 0 and 1.

    Raises
    ------
    ImportError
        When RDKit is not installed, with the command that installs it.
    ValueError
        For a SMILES that RDKit cannot read, naming the perturbation.
    """
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdFingerprintGenerator
    except ImportError as error:
        raise ImportError("`smiles_fingerprints` needs RDKit: `pip install rdkit`.") from error
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=n_bits)
    rows = {}
    with rdBase.BlockLogs():
        for name, text in smiles.items():
            molecule = Chem.MolFromSmiles(str(text)) if text else None
            if molecule is None:
                raise ValueError(f"The SMILES of {name!r} cannot be read: {text!r}. Correct it, or leave it out.")
            rows[str(name)] = generator.GetFingerprintAsNumPy(molecule).astype(np.float32)
    return pd.DataFrame.from_dict(rows, orient="index", columns=[f"bit_{i}" for i in range(n_bits)])


def _gene_columns(
    adata: AnnData, perturbations: Iterable[str] | Mapping[str, str], missing: str
) -> tuple[list[str], np.ndarray]:
    """Perturbations whose gene is in ``adata``, and the position of that gene."""
    if missing not in ("error", "drop"):
        raise ValueError(unknown_choice("missing", missing, ("error", "drop")))
    if isinstance(perturbations, Mapping):
        genes = {str(k): str(v) for k, v in perturbations.items()}
    else:
        genes = {str(name): str(name) for name in perturbations}
    columns = adata.var_names.get_indexer(pd.Index(list(genes.values())))
    lost = [name for name, column in zip(genes, columns, strict=True) if column < 0]
    if lost and (missing == "error" or len(lost) == len(genes)):
        wanted = f"the {len(genes)} genes of the perturbations"
        raise ValueError(
            f"{missing_genes([genes[name] for name in lost], adata.var_names, wanted=wanted)} Pass a mapping from "
            "perturbation to gene where the perturbations have other names, an AnnData with all genes where this one "
            "is cut to a panel, or `missing='drop'`."
        )
    kept = columns >= 0
    return [name for name, there in zip(genes, kept, strict=True) if there], columns[kept]


def _lognorm(adata: AnnData, layer: str | None) -> np.ndarray:
    """Dense log1p CP10k of at most :data:`_MOST_CELLS` cells."""
    rows = np.arange(adata.n_obs)
    if adata.n_obs > _MOST_CELLS:
        rows = np.sort(np.random.default_rng(0).choice(rows, _MOST_CELLS, replace=False))
    stored: Any = adata.X if layer is None else adata.layers[layer]
    counts = stored[rows]
    counts = np.asarray(counts.toarray() if sparse.issparse(counts) else counts, dtype=np.float32)
    if counts.size and counts.min() < 0:
        raise ValueError("The counts have negative values; raw counts of control cells are needed.")
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    return np.log1p(counts / total * CP10K)


def _loadings(y: np.ndarray, n_components: int, columns: np.ndarray, names: list[str], *, scale: bool) -> pd.DataFrame:
    from sklearn.decomposition import PCA

    most = min(y.shape)
    if not 1 <= n_components <= most:
        raise ValueError(
            f"`n_components` is {n_components}; {y.shape[0]} cells x {y.shape[1]} genes allow 1 to {most}."
        )
    y = y - y.mean(axis=0)
    if scale:
        y /= np.maximum(y.std(axis=0, ddof=1), 1e-3)
    # Rows of V S / sqrt(n - 1): their inner products are the covariance, as far as the components reach.
    pca = PCA(n_components, svd_solver="randomized" if min(y.shape) > 500 else "full", random_state=0).fit(y)
    components = np.asarray(pca.components_)
    vectors = components[:, columns].T * np.sqrt(pca.explained_variance_)
    return pd.DataFrame(vectors.astype(np.float32), index=names, columns=[f"pc_{i}" for i in range(n_components)])
