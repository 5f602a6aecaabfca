"""Every format gives back what was written, and what is no table of vectors is refused with what to do."""

from __future__ import annotations

import gzip
import os
import pickle

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from cfmvc_scvi.data.vectors.formats import FORMATS, read_names, read_table

NAMES = ["IRF7", "NA", "CUL3"]  # a gene called NA is no missing value
X = np.arange(12.0, dtype=np.float32).reshape(3, 4) / 8
FRAME = pd.DataFrame(X, index=NAMES, columns=list("abcd"))
VECTORS = dict(zip(NAMES, X, strict=True))


def hdf5(path):
    with h5py.File(path, "w") as file:
        file["embeddings"], file["proteins"] = X, [name.encode() for name in NAMES]
        file["metadata/version"] = 12


def zipped(path, data):
    with gzip.open(path, "wb") as file:
        file.write(pickle.dumps(data))


WRITERS = {
    "x.csv": FRAME.to_csv,
    "x.csv.gz": FRAME.to_csv,
    "x.tsv": lambda path: FRAME.to_csv(path, sep="\t"),
    "x.tsv.gz": lambda path: FRAME.to_csv(path, sep="\t"),
    "x.txt": lambda path: FRAME.to_csv(path, sep="\t"),
    "x.txt.gz": lambda path: FRAME.to_csv(path, sep="\t"),
    "arrays.npz": lambda path: np.savez(path, vectors=X, names=np.array(NAMES)),
    "each.npz": lambda path: np.savez(path, **VECTORS),
    "each-row.npz": lambda path: np.savez(path, **{name: x[None] for name, x in VECTORS.items()}),
    "string.h5": hdf5,
    "string.hdf5": hdf5,
    "each.pt": lambda path: torch.save({name: torch.tensor(x) for name, x in VECTORS.items()}, path),
    "half.pt": lambda path: torch.save({name: torch.tensor(x).bfloat16() for name, x in VECTORS.items()}, path),
    "arrays.pth": lambda path: torch.save({"embeddings": torch.tensor(X), "genes": NAMES}, path),
    "dict.pkl": lambda path: path.write_bytes(pickle.dumps(VECTORS)),
    "lists.pickle": lambda path: path.write_bytes(pickle.dumps({name: x.tolist() for name, x in VECTORS.items()})),
    "frame.pkl": FRAME.to_pickle,
    "arrays.pickle": lambda path: path.write_bytes(pickle.dumps({"genes": NAMES, "vectors": X})),
    "dict.pkl.gz": lambda path: zipped(path, VECTORS),
    "dict.pickle.gz": lambda path: zipped(path, VECTORS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_round_trip(tmp_path, name):
    WRITERS[name](tmp_path / name)
    table = read_table(tmp_path / name, None)
    assert list(map(str, table.names)) == NAMES
    np.testing.assert_allclose(table.values, X)
    if name.startswith(("x.", "frame")):
        assert list(table.features) == list("abcd")


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    FRAME.to_parquet(tmp_path / "index.parquet")
    FRAME.rename_axis("gene").reset_index().to_parquet(tmp_path / "column.parquet")
    FRAME.reset_index(names="gene")[["a", "gene", "b", "c", "d"]].to_parquet(tmp_path / "key.parquet")
    for name, key in (("index", None), ("column", None), ("key", "gene")):
        table = read_table(tmp_path / f"{name}.parquet", key)
        assert list(table.names) == NAMES
        np.testing.assert_array_equal(table.values, X)


def test_every_ending_is_tried():
    endings = {max((end for end in FORMATS if name.endswith(end)), key=len) for name in WRITERS}
    assert endings | {".npy", ".parquet"} == set(FORMATS)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(pd, "read_parquet", lambda path: (_ for _ in ()).throw(ImportError("pyarrow")))
    with pytest.raises(ImportError, match=r"pip install 'cfmvc_scvi\[parquet\]'"):
        read_table(tmp_path / "x.parquet", None)


def test_arrays_without_names(tmp_path):
    np.save(tmp_path / "x.npy", X)
    table = read_table(tmp_path / "x.npy", None)
    assert table.names is None
    np.testing.assert_array_equal(table.values, X)
    (tmp_path / "names.txt").write_text("IRF7\nNA\n\n CUL3 \n")
    (tmp_path / "names.json").write_text('["IRF7", "NA", "CUL3"]')
    (tmp_path / "bad.json").write_text('{"a": 1}')
    assert read_names(tmp_path / "names.txt") == read_names(tmp_path / "names.json") == NAMES
    with pytest.raises(ValueError, match="holds a dict; names are read from a JSON list"):
        read_names(tmp_path / "bad.json")


def test_keys(tmp_path):
    np.savez(tmp_path / "two.npz", small=X[:, :2], large=X, genes=np.array(NAMES))
    np.testing.assert_array_equal(read_table(tmp_path / "two.npz", "small").values, X[:, :2])
    with pytest.raises(ValueError, match=r"several arrays of vectors, \['small', 'large'\]: give one as `key`"):
        read_table(tmp_path / "two.npz", None)
    with pytest.raises(ValueError, match=r"Unknown `key` 'larges': choose one of \['small', 'large'\]. Close matches"):
        read_table(tmp_path / "two.npz", "larges")
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["species/9606/embeddings"], file["species/9606/proteins"] = X, np.array(NAMES, dtype="S8")
    table = read_table(tmp_path / "all.h5", "species/9606")
    assert list(table.names) == NAMES
    with pytest.raises(ValueError, match="no arrays at its top, but .*species.*: give one of these as `key`"):
        read_table(tmp_path / "all.h5", None)
    FRAME.reset_index(names="gene")[["a", "gene"]].to_csv(tmp_path / "x.csv", index=False)
    assert list(read_table(tmp_path / "x.csv", "gene").names) == NAMES
    with pytest.raises(ValueError, match=r"has no column 'genes'.*Close matches: \['gene'\]"):
        read_table(tmp_path / "x.csv", "genes")


class Touch:
    """Makes a file when it is read by pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch, of a pickle that is no file of its own
def test_hostile_files_are_refused(tmp_path):
    """What would run by pickle does not run here, whatever it is wrapped in."""
    trace = tmp_path / "trace"
    torch.save({"IRF7": torch.ones(3), "evil": Touch(trace)}, tmp_path / "hostile.pt")
    np.save(tmp_path / "hostile.npy", np.array([Touch(trace)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "hostile.npz", names=np.array([Touch(trace)], dtype=object))
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps({"IRF7": X[0], "evil": Touch(trace)}))
    (tmp_path / "renamed.npy").write_bytes(pickle.dumps(Touch(trace)))
    (tmp_path / "renamed.pt").write_bytes(pickle.dumps(Touch(trace)))
    for file in sorted(tmp_path.glob("*.*")):
        with pytest.raises(ValueError, match=r"could run code"):
            read_table(file, None)
        assert not trace.exists(), file
    torch.load(tmp_path / "hostile.pt", weights_only=False)
    assert trace.exists()  # the file is as hostile as it should be


def test_no_vectors(tmp_path):
    cases = {
        "text.csv": (lambda path: FRAME.assign(note="x").to_csv(path), r"no numbers: \['note'\]"),
        "tabs.csv": (lambda path: FRAME.to_csv(path, sep="\t"), "no columns of numbers .* ending"),
        "ragged.pkl": (
            lambda path: path.write_bytes(pickle.dumps({"A": [1.0, 2.0], "B": [1.0, 2.0], "C": [1.0]})),
            r"most have 2 numbers, \['C'\] 1",
        ),
        "text.pkl": (lambda path: path.write_bytes(pickle.dumps({"A": "x", "B": "y"})), "no vectors"),
        "empty.pkl": (lambda path: path.write_bytes(pickle.dumps({})), "no vectors"),
        "odd.pkl": (lambda path: path.write_bytes(pickle.dumps({"A": [{}, 1.0]})), "neither numbers nor text"),
        "x.docx": (lambda path: path.write_text("x"), r"says no format: files that end with \['.npz'"),
        "damaged.pt": (lambda path: path.write_bytes(b"PK\x03\x04damaged"), "damaged"),
    }
    for name, (write, message) in cases.items():
        write(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            read_table(tmp_path / name, None)
