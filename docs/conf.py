"""Sphinx configuration. Builds without a network; on Read the Docs, links into other projects too."""

from __future__ import annotations

import base64
import inspect
import json
import os
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TUTORIALS = HERE.parent / "tutorials"

project = "cfmvc_scvi"
author = "cfmvc_scvi developers"
project_copyright = "2026, cfmvc_scvi developers"
version = release = installed_version("cfmvc_scvi")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
if os.environ.get("READTHEDOCS") == "True":
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping = {
    "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "pandas": ("https://pandas.pydata.org/docs/", None),
    "python": ("https://docs.python.org/3/", None),
    "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
    "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
    "torch": ("https://docs.pytorch.org/docs/stable/", None),
}

html_theme = "sphinx_book_theme"
html_title = "cfmvc_scvi"
html_theme_options = {"show_toc_level": 2}
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

# Docstrings: numpydoc sections, types from the signature alone.
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True

# Notebooks are shown with the outputs that they were committed with; running them is the tests' business.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"


#: The tutorials in order, with what each shows and the figure that stands for it in the gallery (counted from its end).
GALLERY = {
    "quickstart": ("Hold out a cell type's response to interferon-β, predict it, compare.", 1),
    "trust": ("Baselines, ceiling, support, intervals and the report, on two hidden cell types.", 1),
    "crispr_screen": ("The map of a screen, effect programs, genes, and targets that were never cut.", 4),
    "next_experiment": ("Which knock-out made these cells, what to cut next, and its cells taken in.", 1),
    "combinations_and_doses": ("Pairs and doses that were not measured, with known truth; many conditions at once.", 1),
    "from_disk": ("Files brought together, trained on from disk; effects of a whole screen into a file.", 1),
    "spatial": ("Coordinates as context: an effect that depends on place, simulated on real tissue.", 3),
}


def _copy_tutorials(target: Path) -> None:
    """Copy the notebooks beside the pages and write the page that lists them."""
    target.mkdir(exist_ok=True)
    paths = {notebook.stem: notebook for notebook in TUTORIALS.glob("*.ipynb")}
    names = [name for name in GALLERY if name in paths] + sorted(set(paths) - set(GALLERY))
    lines = [
        "# Tutorials",
        "",
        "The notebooks are shown as they were run. Set the environment variable `CFMVC_TUTORIAL_EPOCHS=2`",
        "for a trial run of one of them that shows only that everything works. `make demo` runs `tutorials/demo.py`,",
        "the shortest, on simulated cells whose true counterfactuals are known.",
        "",
        "Loaders of measured data download nothing: the notebooks say where the data are public, and in which",
        "folder a file is looked for.",
        "",
        "| | |",
        "|---|---|",
    ]
    for name in names:
        shutil.copy2(paths[name], target)
        notebook = json.loads(paths[name].read_text(encoding="utf-8"))
        text, from_end = GALLERY.get(name, ("", 1))
        figures = [
            output["data"]["image/png"]
            for cell in notebook["cells"]
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        ]
        picture = ""
        if figures:
            (target / f"{name}.png").write_bytes(base64.b64decode(figures[-min(from_end, len(figures))]))
            picture = f"![A figure of the tutorial]({name}.png)"
        lines.append(f"| {picture} | {{doc}}`{name}`<br>{text} |")
    lines += ["", "```{toctree}", ":maxdepth: 1", ":hidden:", "", *names, "```", ""]
    (target / "index.md").write_text("\n".join(lines), encoding="utf-8")


def _skip_foreign(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out members that a class has from another library: their own documentation describes them."""
    if what != "class" or skip:
        return None
    function = obj.fget if isinstance(obj, property) else inspect.unwrap(obj) if callable(obj) else None
    module = getattr(function, "__module__", None)
    return True if module is None or not module.startswith("cfmvc_scvi") else None


def setup(app: Any) -> None:
    """Register what this configuration adds to Sphinx."""
    app.connect("autodoc-skip-member", _skip_foreign)


_copy_tutorials(HERE / "tutorials")
