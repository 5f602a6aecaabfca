"""Loaders of public data sets, with their columns brought to the conventional names.

:func:`kang2018_all` downloads a public file. Of the others nothing is downloaded: the files that the loaders
read were put together from the published counts (merged, subset or converted; ``uns["source"]`` of each says
how), and no public address serves them as they are. A loader looks for ``<name>.h5ad`` in its argument
`path`, else in the folder that the environment variable ``CFMVC_DATA`` names, else in
``~/.cache/cfmvc_scvi``; if it is in none, the error says where the measured data are public.

Every loader returns raw counts in ``X`` (CSR) unless it says otherwise, with ``obs["batch"]``,
``obs["cell_type"]`` and ``obs["perturbation"]``, all categorical. Columns of the file are kept; one whose
values had to be renamed is kept as ``<column>_original``. Data without perturbations have
``obs["perturbation"] == "control"`` throughout.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anndata as ad
import pandas as pd
from anndata import AnnData

from cfmvc_scvi._types import obs_of
from cfmvc_scvi.data.download import download

CONVENTIONAL: Final = ("batch", "cell_type", "perturbation")
DATA_VARIABLE: Final = "CFMVC_DATA"
CACHE: Final = Path("~/.cache/cfmvc_scvi")


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a loader needs to know about a data set."""

    file: str
    """Name of the file, without ``.h5ad``."""
    accession: str
    """Where the measured data are public."""
    publication: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """Conventional column -> the file's column, where the names differ."""
    constants: Mapping[str, str] = field(default_factory=dict)
    """Conventional columns that the file lacks because they have one value only."""
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Conventional column -> {the file's value: the conventional value}."""
    url: str | None = None
    """Address that serves the file as it is."""


#: All cells of Kang et al. 2018, at the address that pertpy has for them.
KANG_ALL: Final = DatasetInfo(
    file="kang_2018",
    accession="GEO GSE96583",
    publication="Kang et al. 2018, Nat Biotechnol 36:89, doi:10.1038/nbt.4042",
    columns={"batch": "replicate", "perturbation": "label"},
    values={"perturbation": {"ctrl": "control", "stim": "IFNB"}},
    url="https://figshare.com/ndownloader/files/34464122",
)
_UNPERTURBED: Final = {"perturbation": "control"}
DATASETS: Final[dict[str, DatasetInfo]] = {
    "kang2018": DatasetInfo(
        file="kang2018_pbmc_ifnb_4k",
        accession="GEO GSE96583",
        publication="Kang et al. 2018, Nat Biotechnol 36:89, doi:10.1038/nbt.4042",
        columns={"batch": "donor", "perturbation": "condition"},
        values={"perturbation": {"ctrl": "control", "stim": "IFNB"}},
    ),
    "papalexi2021": DatasetInfo(
        file="papalexi2021_eccite_290genes",
        accession="GEO GSE153056",
        publication="Papalexi et al. 2021, Nat Genet 53:322, doi:10.1038/s41588-021-00778-2",
        values={"perturbation": {"non-targeting": "control"}},
    ),
    "gasperini2019": DatasetInfo(
        file="gasperini2019_highmoi_366genes",
        accession="GEO GSE120861",
        publication="Gasperini et al. 2019, Cell 176:377, doi:10.1016/j.cell.2018.11.029",
        values={"perturbation": {"non-targeting": "control"}},
    ),
    "cao2018": DatasetInfo(
        file="cao2018_scicar_a549_dex",
        accession="GEO GSE117089",
        publication="Cao et al. 2018, Science 361:1380, doi:10.1126/science.aau0730",
        constants={"batch": "sci-CAR"},
    ),
    "tian2019_cellbench": DatasetInfo(
        file="tian2019_cellbench_5batches",
        accession="GEO GSE118767",
        publication="Tian et al. 2019, Nat Methods 16:479, doi:10.1038/s41592-019-0425-8",
        constants=_UNPERTURBED,
    ),
    "wang2018_starmap": DatasetInfo(
        file="wang2018_starmap_mpfc",
        accession="the publication (STARmap; no repository accession is recorded in the file)",
        publication="Wang et al. 2018, Science 361:eaat5691, doi:10.1126/science.aat5691",
        constants=_UNPERTURBED,
        values={"cell_type": {"NA": "unassigned"}},
    ),
    "moffitt2018_merfish": DatasetInfo(
        file="moffitt2018_merfish_hypothalamus_3sections",
        accession="the publication (MERFISH; no repository accession is recorded in the file)",
        publication="Moffitt et al. 2018, Science 362:eaau5324, doi:10.1126/science.aau5324",
        constants=_UNPERTURBED,
    ),
}


def kang2018(path: str | os.PathLike[str] | None = None) -> AnnData:
    """PBMC of eight donors, unstimulated and after 6 h of interferon-β (3,498 cells × 4,805 genes).

    `batch`: donor (``obs["donor"]``). `perturbation`: ``"control"`` or ``"IFNB"`` (``obs["condition"]``:
    ctrl, stim). 406 cell types were transferred from neighbours: ``obs["cell_type_source"] == "kNN
    transfer"``.

    Parameters
    ----------
    path
        The ``.h5ad`` file or its folder. Default: the folder in the environment variable ``CFMVC_DATA``, else
        ``~/.cache/cfmvc_scvi``.

    Raises
    ------
    FileNotFoundError
        With what was looked for, where, and the accession of the public data.
    """
    return _load("kang2018", path)


def kang2018_all(path: str | os.PathLike[str] | None = None, *, sha256: str | None = None) -> AnnData:
    """All cells of the experiment of :func:`kang2018`, downloaded once (about 24,700 cells × 15,700 genes).

    `batch`: donor (``obs["replicate"]``). `perturbation`: ``"control"`` or ``"IFNB"`` (``obs["label"]``: ctrl,
    stim). The file is that of ``pertpy.data.kang_2018``, and is not that of :func:`kang2018`: figures differ.

    Parameters
    ----------
    path
        The ``.h5ad`` file, or the folder that has it or shall get it. Default: the folder in the environment
        variable ``CFMVC_DATA``, else ``~/.cache/cfmvc_scvi``.
    sha256
        SHA-256 that the file must have; no hash of it is published.

    Raises
    ------
    ConnectionError
        When the file is not there and cannot be downloaded, with where to put it.
    ValueError
        When its hash is another one.
    """
    file, _ = _place(KANG_ALL, path)
    assert KANG_ALL.url is not None
    return _read("kang2018_all", KANG_ALL, download(KANG_ALL.url, file, sha256))


def papalexi2021(path: str | os.PathLike[str] | None = None) -> AnnData:
    """ECCITE-seq of THP-1 with 25 CRISPR knock-outs (20,729 cells × 290 of the genes).

    `batch`: replicate. `perturbation`: target gene, or ``"control"`` (non-targeting guides). The genes are a
    panel: use ``size_factor_key="n_umis_total"``, the cell's total over the transcriptome. Arguments as in
    :func:`kang2018`.
    """
    return _load("papalexi2021", path)


def gasperini2019(path: str | os.PathLike[str] | None = None) -> AnnData:
    """CRISPRi screen of K562 at high multiplicity (40,002 cells × 366 of the genes).

    `batch`: preparation. `perturbation`: targets joined by ``"+"`` (use ``combination_delimiter="+"``), or
    ``"control"``, cells with none of the listed targets (``obs["perturbation_original"]`` tells those with a
    non-targeting guide). ``obsm["guide_presence"]``: cell × target. Use ``size_factor_key="n_umis_total"``.
    Cells also carry guides that are not listed. Arguments as in :func:`kang2018`.
    """
    return _load("gasperini2019", path)


def cao2018(path: str | os.PathLike[str] | None = None) -> AnnData:
    """sci-CAR of A549 after 0, 1 and 3 h of 100 nM dexamethasone (2,641 cells × 1,185 genes).

    `batch`: one. `perturbation`: ``"control"`` (0 h) or ``"dexamethasone"``. ``obs["time_h"]`` is 0 in
    control cells and can serve as ``dosage_key``. Arguments as in :func:`kang2018`.
    """
    return _load("cao2018", path)


def tian2019_cellbench(path: str | os.PathLike[str] | None = None) -> AnnData:
    """Five lung cancer lines in five batches of two protocols (992 cells × 11,533 genes), unperturbed.

    `batch`: CEL-seq2 or Drop-seq run. `cell_type`: cell line. Arguments as in :func:`kang2018`.
    """
    return _load("tian2019_cellbench", path)


def wang2018_starmap(path: str | os.PathLike[str] | None = None) -> AnnData:
    """STARmap of the mouse medial prefrontal cortex (3,704 cells × 158 genes), unperturbed.

    `batch`: imaging batch. `cell_type`: 15 types and ``"unassigned"`` (NA in the file). ``obsm["spatial"]``.
    Arguments as in :func:`kang2018`.
    """
    return _load("wang2018_starmap", path)


def moffitt2018_merfish(path: str | os.PathLike[str] | None = None) -> AnnData:
    """MERFISH of the mouse hypothalamus, three sections (15,848 cells × 135 genes), unperturbed.

    ``X`` holds log-normalised values, **not counts**: a count model must refuse it. `batch`: section.
    ``obsm["spatial"]``. Arguments as in :func:`kang2018`.
    """
    return _load("moffitt2018_merfish", path)


def _load(name: str, path: str | os.PathLike[str] | None) -> AnnData:
    """Find a data set and read it."""
    info = DATASETS[name]
    return _read(name, info, _find(name, info, path))


def _read(name: str, info: DatasetInfo, file: Path) -> AnnData:
    """Read a file and add the conventional columns."""
    adata = ad.read_h5ad(file)
    sources = {column: info.columns.get(column, column) for column in CONVENTIONAL if column not in info.constants}
    missing = sorted(set(sources.values()) - set(adata.obs))
    if missing:
        raise KeyError(
            f"{file} has no obs columns {missing}, so it is not the file that {name}() reads. Its columns: "
            f"{list(adata.obs)}."
        )
    for column, source in sources.items():
        original = obs_of(adata)[source].astype("category")
        renamed = {value: info.values.get(column, {}).get(value, value) for value in original.cat.categories}
        if source == column and any(old != new for old, new in renamed.items()):
            adata.obs[f"{column}_original"] = original
        adata.obs[column] = pd.Categorical(original.map(renamed).astype(object))
    for column, value in info.constants.items():
        adata.obs[column] = pd.Categorical([value] * adata.n_obs)
    return adata


def _find(name: str, info: DatasetInfo, path: str | os.PathLike[str] | None) -> Path:
    """Path of the file of a data set, or an error that says how to get it."""
    file, origin = _place(info, path)
    if file.is_file():
        return file
    needed = sorted({info.columns.get(c, c) for c in CONVENTIONAL if c not in info.constants})
    raise FileNotFoundError(
        f"{name}() looked for {file.name} in {file.parent} ({origin}) and did not find it. Set {DATA_VARIABLE} to "
        "the folder that holds it, or give path=. It cannot be downloaded from here: the measured data are "
        f"public at {info.accession} ({info.publication}). {_instead(name)}A file of your own needs raw counts in X "
        f"and the obs columns {needed}. For data that need no file: simulate_perturbation()."
    )


def _instead(name: str) -> str:
    return "kang2018_all() downloads all cells of the experiment. " if name == "kang2018" else ""


def _place(info: DatasetInfo, path: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """Where the file of a data set is, or shall be, and what says so."""
    folder = os.environ.get(DATA_VARIABLE)
    if path is not None:
        place, origin = Path(path), "the argument path"
    elif folder:
        place, origin = Path(folder), f"the environment variable {DATA_VARIABLE}"
    else:
        place, origin = CACHE, f"the default; {DATA_VARIABLE} is not set"
    place = place.expanduser()
    return (place if place.is_file() or place.suffix == ".h5ad" else place / f"{info.file}.h5ad"), origin
