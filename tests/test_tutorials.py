"""The tutorials run from beginning to end; in a short form, so what they show is not tested here."""

from __future__ import annotations

import json
import os
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


def kang_folder() -> Path:
    """Where the measured cells are; their absence is a skip, but a failure under CI=true."""
    file = FOLDER / f"{DATASETS['kang2018'].file}.h5ad"
    if not file.is_file():
        reason = f"{file.name} is not in {FOLDER} (set CFMVC_DATA)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return FOLDER


def test_demo(tmp_path):
    printed = run([str(TUTORIALS / "demo.py")], tmp_path)
    assert "control + mean shift" in printed
    assert {path.name for path in (tmp_path / "demo_output").iterdir()} == {"demo.png", "demo.csv"}
    assert (tmp_path / "demo_output/demo.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(tmp_path / "demo_output/demo.csv", index_col=0)
    assert list(table.index) == ["CFMVC", "no change", "control + mean shift", "split-half ceiling"]
    assert table.drop(index="split-half ceiling").notna().all(axis=None)


def test_quickstart_runs(tmp_path):
    data = kang_folder()
    notebook = TUTORIALS / "quickstart.ipynb"
    command = ["-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(tmp_path), str(notebook)]
    run(command, tmp_path, CFMVC_DATA=str(data))
    assert (tmp_path / "quickstart.ipynb").is_file()


@pytest.mark.parametrize("notebook", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_with_their_figures(notebook):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
