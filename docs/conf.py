"""Sphinx's settings; `make docs` builds into out/docs, with every warning an error."""

import os
import sys
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import st_jv5  # noqa: E402
from docs import generated  # noqa: E402

project = "st_jv5"
author = "the st_jv5 authors"
release = st_jv5.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
]
html_theme = "furo"
html_title = "st_jv5"
exclude_patterns = ["**/__pycache__"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

napoleon_custom_sections = ["Inputs"]
napoleon_numpy_docstring = False
autodoc_default_options = {"members": True, "imported-members": True}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
maximum_signature_line_length = 80
python_use_unqualified_type_names = True

# Links to other projects need their lists of names from the network; other builds do without.
if os.environ.get("READTHEDOCS"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "datasets": ("https://huggingface.co/docs/datasets/main/en", None),
        "sbert": ("https://sbert.net", None),
    }


def drop_type_none(app, domain, objtype, content):
    """A class that says what its ``forward`` returns has not the return type of ``__init__``."""
    for field in list(content.findall(nodes.field)):
        name, body = field
        if name.astext() == "rtype" and body.astext() == "None":
            field.parent.remove(field)


def setup(app):
    """Replace ``@name@`` in a page by what `generated` makes under that name."""
    app.connect("source-read", generated.fill_in)
    app.connect("object-description-transform", drop_type_none, priority=600)
