"""Several files of counts brought into one zarr store: any form, any order of genes, interruptions, bad input."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi import CFMVC
from cfmvc_scvi._rows import is_on_disk
from cfmvc_scvi.data import import_counts, importer, open_counts


@pytest.fixture
def files(simulate, tmp_path):
    """Three files of one screen: CSR, dense with genes in another order, zarr with more genes; and their cells."""
    parts = [simulate(seed=seed) for seed in range(3)]
    for i, part in enumerate(parts):
        part.obs_names = [f"{i}_{name}" for name in part.obs_names]
    rng = np.random.default_rng(0)
    shuffled = parts[1][:, rng.permutation(parts[1].n_vars)].copy()
    shuffled.X = shuffled.X.toarray()
    more = ad.concat([parts[2], AnnData(np.ones((300, 2)), parts[2].obs, {"_index": ["extra1", "extra2"]})], axis=1)
    more = more[:, ::-1].copy()
    more.X, more.obs = sparse.csr_matrix(more.X), parts[2].obs
    paths = {"a": tmp_path / "a.h5ad", "b": tmp_path / "b.h5ad", "c": tmp_path / "c.zarr"}
    parts[0].write_h5ad(paths["a"])
    shuffled.write_h5ad(paths["b"])
    more.write_zarr(paths["c"])
    return paths, parts


def expected_counts(parts):
    return np.concatenate([part.to_df().to_numpy() for part in parts])


def test_files_of_all_forms_are_brought_together(files, tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "_BLOCK", 128)
    monkeypatch.setattr(importer, "_CHUNK", 500)
    paths, parts = files
    adata = import_counts(paths, tmp_path / "all.zarr", show_progress=True)
    assert is_on_disk(adata.X) and list(adata.var_names) == list(parts[0].var_names)
    np.testing.assert_array_equal(adata.X[:].toarray(), expected_counts(parts))
    assert list(adata.obs_names) == [name for part in parts for name in part.obs_names]
    assert list(adata.obs["source"]) == ["a"] * 300 + ["b"] * 300 + ["c"] * 300
    for column in ("perturbation", "cell_type", "batch"):
        assert list(adata.obs[column]) == [value for part in parts for value in part.obs[column]]
    assert sorted(os.listdir(tmp_path)) == ["a.h5ad", "all.zarr", "b.h5ad", "c.zarr"]
    whole = ad.read_zarr(tmp_path / "all.zarr")
    whole.X.check_format()
    np.testing.assert_array_equal(whole.X.toarray(), expected_counts(parts))
    CFMVC.setup_anndata(adata, combination_delimiter="+")


def test_genes_layer_and_names(files, tmp_path):
    paths, parts = files
    genes = list(parts[0].var_names[[5, 2, 9]])
    adata = import_counts(list(paths.values()), tmp_path / "few.zarr", genes=genes, source_key=None)
    assert list(adata.var_names) == genes and "source" not in adata.obs
    np.testing.assert_array_equal(adata.X[:].toarray(), expected_counts([part[:, genes] for part in parts]))
    for part, name in zip(parts, ("x", "y"), strict=False):
        part.layers["raw"], part.obs_names = part.X.copy(), [f"cell{i}" for i in range(300)]
        part.X = np.log1p(part.X)
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    both = import_counts([tmp_path / "x.h5ad", tmp_path / "y.h5ad"], tmp_path / "raw.zarr", layer="raw")
    expected = np.concatenate([part.layers["raw"].toarray() for part in parts[:2]])
    np.testing.assert_array_equal(both.X[:].toarray(), expected)
    assert both.obs_names[0] == "cell0-x" and both.obs_names[300] == "cell0-y"


def test_a_normalised_file_among_counts_is_named_before_anything_is_written(files, tmp_path):
    paths, parts = files
    bad = parts[1].copy()
    bad.X = np.log1p(bad.X)
    bad.write_h5ad(paths["b"])
    with pytest.raises(
        ValueError,
        match=r"adata\.X of '.*b\.h5ad' does not hold counts: gene '.*' of cell '1_.*' has \d\.\d+, which is no whole "
        r"number: the values look log-transformed.*`layer=`",
    ):
        import_counts(paths, tmp_path / "all.zarr")
    assert not (tmp_path / "all.zarr").exists() and not (tmp_path / ".all.zarr.import").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1.0, "-1, which is negative"), (np.nan, "nan, which is missing"), (2.0**25, "beyond which")],
)
def test_a_bad_value_late_in_a_file_is_found(files, tmp_path, monkeypatch, value, message):
    monkeypatch.setattr(importer, "_BLOCK", 20)
    monkeypatch.setattr(importer, "_LOOKED_AT", 1)
    paths, parts = files
    gene, cell = parts[0].var_names[7], parts[0].obs_names[277]
    parts[0].X = parts[0].X.toarray()
    parts[0].X[277, 7] = value
    parts[0].write_h5ad(paths["a"])
    with pytest.raises(
        ValueError, match=rf"a\.h5ad' does not hold counts: gene '{gene}' of cell '{cell}' has .*{message}"
    ):
        import_counts(paths, tmp_path / "all.zarr")
    assert not (tmp_path / "all.zarr").exists()


def test_genes_that_do_not_match(files, simulate, tmp_path):
    paths, parts = files
    other = simulate()
    other.var_names = [f"ENSG{i}" for i in range(other.n_vars)]
    other.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(ValueError, match=r"share no gene by name: \{'.*a.h5ad': \[.*'ENSG0'"):
        import_counts([paths["a"], tmp_path / "other.h5ad"], tmp_path / "out.zarr")
    other.var_names = [*parts[0].var_names[:10], *other.var_names[10:]]
    other.write_h5ad(tmp_path / "other.h5ad")
    with pytest.warns(UserWarning, match="share 10 genes, fewer than half of the 60"):
        import_counts([paths["a"], tmp_path / "other.h5ad"], tmp_path / "out.zarr")
    with pytest.raises(ValueError, match=r"other\.h5ad"):
        import_counts([paths["a"], tmp_path / "other.h5ad"], tmp_path / "no.zarr", genes=list(parts[0].var_names))
    with pytest.raises(ValueError, match="`genes` has repeated names"):
        import_counts(paths, tmp_path / "no.zarr", genes=["g", "g"])
    other.var_names = ["same"] * other.n_vars
    other.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(ValueError, match=r"genes in '.*other\.h5ad' are not unique"):
        import_counts(tmp_path / "other.h5ad", tmp_path / "no.zarr")


def test_paths_and_layers_that_are_wrong(files, simulated, tmp_path):
    paths, _ = files
    out = tmp_path / "out.zarr"
    with pytest.raises(ValueError, match=r"must end in \.zarr"):
        import_counts(paths, tmp_path / "out.h5ad")
    with pytest.raises(FileExistsError, match="already"):
        import_counts(paths, paths["c"])
    with pytest.raises(FileNotFoundError, match="folder of `out` does not exist"):
        import_counts(paths, tmp_path / "none" / "out.zarr")
    with pytest.raises(ValueError, match="`paths` is empty"):
        import_counts([], out)
    with pytest.raises(ValueError, match="Several files have one name"):
        import_counts([paths["a"], paths["a"]], out)
    with pytest.raises(KeyError, match=r"`layer` 'raw' is not in the layers of .*a\.h5ad"):
        import_counts(paths, out, layer="raw")
    with pytest.raises(ValueError, match="'batch' is a column of obs already"):
        import_counts(paths, out, source_key="batch")
    simulated.X = sparse.csc_matrix(simulated.X)
    simulated.write_h5ad(tmp_path / "csc.h5ad")
    with pytest.raises(TypeError, match=r"csc\.h5ad.*stored by genes"):
        import_counts(tmp_path / "csc.h5ad", out)
    content = paths["a"].read_bytes()
    paths["a"].write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"a\.h5ad' cannot be opened"):
        import_counts(paths, out)
    assert not out.exists()


def stop_after(monkeypatch, n, error):
    append, done = importer._Store.append, []

    def stopping(store, block):
        if len(done) == n:
            raise error
        done.append(len(block.indptr) - 1)
        append(store, block)

    monkeypatch.setattr(importer._Store, "append", stopping)
    return done


def test_an_interrupted_import_goes_on_where_it_was(files, tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "_BLOCK", 70)
    monkeypatch.setattr(importer, "_CHUNK", 333)
    paths, parts = files
    out = tmp_path / "all.zarr"
    with monkeypatch.context() as patch:
        stop_after(patch, 7, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            import_counts(paths, out)
    assert not out.exists()
    with monkeypatch.context() as patch:
        rest = stop_after(patch, 100, None)
        adata = import_counts(paths, out)
    assert sum(rest) == 900 - (4 * 70 + 20 + 2 * 70)
    np.testing.assert_array_equal(adata.X[:].toarray(), expected_counts(parts))


def test_an_import_of_files_that_changed_starts_again(files, tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "_BLOCK", 70)
    paths, parts = files
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            import_counts(paths, tmp_path / "all.zarr")
    parts[0].X = parts[0].X * 2
    parts[0].write_h5ad(paths["a"])
    adata = import_counts(paths, tmp_path / "all.zarr")
    np.testing.assert_array_equal(adata.X[:].toarray(), expected_counts(parts))


def test_no_space_is_a_clear_error_and_what_is_there_is_kept(files, tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "_BLOCK", 70)
    paths, parts = files
    out = tmp_path / "all.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(importer, "require_space", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match=r"Could not write the counts to .*all\.zarr.*the disk is full"):
            import_counts(paths, out)
    with monkeypatch.context() as patch:
        stop_after(patch, 5, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(OSError, match="the disk is full"):
            import_counts(paths, out)
    assert not out.exists()
    np.testing.assert_array_equal(import_counts(paths, out).X[:].toarray(), expected_counts(parts))


SCRIPT = """
import sys
from cfmvc_scvi.data import importer
importer._BLOCK, importer._CHUNK = 10, 100
print("ready", flush=True)
importer.import_counts(dict(a=sys.argv[1], b=sys.argv[2], c=sys.argv[3]), sys.argv[4])
"""


@pytest.mark.slow
def test_an_import_killed_at_random_moments_gives_the_same_store(files, tmp_path):
    paths, parts = files
    out = tmp_path / "all.zarr"
    rng = np.random.default_rng(0)
    for delay in [*rng.uniform(0.05, 0.8, 4), None]:
        command = [sys.executable, "-c", SCRIPT, *map(str, paths.values()), str(out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout.readline() == b"ready\n" and not out.exists()
        if delay is None:
            assert process.wait(timeout=120) == 0
        else:
            time.sleep(delay)
            process.kill()
            process.wait()
        if out.exists():
            break
    np.testing.assert_array_equal(open_counts(out).X[:].toarray(), expected_counts(parts))
