"""What docs/architecture.rst says of the folders, and of the files that a message passes, is true of a running site."""

from __future__ import annotations

import re
from pathlib import Path

import dbchannels
from tests.benchmarks.trips import trips
from tests.harness import LiveSite

PACKAGE = Path(dbchannels.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "architecture.rst").read_text()
UPDATE = "Run `python -m tests.benchmarks.trips --write docs/architecture.rst`."
#: Folders in which Django looks by their names.
DJANGO = {"migrations", "static", "templates", "templatetags"}


def listed(trip: str) -> set[str]:
    """Return the files of a list on the page."""
    text = PAGE.partition(f".. trip: {trip}\n\n")[2].partition("\n\n")[0]
    return set(re.findall(r"^#\. ``(.+?)``:", text, re.MULTILINE))


def test_the_page_lists_the_files_that_each_trip_passes(site: LiveSite) -> None:
    for trip in trips(site, rounds=5):
        rounds = [{call.file for call in calls} for calls in trip.rounds]
        assert set.intersection(*rounds) <= listed(trip.name), (
            f"The list of {trip.name} lacks files. {UPDATE}"
        )
        assert listed(trip.name) <= set.union(*rounds), (
            f"The list of {trip.name} has too many files. {UPDATE}"
        )


def test_the_page_has_each_folder() -> None:
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")} - {Path()}
    names = {
        f"{folder}/" for folder in folders if folder.parts[0] not in DJANGO and folder.name != "commands"
    }
    table = PAGE.partition("The folders\n")[2].partition("Imports point down")[0]
    assert set(re.findall(r"^``(\S+/)``", table, re.MULTILINE)) == names | {"dbchannels/"}
