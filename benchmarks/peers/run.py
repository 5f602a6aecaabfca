"""Other methods on our tasks: each in an environment of its own, same folds, same metrics.

    python benchmarks/peers/run.py                                       all peers on all tasks
    python benchmarks/peers/run.py --peers scgen cpa --tasks kang zhao --envs /tmp/peers
    python benchmarks/peers/run.py --summary                             tables of earlier runs

For each peer: a virtual environment from requirements/PEER.txt (``--envs``, default an ignored folder here), then
recipe_PEER.py in a process of its own on the training cells, which are written to disk. It follows the peer's tutorial,
with one thread and a budget of processor seconds for training. Cells that were left out never leave this process. A
peer that cannot be installed or run is recorded with the last line of its error.

pip has to find a CPU build of torch (``PIP_EXTRA_INDEX_URL`` or ``PIP_FIND_LINKS``): requirements are installed without
dependencies, so that none of them can pull another one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "quality"))

import suite  # noqa: E402
from exchange import CONTROL, Fold, read_predictions, write_fold  # noqa: E402

from cfmvc_scvi import metrics  # noqa: E402

PEERS = ("scgen", "cpa", "cellflow", "biolord", "gears")
TASKS = ("kang", "zhao", "norman", "norman-size")
FACTS = ("peer", "version", "train s", "train cpu s", "peak MB", "epochs", "budget spent", "failed")
COLUMNS = [*suite.CONDITION, "seed", "method", *suite.COLUMNS, *suite.SCREEN, "chosen on", *FACTS]
OUT = suite.RESULTS / "peers.csv"


# ---- a fold, on disk ------------------------------------------------------------------------------------------------


def to_fold(tasks: Sequence[suite.Task]) -> Fold:
    """Training cells of one fold, and all that is asked of it."""
    first = tasks[0]
    training, keys = first.training, first.setup
    label = keys.get("labels_key")
    perturbation = suite.text(training, keys["perturbation_key"])
    library = training.X.sum(axis=1) if first.library is None else training.obs[first.library]
    cells = pd.DataFrame(
        {
            "context": "all" if label is None else suite.text(training, label),
            "perturbation": np.where(perturbation == keys["control_group"], CONTROL, perturbation),
            "library": np.asarray(library, dtype=np.float64).ravel(),
        }
    )
    rows = training.obs_names.get_indexer(first.control.obs_names)
    assert (rows >= 0).all() and training.obs_names.is_unique
    return Fold(
        counts=sp.csr_matrix(training.X),
        cells=cells,
        genes=training.var_names.tolist(),
        rows=rows,
        asked={task.condition: task.perturbation for task in tasks},
    )


# ---- environments ---------------------------------------------------------------------------------------------------


def environment(peer: str, envs: Path) -> Path:
    """Python of the peer's environment, made where it is not there yet."""
    folder, done = envs / peer, envs / peer / "installed"
    if not done.exists():
        run_quietly([os.environ.get("PEER_PYTHON", "python3.11"), "-m", "venv", str(folder)])
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--no-deps", "-r"]
        run_quietly([*pip, str(HERE / f"requirements/{peer}.txt")])
        done.touch()
    return folder / "bin/python"


