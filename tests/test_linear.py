"""No text of a stranger is slow: each pattern of the package, as it is used, and what masks and escapes.

Units are made of a pattern's own literals and classes, repeated to 8 kB behind what leads to them. Doubling the text
must cost less than three times as much: the one place of the suite that looks at a clock.
"""

from __future__ import annotations

import ast
import gc
import importlib
import pkgutil
import re
from contextlib import nullcontext, suppress
from time import thread_time

import pytest

import dbchannels
from dbchannels import codec
from dbchannels.auth.sessions import session_key
from dbchannels.redaction import Lines, escaped, escaped_lines, mask_query, message_text
from dbchannels.server import proxy_headers
from dbchannels.server.access_log import Access
from dbchannels.server.http.messages import Refused, Request
from dbchannels.server.http.parser import HeadLimits, HeadReader
from dbchannels.server.websocket.handshake import negotiate, read_handshake

try:
    from re import _parser as parser
except ImportError:  # Python 3.10
    import sre_parse as parser

SIZES = [
    4 * 2**n for n in range(12)
]  # characters; what is exponential or cubic is found before it takes minutes
AT_ONCE = 0.0005  # seconds: what takes less for 16 kB is linear, and too quick to be measured
TAILS = "", "\0", "\n", "!"  # what may make a match fail in the end
METHODS = {"match", "search", "fullmatch", "sub", "split", "findall", "finditer"}
#: They compile what the site's own developer wrote.
OF_DEVELOPERS = {"dbchannels.routing.patterns"}


# How long it takes.


@pytest.fixture(autouse=True)
def _without_collector():
    """Many pieces make the garbage collector walk all that the tests have imported, which is no matter of the text."""
    gc.disable()
    yield
    gc.enable()


def seconds(run, text, times):
    """Return the least time of some runs; the processor's, so that it does not matter what else the machine does."""
    least = float("inf")
    for _ in range(times):
        begun = thread_time()
        run(text)
        least = min(least, thread_time() - begun)
    return least


def slow_text(run, texts):
    """Return the first text whose double costs three times as much or more, None if there is none."""
    for make in texts:
        for size in SIZES:
            if seconds(run, make(2 * size), 1) < AT_ONCE:
                continue
            # What is slow is slow each time. What has only begun to ask the system for memory is not at the next
            # size; what is exponential is not tried there.
            ratio = growth(run, make, size)
            if ratio >= 3:
                ratio = min(ratio, growth(run, make, size))
            if ratio >= 3 and (ratio >= 16 or growth(run, make, 2 * size) >= 3):
                return make(size)[:100]
    return None


def growth(run, make, size):
    """Return how many times as long a text of twice the size takes."""
    return seconds(run, make(2 * size), 5) / seconds(run, make(size), 5)


def repeated(head, unit, tail):
    """Return what makes a text of a size: the unit again and again."""
    return lambda size: head + unit * (size // len(unit) + 1) + tail


# Which texts.


def atoms(parsed, last):
    """Yield an example of each part of a pattern, in order; of alternatives that of the first or the last."""
    for kind, value in parsed:
        name = str(kind)
        if name == "LITERAL":
            yield chr(value)
        elif name == "NOT_LITERAL":
            yield "b" if value == ord("a") else "a"
        elif name == "ANY":
            yield "a"
        elif name == "IN":
            yield example(value, last)
        elif name == "BRANCH":
            yield "".join(atoms(value[1][-1 if last else 0], last))
        elif name.endswith("REPEAT"):
            least, _, part = value
            inner = list(atoms(part, last))
            yield from inner * (least if len(inner) == 1 and least > 1 else 1)
        elif name in ("SUBPATTERN", "ATOMIC_GROUP"):
            yield from atoms(value[-1] if name == "SUBPATTERN" else value, last)


def example(items, last):
    """Return a character that is in a class: its first or its last."""
    negated, allowed = False, []
    for kind, value in items:
        name = str(kind)
        negated = negated or name == "NEGATE"
        if name == "LITERAL":
            allowed.append(chr(value))
        elif name == "RANGE":
            allowed.append(chr(value[last]))
        elif name == "CATEGORY":
            allowed.append({"DIGIT": "0", "SPACE": " "}.get(str(value).rpartition("_")[2], "a"))
    if not negated:
        return allowed[-1 if last else 0]
    source = re.compile("[" + "".join(map(re.escape, allowed)) + "]")
    return next(one for one in "a0_-/= ;\0" if not source.match(one))


def texts_for(pattern):
    """Return makers of texts for a pattern: runs of its parts behind what comes before them."""
    found = {}
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    for last in (False, True):
        parts = list(atoms(parser.parse(source, pattern.flags & ~re.UNICODE), last))[:40]
        for start in range(len(parts)):
            for length in range(1, 7):
                unit = "".join(parts[start : start + length])
                for head in ("", "".join(parts[:start])):
                    for tail in TAILS:
                        found[head, unit, tail] = repeated(head, unit, tail)
    return list(found.values())


def uses(pattern, method):
    """Return a function that uses a pattern in one way."""
    bound = getattr(pattern, method)
    if method == "sub":
        bound = lambda text: pattern.sub(lambda match: text[:0], text)  # noqa: E731
    elif method == "finditer":
        bound = lambda text: list(pattern.finditer(text))  # noqa: E731
    if isinstance(pattern.pattern, bytes):
        return lambda text: bound(text.encode("latin-1", "replace"))
    return bound


# Which patterns.


def modules():
    """Import and yield all modules of the package, without those of an extra that is not installed."""
    for found in pkgutil.walk_packages(dbchannels.__path__, "dbchannels."):
        optional = found.name.startswith(("dbchannels.tasks.", "dbchannels.layers.channels"))
        with suppress(ImportError) if optional else nullcontext():
            yield importlib.import_module(found.name)


def patterns_of(module, methods):
    """Yield (name, pattern, method) for each pattern of a module and each way in which the package uses it."""
    owners = [module, *(one for one in vars(module).values() if isinstance(one, type))]
    for owner in owners:
        if getattr(owner, "__module__", module.__name__) == module.__name__:
            for name, value in vars(owner).items():
                if isinstance(value, re.Pattern):
                    for method in sorted(methods.get(name, ())):
                        yield f"{module.__name__}.{name}.{method}", value, method


def literals_of(module, nodes):
    """Yield the same for patterns that are written where they are used."""
    bound = {one.value for one in nodes if isinstance(one, ast.Assign)}
    for node in nodes:
        if (
            not isinstance(node, ast.Call)
            or not isinstance(node.func, ast.Attribute)
            or node.func.attr not in METHODS | {"compile"}
            or ast.unparse(node.func.value) != "re"
        ):
            continue
        if isinstance(node.args[0], ast.Constant):
            # One that has a name is found by it.
            wanted = {node.func.attr} & METHODS or (set() if node in bound else {"match", "search"})
            flags = [ast.unparse(flag) for flag in node.args[1:] if ast.unparse(flag).startswith("re.")]
            pattern = re.compile(node.args[0].value, eval("|".join(flags) or "0", {"re": re}))
            for method in sorted(wanted):
                yield f"{module.__name__}:{node.lineno}.{method}", pattern, method


def all_patterns():
    """Return (name, pattern, method) for the whole package."""
    found = []
    for module in list(modules()):
        with open(module.__file__) as file:
            nodes = list(ast.walk(ast.parse(file.read())))
        methods: dict[str, set[str]] = {}
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr in METHODS:
                methods.setdefault(ast.unparse(node.value).rpartition(".")[2], set()).add(node.attr)
        found += [*patterns_of(module, methods), *literals_of(module, nodes)]
    return found


FOUND = all_patterns()


@pytest.mark.parametrize(("name", "pattern", "method"), FOUND, ids=[name for name, _, _ in FOUND])
def test_each_pattern_is_linear_as_it_is_used(name, pattern, method):
    assert slow_text(uses(pattern, method), texts_for(pattern)) is None


OLD_MASK = r"(?i)([?&;](?:[^=&;\s]*[_.-])?(?:auth|key|token)(?:[_.-][^=&;\s]*)?=)[^&;\s]+"


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (OLD_MASK, "sub"),
        (r"(a+)+\Z", "match"),
        (r"\s+\Z", "search"),
        (r"\Ahttp://[a-z]*[a-z0-9]*:", "match"),
        (r"[0-9]+(?:x|y)", "findall"),
    ],
)
def test_what_is_not_linear_is_found(pattern, method):
    compiled = re.compile(pattern)
    assert slow_text(uses(compiled, method), texts_for(compiled)) is not None


