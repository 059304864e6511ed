"""What is public has types, a type checker finds them, and they say what is meant."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import dbchannels

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "tests" / "typing" / "sample.py"


def check(path):
    """Return what mypy, strict, says of a file of a site."""
    options = ["--strict", "--config-file=", "--follow-imports=silent", "--cache-dir", ROOT / ".mypy_cache"]
    return subprocess.run(
        [sys.executable, "-m", "mypy", *options, path], capture_output=True, text=True, cwd=ROOT, timeout=300
    )


def test_a_sites_code_is_checked_against_the_types():
    found = check(SAMPLE)
    assert (found.stdout, found.returncode) == ("Success: no issues found in 1 source file\n", 0)


def test_each_line_that_is_marked_as_wrong_is_found(tmp_path):
    text = SAMPLE.read_text()
    marked = [number for number, line in enumerate(text.splitlines(), 1) if "# type: ignore" in line]
    bare = tmp_path / "bare.py"
    bare.write_text(re.sub(r"  # type: ignore.*", "", text))
    said = re.findall(r"^.*bare\.py:(\d+): error", check(bare).stdout, re.MULTILINE)
    found = sorted({int(number) for number in said})
    assert found == marked and len(marked) >= 8


def test_each_public_name_is_in_a_module_that_is_checked_strictly():
    files = re.search(
        r"^files = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
    )[1]
    checked = set(re.findall(r'"(.+)"', files))
    modules = {getattr(dbchannels, name).__module__ for name in dbchannels.__all__}
    for module in modules:
        path = module.replace(".", "/")
        folders = {f"{'/'.join(path.split('/')[:depth])}" for depth in range(1, path.count("/") + 2)}
        assert {f"{path}.py", *folders} & checked, module
