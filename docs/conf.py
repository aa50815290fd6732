"""Sphinx configuration: MyST pages, API reference from docstrings, examples that run."""

import re
from importlib.metadata import version as installed

from sphinx.application import Sphinx

project = "sayiir-persist"
author = "The sayiir-persist authors"
project_copyright = author
release = version = installed(project)

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature of a struct shows them already

# Examples in docstrings use what the package exports, without importing it.
doctest_global_setup = """
from datetime import timedelta
from typing import Any
from sayiir_persist import *
from sayiir_persist.definition import definition_hash
"""

# The build needs no network, so there is no inventory of other projects to link to: every
# reference into this package is checked, and only those that leave it are not.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(abc|anyio|asyncio|builtins|collections|contextlib|datetime|enum|logging|msgspec|pathlib"
        r"|redis|sqlite3|types|typing)(\..*)?",
    ),
    # Annotations name what is imported for type checkers only as it stands in the source.
    (r"py:class", r"[^.]+"),
    (r"py:class", r"sayiir_persist\.results\.ResultsDelta"),
    (r"py:class", r"sayiir_persist\.adapters\.redis\.connections\.Dialer"),
]

html_theme = "furo"
html_title = f"{project} {release}"

CODE_SPAN = re.compile(r"(?<![`:\\])`([^`\n]+)`(?!`)(?=(\w?))")


def code_spans(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Let docstrings write `code` as Markdown does, with a plural `s` right behind it too."""
    lines[:] = [CODE_SPAN.sub(_literal, line) for line in lines]


def _literal(span: re.Match[str]) -> str:
    return f"``{span[1]}``" + ("\\ " if span[2] else "")


def factory_defaults(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    return_annotation: str | None,
) -> tuple[str | None, str | None]:
    """Show a default that a struct makes anew as `...`; `<factory>` does not parse."""
    return signature and signature.replace("<factory>", "..."), return_annotation


def setup(app: Sphinx) -> None:
    """Install the hooks that adapt what autodoc reads."""
    app.connect("autodoc-process-docstring", code_spans)
    app.connect("autodoc-process-signature", factory_defaults)
