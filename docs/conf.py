"""How the site is built: ``make docs``."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

from recipes import GALLERY  # noqa: E402

import bilevax  # noqa: E402

project = "bilevax"
author = "The bilevax authors"
project_copyright = author
release = version = bilevax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "docstrings",
    "cards",
    "recipes",
    "family",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_ext", "_recipes", "_templates", "gallery/*.ipynb", "gallery/*.py", "gallery/*.md5"]
nitpicky = False
smartquotes_action = "D"  # dashes alone

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

autosummary_generate = True
autosummary_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature of a page is short; shapes and defaults are in its text
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

sphinx_gallery_conf = GALLERY

html_theme = "furo"
html_title = f"bilevax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # it fetches pages, which a browser refuses where the site is a folder
html_theme_options = {"navigation_with_keys": True}
