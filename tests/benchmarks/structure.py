"""How the package is laid out, read from its source: ``python -m tests.benchmarks.structure [FOLDER] [--once]``.

A *private function used once* has a name that begins with one underscore, and that name stands once in the package
outside of the function itself, in a call: a function that is handed on as a callback cannot be folded into its caller.
Nor can one that calls itself, or one with a decorator, such as a cache.
A *hand-over* is a function whose whole body is one call of another function of the package, with nothing but names and
constants as arguments. ``--once`` lists both, folder by folder, and the functions that are too long.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import dbchannels

MODULE, FUNCTION = 500, 40  # lines that one may have
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Place(NamedTuple):
    """A function, and where it is."""

    file: str
    line: int
    name: str
    lines: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.name} ({self.lines} lines)"


class Package:
    """The source of the package in a folder."""

    def __init__(self, folder: Path) -> None:
        self.sources = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.py")}
        self.trees = {file: ast.parse(source) for file, source in sorted(self.sources.items())}
        self.functions = [
            (file, node)
            for file, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, Function)
        ]
        self.lines = {file: len(source.splitlines()) for file, source in self.sources.items()}

    def with_code(self) -> list[str]:
        """Return the modules that hold more than a docstring."""
        return [file for file, tree in self.trees.items() if not all(map(_is_text, tree.body))]

    def used_once(self) -> Iterator[Place]:
        """Yield the private functions that one place uses."""
        uses, calls = Counter[str](), Counter[str]()
        for tree in self.trees.values():
            uses.update(_names(tree))
            calls.update(_names(tree, calls=True))
        defined = Counter(function.name for _, function in self.functions)
        for file, function in self.functions:
            name = function.name
            if not name.startswith("_") or name.startswith("__") or function.decorator_list:
                continue
            # A name that several modules have is looked for in its own alone.
            tree = self.trees[file]
            alone = defined[name] == 1
            used = (uses if alone else Counter(_names(tree)))[name]
            called = (calls if alone else Counter(_names(tree, calls=True)))[name]
            if used == called == 1 and not Counter(_names(function))[name]:
                yield _place(file, function)

    def long(self) -> Iterator[Place]:
        """Yield the functions of more than FUNCTION lines."""
        return (place for one in self.functions if (place := _place(*one)).lines > FUNCTION)

    def hand_overs(self) -> Iterator[Place]:
        """Yield the functions that only call another one."""
        ours = {function.name for _, function in self.functions}
        for file, function in self.functions:
            body = [one for one in function.body if not _is_text(one)]
            call = getattr(body[0], "value", None) if len(body) == 1 else None
            if isinstance(body[0] if body else None, ast.Return | ast.Expr) and isinstance(call, ast.Call):
                called = getattr(call.func, "attr", getattr(call.func, "id", ""))
                given = [*call.args, *(keyword.value for keyword in call.keywords)]
                if called in ours and all(map(_is_plain, given)):
                    yield _place(file, function)

    def imports(self) -> dict[str, set[str]]:
        """Return which files each file imports at its top."""
        modules = {_module(file): file for file in self.trees}
        found: dict[str, set[str]] = {}
        for file, tree in self.trees.items():
            found[file] = set()
            for node in _top(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dbchannels":
                    for alias in node.names:
                        whole = f"{node.module}.{alias.name}"
                        found[file] |= {modules.get(whole, modules.get(str(node.module), file))} - {file}
        return found

    def cycles(self) -> int:
        """Return 1 when there is a cycle of imports, else 0."""
        try:
            graphlib.TopologicalSorter(self.imports()).prepare()
        except graphlib.CycleError:
            return 1
        return 0

    def figures(self) -> Iterator[str]:
        """Yield the figures of the whole package."""
        code = self.with_code()
        sizes = {file: self.lines[file] for file in code}
        largest = max(sizes, key=sizes.__getitem__)
        once = list(self.used_once())
        yield f"modules with code          {len(code)}"
        yield f"lines                      {sum(self.lines.values()):,}"
        yield f"median module              {statistics.median(sizes.values()):g} lines"
        yield f"largest module             {sizes[largest]} lines, {largest}"
        yield f"modules over {MODULE} lines     {sum(size > MODULE for size in sizes.values())}"
        yield f"functions over {FUNCTION} lines    {len(list(self.long()))}"
        yield f"files at the top           {sum('/' not in file for file in code)}"
        yield (
            f"private functions used once {len(once)} of {len(self.functions)} functions, "
            f"{100 * len(once) / len(self.functions):.1f} %"
        )
        yield f"hand-overs                 {len(list(self.hand_overs()))}"
        yield f"import cycles              {self.cycles()}"


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_plain(node: ast.expr) -> bool:
    value = node.value if isinstance(node, ast.Attribute | ast.Starred) else node
    return isinstance(value, ast.Name | ast.Constant)


def _names(tree: ast.AST, calls: bool = False) -> Iterator[str]:
    """Yield each use of a name, alone or after a dot; or each call of one."""
    for node in ast.walk(tree):
        if calls:
            if not isinstance(node, ast.Call):
                continue
            node = node.func
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def _place(file: str, node: Function) -> Place:
    return Place(file, node.lineno, node.name, (node.end_lineno or node.lineno) - node.lineno + 1)


def _module(file: str) -> str:
    return f"dbchannels.{file.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")


def _top(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements that an import of the module runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ):
            continue
        yield node
        yield from _top(node)


def listed(places: Iterator[Place]) -> Iterator[str]:
    """Yield places under the name of their folder."""
    folders = defaultdict(list)
    for place in places:
        folders[place.file.rpartition("/")[0] or "(top)"].append(place)
    for folder, found in sorted(folders.items()):
        yield f"  {folder}: {len(found)}"
        yield from (f"    {place}" for place in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(dbchannels.__file__).parent)
    parser.add_argument("--once", action="store_true", help="list the functions that are to be looked at")
    options = parser.parse_args()
    package = Package(options.folder)
    print(*package.figures(), sep="\n")
    if options.once:
        print("\nPrivate functions used once", *listed(package.used_once()), sep="\n")
        print("\nHand-overs", *listed(package.hand_overs()), sep="\n")
        print(f"\nFunctions over {FUNCTION} lines", *listed(package.long()), sep="\n")


if __name__ == "__main__":
    main()
