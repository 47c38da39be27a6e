"""Sphinx configuration of the documentation site: ``make docs``."""

import os
import re
import shutil
import sys
import tomllib
import warnings
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "scripts"), *(str(path) for path in sorted(REPOSITORY.glob("bundles/*")))]
os.environ.setdefault("MPLBACKEND", "Agg")
# MONAI warns in every run that configs are code; these are our own.
warnings.filterwarnings("ignore", message=".*config", category=UserWarning, module="monai.bundle")

from site_pages import bundle_names, for_site, write_pages
from sphinx.util import logging

project = "qmri-bundles"
author = "The qmri-bundles contributors"
copyright = author
release = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax and its fonts in the site itself: nothing comes from outside
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["examples"]
nitpicky = True
# Other packages' documentation cannot be asked: the build needs no network.
OURS = "|".join(["physics", "shared_transforms", *bundle_names()])
# Nor are private bases and names of types documented.
TYPES = "Estimate|FileWriterd|MapLike|Method|Network|NiftiInfo|Parameters|Size|LesionTable"
nitpick_ignore_regex = [("py:.*", rf"(?!({OURS})\b).*"), ("py:class", rf".*\.(_\w+|{TYPES})")]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # types stand in the signature

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
templates_path: list[str] = []

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,  # its page loads scripts from outside
}


REPORTS = REPOSITORY / "build" / "gallery"


def turn_links(app, path, docname, content):
    """Links of an included text, to files of the repository, become those of the site."""
    file = (REPOSITORY / "docs" / "site" / path).resolve()
    try:
        content[0] = for_site(content[0], file)
    except ValueError as error:
        logging.getLogger(__name__).warning("%s has %s", file.name, error)


def hide_paths(app, docname, content):
    """The gallery shows paths from the root of the repository, wherever that lay when it was built."""
    if docname.startswith("gallery/"):
        content[0] = content[0].replace(f"{REPOSITORY}/", "")


def mark_shapes(app, what, name, found, options, lines):
    """A shape such as [N, *voxels] is code, whether the docstring marks it or not: its star is no emphasis."""
    lines[:] = [re.sub(r"(?<![`\w\[,])(\[[^\]`]*\*[^\]`]*\])(?![`\w])", r"``\1``", line) for line in lines]


def break_formulas(app, what, name, found, options, lines):
    """Parts of a formula that stand side by side in a long docstring line stand below each other on the page."""
    text = "\n".join(lines)
    for block in re.findall(r"^ *\.\. math:: .*\n(?: +\S.*\n)*", text, re.MULTILINE):
        start, formula = block.split(".. math:: ")
        parts = [part.strip() for part in re.split(r"\\qquad\b", " ".join(formula.split()))]
        if len(parts) > 1 and len(formula) > 100:
            rows = f" \\\\\n{start}    ".join(f"& {part}" for part in parts)
            text = text.replace(block, f"{start}.. math::\n\n{start}    {rows}\n")
    lines[:] = text.split("\n")


def shorter_path(app, env, node, contnode):
    """A function that its package hands on is documented there, and referred to by its own module as well."""
    package, _, name = node.get("reftarget", "").rpartition(".")
    if node.get("refdomain") == "py" and package.count(".") > 1:
        target = f"{package.rpartition('.')[0]}.{name}"
        domain = env.domains["py"]
        return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, contnode)
    return None


def copy_reports(app, error):
    """Reports of the inferences in the gallery, as they were written."""
    for name in bundle_names() if app.config.plot_gallery and not error else ():
        target = Path(app.outdir) / "_static" / "reports" / f"{name}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPORTS / name / "maps" / "sub-demo" / "report.html", target)


def setup(app):
    """Write the pages that are made of the repository, and see to texts that are included."""
    write_pages()
    app.connect("include-read", turn_links)
    app.connect("source-read", hide_paths)
    app.connect("autodoc-process-docstring", mark_shapes, priority=900)
    app.connect("autodoc-process-docstring", break_formulas, priority=901)
    app.connect("missing-reference", shorter_path)
    app.connect("build-finished", copy_reports)
