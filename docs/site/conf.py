"""Sphinx configuration of the documentation site: ``make docs``."""

import os
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "scripts"), *(str(path) for path in sorted(REPOSITORY.glob("bundles/*")))]
os.environ.setdefault("MPLBACKEND", "Agg")

from site_pages import bundle_names, for_site, write_pages  # noqa: E402

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
nitpick_ignore_regex = [("py:.*", rf"(?!({OURS})\b).*")]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

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
}


def setup(app):
    """Write the pages that are made of the repository, and turn the links of what pages include."""
    write_pages()

    def turn_links(_, path, __, content):
        content[0] = for_site(content[0], (REPOSITORY / "docs" / "site" / path).resolve())

    app.connect("include-read", turn_links)
