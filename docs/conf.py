"""How the documentation is built: ``pip install -e '.[docs]'``, then ``sphinx-build -W docs FOLDER``."""

import sys
from pathlib import Path

import django
from django.conf import settings

sys.path.insert(0, str(Path(__file__).parents[1]))

# The reference reads docstrings, and models need settings to be imported.
settings.configure(
    INSTALLED_APPS=[
        "dbchannels",
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    SECRET_KEY="only for the documentation",
)
django.setup()

import dbchannels  # noqa: E402  (after the settings)

project = "dbchannels"
author = "The dbchannels developers"
copyright = author
version = release = dbchannels.__version__
html_theme = "furo"
html_title = "dbchannels"
html_favicon = html_logo = "../examples/demo/static/demo/icon.svg"
html_static_path = ["_static"]
html_css_files = ["home.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#075e46", "color-brand-content": "#0b7a5b"},
    "dark_css_variables": {"color-brand-primary": "#7be0ba", "color-brand-content": "#4fcf9f"},
}
extensions = ["sphinx.ext.autodoc", "docs.tables"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "undoc-members": False}
highlight_language = "default"  # Python where it is that, and no complaint where it is not
