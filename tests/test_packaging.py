"""What is built for PyPI: the wheel has the package and nothing else, the sdist what its tests need."""

from __future__ import annotations

import ast
import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import dbchannels

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"
#: What a run of the demo and of the tests leaves in a checkout, some of it secret.
LEFT = [
    "examples/.secret_key",
    "examples/.postgres/data/base",
    "examples/demo.sqlite3-wal",
    "tests/__pycache__/a.pyc",
]


def build(kind, source, folder):
    """Build an sdist or a wheel as pip and `python -m build` do; return its path."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", folder]
    subprocess.run(command, check=True, cwd=source, capture_output=True, timeout=120)
    (path,) = folder.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The unpacked sdist of a copy of the checkout, in which a demo has been run."""
    folder = tmp_path_factory.mktemp("sdist")
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    for name in LEFT:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_text("secret")
    with tarfile.open(build("sdist", folder / "source", folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"dbchannels-{dbchannels.__version__}"


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, which is built from the sdist."""
    with zipfile.ZipFile(build("wheel", sdist, tmp_path_factory.mktemp("wheel"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    """The fields that PyPI and pip read."""
    text = wheel.read(f"dbchannels-{dbchannels.__version__}.dist-info/METADATA").decode()
    return email.message_from_string(text)


def files(folder, *below):
    """Return the files of a folder, or of these folders in it; without byte code."""
    found = [path for name in below or ["."] for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix() for path in found if path.suffix != ".pyc"}


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel):
    names = set(wheel.namelist())
    information = f"dbchannels-{dbchannels.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(information)} == files(ROOT, "dbchannels")
    assert f"{information}licenses/LICENSE" in names


@pytest.mark.parametrize(
    "name",
    [
        "dbchannels/py.typed",
        "dbchannels/management/deploy/nginx",
        "dbchannels/migrations/0001_initial.py",
        "dbchannels/static/dbchannels/admin.css",
        "dbchannels/static/dbchannels/admin.js",
        "dbchannels/static/dbchannels/dbchannels.js",
        "dbchannels/static/dbchannels/live-group.js",
        "dbchannels/templates/admin/dbchannels/actions.html",
        "dbchannels/templatetags/__init__.py",
    ],
)
def test_the_wheel_has_files_that_nothing_imports(wheel, name):
    assert name in wheel.namelist()


def test_the_sdist_has_the_tests_and_all_that_they_read(sdist):
    single = [
        "CHANGELOG.rst",
        "CONTRIBUTING.rst",
        "LICENSE",
        "README.rst",
        "noxfile.py",
        "pyproject.toml",
        "setup.py",
    ]
    wanted = files(ROOT, "dbchannels", "docs", "examples", "tests")
    hidden = {name for name in wanted if "/." in name or ".sqlite3" in name}
    assert {*single, *(wanted - hidden)} <= files(sdist)


def test_the_sdist_has_nothing_that_a_run_leaves_behind(sdist):
    assert all((sdist.parent / "source" / name).exists() for name in LEFT)
    assert not [path for path in sdist.rglob("*") if path.is_file() and path.read_bytes() == b"secret"]


def test_the_version_has_one_source(metadata):
    assert metadata["Version"] == dbchannels.__version__
    changes = (ROOT / "CHANGELOG.rst").read_text()
    assert re.search(rf"^{re.escape(dbchannels.__version__)}\b", changes, re.MULTILINE)


def test_the_licence_is_named_and_shipped(metadata):
    assert (metadata["License-Expression"], metadata.get_all("License-File")) == ("BSD-3-Clause", ["LICENSE"])


def test_the_description_is_the_readme(metadata):
    assert metadata["Description-Content-Type"] == "text/x-rst"
    assert metadata.get_payload().strip() == (ROOT / "README.rst").read_text().strip()


def test_the_versions_that_are_promised_are_those_of_the_matrix(metadata):
    noxfile = ast.parse((ROOT / "noxfile.py").read_text())
    (matrix,) = (
        ast.literal_eval(node.value)
        for node in noxfile.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MATRIX"
    )
    promised = "\n".join(metadata.get_all("Classifier"))
    pythons = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", promised, re.MULTILINE)
    assert pythons == sorted({row[0] for row in matrix}, key=lambda version: int(version[2:]))
    assert re.findall(r"^Framework :: Django :: (.+)$", promised, re.MULTILINE) == sorted(
        {row[1] for row in matrix}
    )
    assert metadata["Requires-Python"] == f">={pythons[0]}"


def test_pytest_finds_the_plugin(wheel):
    text = wheel.read(f"dbchannels-{dbchannels.__version__}.dist-info/entry_points.txt").decode()
    assert text == "[pytest11]\ndbchannels = dbchannels.testing.plugin\n"
    assert (
        EntryPoint("dbchannels", "dbchannels.testing.plugin", "pytest11").load().__name__
        == "dbchannels.testing.plugin"
    )