def test_the_patterns_were_found():
    names = {name for name, _, _ in FOUND}
    for name in (
        "dbchannels.server.http.parser._HOST.match",
        "dbchannels.server.websocket.handshake._EXTENSION.fullmatch",
        "dbchannels.redaction._SEPARATOR.split",
        "dbchannels.processes.development._COMBINED.fullmatch",
    ):
        assert name in names
    assert any(name.startswith("dbchannels.layers.postgresql.statements:") for name in names)


# The functions that see what a stranger sent.


def head_of(line, header):
    return f"{line}\r\nHost: a\r\nX: {header}\r\n\r\n".encode("latin-1")


def read_head(text):
    reader = HeadReader(HeadLimits(line=100_000, size=100_000))
    with suppress(Refused):
        reader.feed(head_of(f"GET /{text} HTTP/1.1", text))


def shake_hands(text):
    headers = [
        (name, text.encode()) for name in (b"sec-websocket-protocol", b"upgrade", b"connection", b"origin")
    ]
    with suppress(Refused):
        read_handshake("GET", "1.1", [*headers, (b"upgrade", b"websocket")])
    with suppress(Refused):
        negotiate([(b"sec-websocket-extensions", text.encode())])


def forward(text):
    headers = [(name, text.encode()) for name in (proxy_headers.FOR, proxy_headers.PROTO, proxy_headers.HOST)]
    request = Request("GET", f"/{text}", "1.1", headers, "http", ("127.0.0.1", 1), ("", 80))
    proxy_headers.forwarded(request, proxy_headers.Trusted.of(proxy_headers.LOOPBACK))


def session(text):
    session_key([(b"cookie", f'a="{text}"; sessionid="{text}"'.encode("latin-1"))])


def log_line(text):
    headers = [(b"referer", text.encode()), (b"user-agent", text.encode())]
    request = Request("GET", "/", "1.1", headers, "http", ("", 1), ("", 80))
    Access("", f"GET /{text}", 200, 0, 0.1, request).combined()


def admin(text):
    fields = {"query_string": text, "headers": [["referer", text], [text, text]], text: [text], "text": text}
    message_text("http.request", codec.encode(fields))


FUNCTIONS = [
    mask_query,
    escaped,
    escaped_lines,
    Lines,
    read_head,
    shake_hands,
    forward,
    session,
    log_line,
    admin,
]
UNITS = """?_key_ ?a=b& %25 %2525 %3Ftoken%3D token= &token ;key= aA A Aa a. , ,, a;b= a;b="c" 127.0.0.1, [::1]: %E9
    \xe9 " \\ :// a/ ../ -_. key HTTP/ ?#"""


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_what_reads_a_strangers_text_is_linear(function):
    assert (
        slow_text(function, [repeated("?", unit, "") for unit in [*UNITS.split(), " ", "\n", "\x1b"]]) is None
    )