def run_quietly(command: Sequence[str], **options: Any) -> None:
    """Run; an error ends with the last line that the command wrote."""
    done = subprocess.run(["nice", "-n", "19", *command], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise RuntimeError(lines[-1].strip())


def predict(peer: str, tasks: Sequence[suite.Task], options: argparse.Namespace) -> tuple[dict, dict]:
    """What the peer predicts for the tasks of one fold, and facts of the run."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    one_thread["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "fold"
        write_fold(folder, to_fold(tasks))
        script = [str(HERE / f"recipe_{peer}.py"), str(folder), str(options.budget), str(options.seed)]
        run_quietly([str(environment(peer, options.envs)), *script], env=clean | one_thread, cwd=place)
        return read_predictions(folder)


# ---- rows -----------------------------------------------------------------------------------------------------------


def rows(peer: str, name: str, options: argparse.Namespace) -> Iterator[pd.DataFrame]:
    """Scores of one peer on the conditions of one task; where it fails, one row with the reason."""
    for fold, group in groupby(suite.TASKS[name](options.confirm, options.seed), key=lambda task: task.fold):
        tasks, start = list(group), time.perf_counter()
        if options.folds and fold not in options.folds:
            continue
        try:
            predicted, run = predict(peer, tasks, options)
        except RuntimeError as error:
            print(f"{peer} {name} {fold}: {error}", flush=True)
            place = {"task": name, "fold": fold, "condition": tasks[0].condition, "seed": options.seed}
            yield pd.DataFrame([place | {"method": peer, "peer": peer, "failed": str(error)}])
            return
        pcs = metrics.fit_pcs(suite.expression(tasks[0].training, tasks[0].library), 50)
        versions = " ".join(f"{package} {version}" for package, version in run["versions"].items())
        for task in tasks:
            cells = {method: found[task.condition] for method, found in predicted.items()}
            table = suite.score(task, cells, pcs, options.seed)
            table = table[table["method"].isin(cells)].copy()
            place = {"task": name, "fold": task.fold, "condition": task.condition, "seed": options.seed}
            for at, (column, value) in enumerate(place.items()):
                table.insert(at, column, value)
            facts = run | {"peer": peer, "version": versions, "chosen on": not options.confirm}
            yield table.assign(**{key: facts.get(key) for key in ("chosen on", *FACTS)})
        print(f"{peer} {name} {fold}: {run['epochs']} epochs, {time.perf_counter() - start:.0f} s", flush=True)


def merged(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Rows of a new run in place of those of the same peer, task and condition."""
    key = ["peer", "task", "condition"]
    again = pd.MultiIndex.from_frame(old[key]).isin(pd.MultiIndex.from_frame(new[key])) if len(old) else []
    kept = old[~np.asarray(again, dtype=bool)] if len(old) else old
    return pd.concat([kept, new], ignore_index=True)


# ---- summary --------------------------------------------------------------------------------------------------------


def own_rows(paths: Sequence[Path]) -> pd.DataFrame:
    """Rows of this package: of the suite, and of the benchmark on Kang, whose folds are the suite's."""
    kang = pd.read_csv(suite.RESULTS / "kang.csv").rename(columns={v: k for k, v in suite.protocol.COLUMNS.items()})
    kang = kang.assign(task="kang", condition=kang["fold"])
    found = pd.concat(map(pd.read_csv, paths), ignore_index=True)
    return found if "kang" in set(found["task"]) else pd.concat([found, kang], ignore_index=True)


def summarise(peers: pd.DataFrame, ours: pd.DataFrame) -> None:
    """Print each task: peers, this package and the best simple baseline of every column, on the same conditions."""
    for name in peers["task"].unique():
        ran = peers[(peers["task"] == name) & peers["failed"].isna()]
        mine = ours[(ours["task"] == name) & ours["seed"].isin(ran["seed"]) & ours["condition"].isin(ran["condition"])]
        if ran.empty:
            continue
        both = pd.concat([ran, mine], ignore_index=True)
        columns = [column for column in [*suite.COLUMNS, *suite.SCREEN] if mine[column].notna().any()]
        table = both.groupby("method", sort=False)[columns].mean()
        not_simple = {*suite.NOT_SIMPLE, *ran["method"], "decoder ceiling"}
        simple = table.drop(index=[row for row in table.index if row in not_simple])
        shown = table.loc[[row for row in table.index if row not in simple.index]].copy()
        if len(simple):
            signed = simple * [suite.better(column) for column in columns]
            shown.loc["best simple, by column"] = [simple.loc[signed[column].idxmax(), column] for column in columns]
        shown["conditions"] = both.groupby("method")["condition"].nunique().reindex(shown.index)
        costs = ran.groupby("method")[["train s", "train cpu s", "peak MB"]].mean().round(0)
        print(f"\n{name}\n{shown.rename(columns=suite.COLUMNS | suite.SCREEN).join(costs).round(3).to_string()}")
    for row in peers[peers["failed"].notna()].itertuples():
        print(f"\n{row.peer} on {row.task}: {row.failed}")


def main() -> None:
    """Run the peers, write their rows, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--folds", nargs="+", default=None, help="names of folds; default: all")
    parser.add_argument("--envs", type=Path, default=HERE / "scratch", help="folder of the environments")
    parser.add_argument("--budget", type=float, default=100.0, help="processor seconds of one training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--confirm", action="store_true", help="the conditions that nothing was chosen on")
    parser.add_argument("--out", type=Path, default=OUT, help="CSV; rows of the same peer, task and condition go")
    parser.add_argument("--ours", type=Path, nargs="+", default=[suite.RESULTS / "suite.csv"], help="to print beside")
    parser.add_argument("--summary", action="store_true", help="nothing is run")
    options = parser.parse_args()
    options.envs = options.envs.resolve()
    found = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    for peer in [] if options.summary else options.peers:
        for name in options.tasks:
            for table in rows(peer, name, options):
                found = merged(found, table).reindex(columns=COLUMNS)
                found.to_csv(options.out, index=False, float_format="%.5g")
    summarise(found, own_rows(options.ours))


if __name__ == "__main__":
    main()
