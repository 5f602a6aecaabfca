"""The tutorials run from beginning to end; in a short form, so what they show is not tested here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cfmvc_scvi.data.datasets import DATASETS

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "tutorials"
FOLDER = Path(os.environ.get("CFMVC_DATA") or ROOT / ".." / "shared" / "data").resolve()
# One thread each, numba's too: scanpy's use of it would raise the number of threads of torch again.
SHORT = {"CFMVC_TUTORIAL_EPOCHS": "2", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MPLBACKEND": "Agg"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TUTORIALS.is_dir(), reason="tutorials/ is not part of this distribution"),
]


def run(command: list[str], folder: Path, **environment: str) -> str:
    """What a command prints; its errors, where it fails."""
    done = subprocess.run(
        [sys.executable, "-P", *command],
        cwd=folder,
        env=os.environ | SHORT | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


#: Data set that a notebook reads, by the name of its loader; ``None``: it simulates its own.
READS = {
    "quickstart": "kang2018",
    "trust": "kang2018",
    "crispr_screen": "papalexi2021",
    "next_experiment": "papalexi2021",
    "combinations_and_doses": None,
    "from_disk": None,
    "spatial": "wang2018_starmap",
}
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))


def require_data(name: str) -> None:
    """Skip where a data set is absent, but fail under CI=true."""
    file = FOLDER / f"{DATASETS[name].file}.h5ad"
    if not file.is_file():
        reason = f"{file.name} is not in {FOLDER} (set CFMVC_DATA)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def test_demo(tmp_path):
    printed = run([str(TUTORIALS / "demo.py")], tmp_path)
    assert "control + mean shift" in printed
    assert {path.name for path in (tmp_path / "demo_output").iterdir()} == {"demo.png", "demo.csv"}
    assert (tmp_path / "demo_output/demo.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(tmp_path / "demo_output/demo.csv", index_col=0)
    assert list(table.index) == ["CFMVC", "no change", "control + mean shift", "split-half ceiling"]
    assert table.drop(index="split-half ceiling").notna().all(axis=None)


def test_every_notebook_says_what_it_reads():
    assert {path.stem for path in NOTEBOOKS} == set(READS)
    for path in NOTEBOOKS:
        loader = READS[path.stem]
        assert (loader or "simulate_perturbation") in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook, tmp_path):
    if READS[notebook.stem] is not None:
        require_data(READS[notebook.stem])
    command = ["-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(tmp_path), str(notebook)]
    run(command, tmp_path, CFMVC_DATA=str(FOLDER))
    assert (tmp_path / notebook.name).is_file()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_with_their_figures(notebook):
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_show_no_paths(notebook):
    """Outputs show nothing of the machine that they were made on."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [
        "".join(output.get("text", [])) + "".join(output.get("data", {}).get("text/plain", []))
        for cell in cells
        if cell["cell_type"] == "code"
        for output in cell["outputs"]
    ]
    assert not [text for text in outputs if re.search(r"(?<![\w.:/])/(home|root|tmp|work|usr|Users)/", text)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hide_named_warnings_alone(notebook):
    """A filter of all warnings would hide those that a reader shall see."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    filters = re.findall(r"(?:filterwarnings|simplefilter)\(.*", "\n".join("".join(cell["source"]) for cell in cells))
    assert filters and all("message=" in line for line in filters)
