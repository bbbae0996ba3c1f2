"""The documentation site: `uv run --extra docs sphinx-build -W docs build/site`.

Pages are the Markdown files of this folder, which read the same on a code forge; the reference is
made of the docstrings.
"""

import re

from fsanet import __version__

project = "fsanet"
author = copyright = "the fsanet authors"
release = __version__

extensions = [
    "myst_nb",  # Markdown, and notebooks with their outputs
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["evidence"]

myst_heading_anchors = 4  # links such as page.md#a-heading, as a forge makes them
myst_enable_extensions = ["dollarmath"]
highlight_language = "none"  # of indented blocks: commands, folders, file lists
nb_execution_mode = "force"  # a cell that fails is an error; -D nb_execution_mode=off skips them
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # warnings of other libraries

html_theme = "furo"
html_title = f"fsanet {release}"
html_copy_source = False
html_show_sphinx = False

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
default_role = "py:obj"  # `name` in a docstring
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Files of the repository that pages link to, and the pages that include them.
OUTSIDE = {"../SECURITY.md": "site/security.md", "../CHANGELOG.md": "site/changelog.md"}


def use_pages_of_the_site(app, docname, source):
    for file, page in OUTSIDE.items():
        source[0] = source[0].replace(f"]({file}", f"]({page}")
    source[0] = re.sub(r"\[[a-z_]+\.md\]\(", "[](", source[0])  # shows the title of the page


def setup(app):
    app.connect("source-read", use_pages_of_the_site)
