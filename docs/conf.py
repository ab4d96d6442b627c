"""How Sphinx builds these pages: offline, every warning an error."""

from __future__ import annotations

from dbfleet import __version__

project = "django-dbfleet"
author = "django-dbfleet contributors"
copyright = author
release = __version__
version = ".".join(release.split(".")[:2])

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "django-dbfleet"
html_copy_source = False
html_show_sphinx = False
