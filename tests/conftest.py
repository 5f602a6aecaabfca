"""Fixtures that every test may use: seeds, small simulated screens, models trained for a few steps, real data."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import scvi
from anndata import AnnData
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

#: Rooms whose signatures are checked at every call, shapes included, while the tests run.
CHECKED = ("flow", "nn", "module", "likelihood", "calibration")
#: beartype that takes an integer where a float is asked for, as Python does; found by its name, as the hook wants it.
checker = ModuleType("beartype_of_numbers")
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
sys.modules[checker.__name__] = checker
install_import_hook([f"cfmvc_scvi.{room}" for room in CHECKED], f"{checker.__name__}.check")

from cfmvc_scvi import CFMVC, data  # noqa: E402  # what is imported before is not checked
from cfmvc_scvi.data.datasets import DATASETS  # noqa: E402
from cfmvc_scvi.model import training  # noqa: E402

#: Networks small enough for a test.
SMALL = {"n_latent": 6, "n_latent_technical": 3, "n_hidden": 16, "n_basis": 4, "n_hidden_flow": 16}
#: Trainer arguments of every test.
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
#: Fixtures that train, or hand out a function that does. What asks for one, itself or by another fixture, is slow.
TRAINING_FIXTURES = {"fit", "trained", "trained_noise"}

# ---- what trains is marked slow -----------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests with a fixture that trains; those that train by themselves have the mark in their file."""
    for item in items:
        if TRAINING_FIXTURES & {*item.fixturenames, *_named_fixtures(item)}:
            item.add_marker(pytest.mark.slow)


def _named_fixtures(item: pytest.Item) -> list[str]:
    """Values of the parameters of a test that are texts: names of fixtures for ``request.getfixturevalue``."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return [value for value in parameters if isinstance(value, str)]


class Running:
    """The test that is running, its fixtures included; ``None`` between tests and outside pytest."""

    item: pytest.Item | None = None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note which test is running."""
    Running.item = item
    try:
        return (yield)
    finally:
        Running.item = None


def refuse_hidden_training(run_stage: Callable) -> Callable:
    """The function that both stages are trained by, which fails a test that is not marked slow."""

    @functools.wraps(run_stage)
    def checked(*args, **kwargs):
        if Running.item is not None and Running.item.get_closest_marker("slow") is None:
            pytest.fail("This test trains a model, so it must be marked: @pytest.mark.slow.")
        return run_stage(*args, **kwargs)

    return checked


training.run_stage = refuse_hidden_training(training.run_stage)

# ---- seeds, models, data ------------------------------------------------------------------------------------------


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Set the seed of scvi-tools, and give back the earlier one."""
    earlier = scvi.settings.seed
    scvi.settings.seed = seed
    try:
        yield
    finally:
        scvi.settings.seed = earlier


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Every test starts from seed 0 and leaves the setting as it was."""
    with seeded():
        yield


def simulate(**changes) -> AnnData:
    arguments = {"n_cells": 300, "n_genes": 60, "n_cell_types": 2, "n_perturbations": 3, "n_pairs": 1} | changes
    return data.simulate_perturbation(**arguments)


@pytest.fixture(scope="session", name="simulate")
def _simulate() -> Callable[..., AnnData]:
    """Function that simulates 300 cells x 60 genes: 2 types, 2 batches, P1 to P3, one pair; keywords change that."""
    return simulate


@pytest.fixture
def simulated() -> AnnData:
    """A simulated screen of its own for every test."""
    return simulate()


def build(adata: AnnData, setup: dict | None = None, **model_kwargs) -> CFMVC:
    CFMVC.setup_anndata(adata, **({"combination_delimiter": "+"} if setup is None else setup))
    return CFMVC(adata, **(SMALL | model_kwargs))


def fit(model: CFMVC, **train_kwargs) -> CFMVC:
    with seeded():
        model.train(**({"vae_max_epochs": 2, "flow_max_epochs": 2} | QUIET | train_kwargs))
    return model


@pytest.fixture(scope="session", name="build")
def _build() -> Callable[..., CFMVC]:
    """Function ``build(adata, setup=None, **model_kwargs)``: a small model from seed 0, not trained."""

    def build_seeded(*args, **kwargs) -> CFMVC:
        with seeded():
            return build(*args, **kwargs)

    return build_seeded


@pytest.fixture(scope="session", name="fit")
def _fit() -> Callable[..., CFMVC]:
    """Function ``fit(model, **train_kwargs)``: two epochs of each stage from seed 0; returns the model."""
    return fit


@pytest.fixture(scope="session")
def quiet() -> dict:
    """Trainer arguments: on the CPU, without progress bars."""
    return dict(QUIET)


@pytest.fixture(scope="session")
def trained() -> CFMVC:
    """A trained model of a simulated screen. Shared by all tests: do not train it, nor change its data."""
    with seeded():
        return fit(build(simulate()), vae_max_epochs=6, flow_max_epochs=20)


@pytest.fixture(scope="session")
def trained_noise() -> CFMVC:
    """The same with a flow that starts at noise."""
    with seeded():
        return fit(build(simulate(), flow_source="noise"), vae_max_epochs=6, flow_max_epochs=20)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder with the public data sets: ``CFMVC_DATA``, or ``../shared/data`` beside the project."""
    return Path(os.environ.get("CFMVC_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data")


@pytest.fixture
def real_data(data_folder: Path) -> Callable[[str], AnnData]:
    """Function that loads a public data set; its absence is a skip, but a failure under CI=true."""

    def load(name: str) -> AnnData:
        file = f"{DATASETS[name].file}.h5ad"
        if not (data_folder / file).is_file():
            reason = f"{file} is not in {data_folder} (set CFMVC_DATA)"
            if os.environ.get("CI", "").lower() == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        return getattr(data, name)(path=data_folder)

    return load


@pytest.fixture(scope="session")
def annbatch_files(tmp_path_factory) -> dict[str, Path]:
    """A collection that annbatch 0.3.1 wrote of two files, in three parts and shuffled, and these files.

    240 cells x 40 genes with a layer, doses, donors and coordinates; 50 cells a shard, 10 a chunk.
    """
    folder = tmp_path_factory.mktemp("annbatch")
    with zipfile.ZipFile(Path(__file__).parent / "data" / "annbatch_collection.zip") as file:
        file.extractall(folder)
    names = {"collection": "collection.zarr", "first": "first.h5ad", "second": "second.h5ad"}
    return {name: folder / file for name, file in names.items()}


def control_cells(model) -> AnnData:
    """Control cells as a user brings them: without anything of scvi-tools."""
    cells = model.adata[model.adata.obs["perturbation"] == "control"].copy()
    cells.obs = cells.obs.loc[:, [name for name in cells.obs if not name.startswith("_scvi")]]
    cells.uns = {}
    return cells


@pytest.fixture(scope="module")
def cells(trained):
    return control_cells(trained)


@pytest.fixture(scope="module")
def predicted(trained):
    return trained.predict_perturbation(perturbation="P1")


def load_tool(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tools_{name}", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.fixture(scope="session")
def house() -> ModuleType:
    """The script ``tools/house.py``, whose counting the tests of the layout share."""
    return load_tool("house")
