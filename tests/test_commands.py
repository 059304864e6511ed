"""The commands' arguments, and what they say of bad ones; whole runs are among the end-to-end tests."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from itertools import pairwise

import pytest
from django.core.management import CommandError, call_command, get_commands, load_command_class

from dbchannels import conf, consumer
from dbchannels.exceptions import InvalidConfiguration, LayerUnavailable
from dbchannels.layers import channel_layers, make_layer
from dbchannels.management import output
from dbchannels.management.commands import runchannels, runserver, runworker
from dbchannels.processes import production
from dbchannels.processes.supervisor import worker_command
from dbchannels.routing import table
from dbchannels.server.listeners import DEFAULT, Address, SocketPermissions
from dbchannels.server.options import LaunchConfig, ServerConfig
from dbchannels.server.proxy_headers import LOOPBACK, Trusted
from dbchannels.server.server import InterfaceServer
from dbchannels.testing.contract.case import raises
from dbchannels.wakeup import WakeupPipe
from tests import kinds


@pytest.fixture(autouse=True)
def decorated(monkeypatch):
    """The decorators' list, empty, for this test alone."""
    monkeypatch.setattr(table, "_decorated", [])


@pytest.fixture(autouse=True)
def log():
    """The log of dbchannels as it is when a process starts, and put back after the test."""
    log = logging.getLogger("dbchannels")
    access = logging.getLogger("dbchannels.access")
    kept = [(one, one.level, list(one.handlers), one.propagate) for one in (log, access)]
    yield log
    for one, level, handlers, propagate in kept:
        one.setLevel(level)
        one.handlers[:], one.propagate, one.disabled = handlers, propagate, False


@pytest.fixture
def memory():
    """The site's layer: one in memory."""
    settings = conf.LayerSettings("default", conf.SHORT_BACKENDS["memory"], "default", None, conf.OPTIONS)
    channel_layers["default"] = make_layer(settings)
    yield channel_layers["default"]
    channel_layers.clear()


def refused(command, *arguments):
    """Run a command that refuses; return its one sentence."""
    with raises(CommandError) as error:
        call_command(command, *arguments)
    return error.sentence


# An address.


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8000", ("127.0.0.1", 8000)),
        ("0", ("127.0.0.1", 0)),
        ("65535", ("127.0.0.1", 65_535)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("localhost:8000", ("localhost", 8000)),
        ("my-host.example:8000", ("my-host.example", 8000)),
        ("[::1]:8000", ("::1", 8000)),
        ("[::]:8000", ("::", 8000)),
    ],
)
def test_an_address_is_a_port_or_a_host_with_one(text, address):
    assert Address.parse(text) == (*address, "")


NO_PORT = ["", "localhost", "localhost:", "[::1]", "localhost:8000/", "http://localhost:8000"]
NO_NUMBER = ["65536", "99999", "123456", "-1", "8e3", "80 00", "8000\n"]
NO_HOST = [":8000", "::1:8000", "1:2:3", "[localhost]:8000"]


@pytest.mark.parametrize("text", [*NO_PORT, *NO_NUMBER, *NO_HOST])
def test_anything_else_is_refused_in_a_sentence(text):
    with raises(InvalidConfiguration) as error:
        Address.parse(text)
    assert error.sentence.startswith(f"{text!r} is not an address: give a port, as 8000")


def test_the_command_says_it_too():
    assert "'nowhere' is not an address" in refused("runchannels", "nowhere")


def bound(*arguments, monkeypatch):
    """Return where runchannels would listen with these arguments."""
    configs = []
    monkeypatch.setattr(production, "run", lambda config, *_: configs.append(config))
    call_command("runchannels", *arguments)
    (one,) = configs
    return [str(address) for address in one.server.addresses or [DEFAULT]]


@pytest.mark.parametrize(
    ("arguments", "addresses"),
    [
        ([], ["127.0.0.1:8000"]),
        (["8001"], ["127.0.0.1:8001"]),
        (["--bind", "[::1]:8001"], ["[::1]:8001"]),
        (["--bind", "8001", "--bind", "unix:/run/site.sock"], ["127.0.0.1:8001", "unix:/run/site.sock"]),
        (["8001", "--bind", "8002"], ["127.0.0.1:8001", "127.0.0.1:8002"]),
    ],
)
def test_it_listens_where_it_is_told_to_and_nowhere_else(monkeypatch, log, arguments, addresses):
    assert bound(*arguments, monkeypatch=monkeypatch) == addresses


@pytest.mark.parametrize("given", [["--access-log"], ["--no-access-log"]])
def test_the_access_log_can_be_left_out(monkeypatch, log, given):
    bound(*given, monkeypatch=monkeypatch)
    assert logging.getLogger("dbchannels.access").disabled is (given == ["--no-access-log"])


# The configuration that runchannels reads.


def test_nobody_is_believed_unless_it_is_asked_for():
    assert config().server.proxies is None
    assert config(proxy_headers=True).server.proxies == Trusted.of(LOOPBACK)
    assert config(proxy_headers=True, trusted_proxies=["10.0.0.1"]).server.proxies == Trusted.of(["10.0.0.1"])


def test_a_proxys_host_is_believed_when_it_is_asked_for():
    assert config(proxy_headers=True, forwarded_host=True).server.proxies == Trusted.of(LOOPBACK, host=True)
    said = refused("runchannels", "--forwarded-host")
    assert said == "--forwarded-host has no effect without --proxy-headers: give both."


def test_origins_are_those_of_forms(settings):
    settings.CSRF_TRUSTED_ORIGINS, settings.DEBUG = ["https://*.example.com"], True
    assert config().server.origins == (("https://*.example.com",), True)


def test_a_list_of_proxies_that_nobody_reads_is_refused():
    said = refused("runchannels", "--trusted-proxies=10.0.0.1")
    assert said == "--trusted-proxies has no effect without --proxy-headers: give both."


@pytest.mark.parametrize(
    ("text", "path"), [("", ""), ("/", ""), ("/site", "/site"), ("/site/", "/site"), ("/a/b", "/a/b")]
)
def test_a_root_path_is_taken_without_its_last_slash(text, path):
    assert config(root_path=text).server.root_path == path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--root-path=site"], "--root-path takes a path that begins with a slash"),
        (["--root-path=/a?b"], "--root-path takes a path that begins with a slash"),
        (["--root-path=/a%20b"], "--root-path takes a path that begins with a slash"),
        (["--bind=nowhere"], "'nowhere' is not an address"),
        (["--bind=unix:"], "'' is not the path of a Unix socket"),
        (["--probe-port=nowhere"], "'nowhere' is not an address"),
        (["--socket-mode=rw"], "'rw' is not a mode for --socket-mode"),
        (["--socket-owner=no-such-user"], "--socket-owner names 'no-such-user', and there is no such user."),
        (
            ["--socket-owner=:no-such-group"],
            "--socket-owner names 'no-such-group', and there is no such group.",
        ),
        (
            ["--proxy-headers", "--trusted-proxies=all"],
            "'all' in --trusted-proxies is not an address or network",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(log, arguments, sentence):
    said = refused("runchannels", *arguments)
    assert said.startswith(sentence)


def test_a_socket_is_given_to_a_user_and_a_group_by_name_or_number():
    assert config().server.socket_permissions == SocketPermissions(0o660, -1, -1)
    assert config(socket_mode="0600", socket_owner="root").server.socket_permissions == SocketPermissions(
        0o600, 0, -1
    )
    assert config(socket_owner="1:2").server.socket_permissions == SocketPermissions(0o660, 1, 2)
    assert config(socket_owner=":root").server.socket_permissions == SocketPermissions(0o660, -1, 0)


def config(**options):
    """Return the configuration of a command line."""
    return LaunchConfig.from_options(options)


@pytest.mark.parametrize(("cores", "workers"), [(None, 4), (2, 4), (8, 8)])
def test_there_are_as_many_workers_as_cores_and_four_at_least(monkeypatch, cores, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert config().workers == workers


@pytest.mark.parametrize("workers", [0, 1, 7])
def test_a_number_of_workers_is_taken_as_it_is(workers):
    assert config(workers=workers).workers == workers


def test_a_negative_number_of_workers_is_refused():
    with raises(InvalidConfiguration):
        config(workers=-1)
    assert "--workers takes a number from 0" in refused("runchannels", "--workers=-1")


@pytest.mark.parametrize("option", ["http_timeout", "graceful_timeout", "wait_for_database"])
@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 1e10])
def test_a_timeout_that_is_none_is_refused(option, seconds):
    with raises(InvalidConfiguration) as error:
        config(**{option: seconds})
    assert "--" + option.replace("_", "-") in error.sentence


@pytest.mark.parametrize(
    ("debug", "nostatic", "static"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_static_files_are_served_in_development(settings, debug, nostatic, static):
    settings.DEBUG = debug
    assert config(nostatic=nostatic).static is static


def test_static_files_are_not_served_without_their_app(settings):
    settings.DEBUG = True
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if not app.endswith("staticfiles")]
    assert config().static is False


def tasks(**options):
    """Return (arguments, the kinds of its wakeups) of each worker."""
    wakeups = {kind: kind.upper() for kind in "hwd"}
    return [(task.arguments, "".join(task.wakeups)) for task in production.tasks(config(**options), wakeups)]


@pytest.mark.parametrize(
    ("workers", "kinds"),
    [
        (0, []),
        (1, ["hwd"]),
        (2, ["hw", "hwd"]),
        (3, ["hw", "hwd", "hwd"]),
        (4, ["w", "hw", "hwd", "hwd"]),
        (6, ["w", "hw", "hwd", "hwd", "hwd", "hwd"]),
    ],
)
def test_some_of_several_workers_are_kept_for_clients(workers, kinds):
    found = tasks(workers=workers)
    assert [wakeups for _, wakeups in found] == kinds
    for arguments, wakeups in found:
        only = [pattern for option, pattern in pairwise(arguments) if option == "--only"]
        assert only == {"w": ["websocket.*"], "hw": ["http.*", "websocket.*"], "hwd": []}[wakeups]


def test_workers_are_told_what_the_server_was_told():
    ((arguments, _),) = tasks(workers=1, layer="other", graceful_timeout=7.0, pythonpath="/site")
    assert arguments == ("--layer", "other", "--graceful-timeout", "7.0", "--pythonpath=/site")


@pytest.mark.parametrize("number", [0, 1, 3])
def test_runworker_takes_what_runchannels_passes_on(number):
    parser = runworker.Command().create_parser("manage.py", "runworker")
    for arguments, _ in tasks(workers=number, pythonpath="/site"):
        taken = parser.parse_args(["--child", "worker-1-x", "--wakeup-fd", "3,4", *arguments])
        assert (taken.child, taken.wakeup_fd, taken.layer, taken.graceful_timeout) == (
            "worker-1-x",
            ["3,4"],
            "default",
            10.0,
        )
        assert taken.pythonpath == "/site"


@pytest.mark.parametrize(
    ("debug", "configured", "allowed"),
    [
        (True, [], (".localhost", "127.0.0.1", "[::1]")),
        (False, [], ()),
        (True, ["example.org"], ("example.org",)),
        (False, ["example.org"], ("example.org",)),
    ],
)
def test_hosts_are_allowed_as_django_does(settings, debug, configured, allowed):
    settings.DEBUG, settings.ALLOWED_HOSTS = debug, configured
    assert config().server.allowed_hosts == allowed


# The start of a process, and its end.


@pytest.mark.parametrize("module", [runchannels, runserver, runworker])
def test_no_collection_walks_through_what_was_imported(module, monkeypatch):
    done = []
    monkeypatch.setattr(gc, "freeze", lambda: done.append("frozen"))
    monkeypatch.setattr(atexit, "register", lambda call: done.append(call))
    with pytest.raises(SystemExit):
        module.Command().run_from_argv(["manage.py", "command", "--help"])
    assert done == ["frozen", gc.freeze]


# Before runchannels serves.


class Checks:
    """``manage.py check`` in a child: a line of Python instead."""

    def __init__(self, code):
        command = [sys.executable, "-c", code]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def checked(code):
    """Return what is shown of what the checks print."""
    shown = []
    with Checks(code).process as process:
        production.await_checks(process, shown.append)
    return shown


def test_checks_that_found_nothing_say_nothing():
    assert checked("print('System check identified no issues (0 silenced).')") == []


def test_warnings_are_shown():
    assert checked("print('WARNINGS: one')") == ["WARNINGS: one"]


def test_errors_are_shown_and_end_it():
    with pytest.raises(InvalidConfiguration, match=r"(?s)ERRORS: one.*correct them, and start again\."):
        checked("print('ERRORS: one'); raise SystemExit(1)")


@pytest.fixture
def started(monkeypatch):
    """Return the checks that were started: they take a minute unless they are ended."""
    processes = []

    def start(config):
        processes.append(Checks("import time; time.sleep(60)").process)
        return processes[-1]

    monkeypatch.setattr(production, "start_checks", start)
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_a_layer_in_memory_cannot_be_served(memory, started):
    assert "runchannels needs one on a database" in refused("runchannels", "0")
    assert started == []


def test_a_layer_that_cannot_be_used_is_one_sentence(memory, started, monkeypatch):
    def check():
        raise LayerUnavailable(
            "The database 'default' cannot be used (gone): start it, or correct DATABASES."
        )

    monkeypatch.setattr(memory, "shared", True)
    monkeypatch.setattr(memory, "check", check)
    assert "start it, or correct DATABASES" in refused("runchannels", "0")
    assert started == []


def test_an_unknown_layer_is_one_sentence(started):
    assert "DBCHANNELS has no layer 'other'" in refused("runchannels", "0", "--layer=other")
    assert "DBCHANNELS has no layer 'other'" in refused("runworker", "--layer=other")


@pytest.mark.parametrize(
    ("workers", "line"),
    [
        (0, "Workers: none here: start them with runworker"),
        (1, "Workers: 1 process"),
        (3, "Workers: 3 processes, one kept for http.* and websocket.*"),
        (4, "Workers: 4 processes, one kept for websocket.*, one kept for http.* and websocket.*"),
    ],
)
@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_the_banner_says_where_and_how(memory, workers, line, host, shown):
    class Server(InterfaceServer):
        addresses = (Address(host, 8000),)
        health_address = None

        def __init__(self):
            pass

    lines = production.banner(config(workers=workers), Server(), memory).splitlines()
    assert lines[0].startswith("dbchannels ") and ", Django " in lines[0]
    assert lines[1] == f"Layer:   {memory.describe()}"
    assert lines[2] == line
    assert lines[3].startswith(f"Serving http://{shown}:8000/ ") and lines[3].endswith("quit with CONTROL-C.")


def test_the_banner_names_every_address(memory):
    class Server(InterfaceServer):
        addresses = (Address("127.0.0.1", 8000), Address("", 0, "/run/site.sock"))
        health_address = Address("127.0.0.1", 8001)

        def __init__(self):
            pass

    lines = production.banner(config(), Server(), memory).splitlines()
    assert lines[3] == "Probes:  /healthz and /readyz at 127.0.0.1:8001"
    assert lines[4].startswith("Serving http://127.0.0.1:8000/ and unix:/run/site.sock and WebSockets on ")


@pytest.mark.parametrize(
    "arguments", [["--workers=x"], ["--http-timeout=x"], ["8000", "8001"], ["--no-such-option"]]
)
def test_what_is_no_argument_is_refused(arguments):
    with pytest.raises(CommandError):
        call_command("runchannels", *arguments)


# runworker.


@pytest.fixture
def workers(monkeypatch):
    """The workers that the command made; none of them runs."""
    made = []
    monkeypatch.setattr(runworker.Worker, "run", lambda worker: made.append(worker))
    monkeypatch.setattr(runworker, "stop_at_signals", lambda workers, *how: made.append(how))
    monkeypatch.setattr(runworker.database_connections, "keep", lambda: None)  # it is for the whole process
    yield made
    for one in made[1::2]:
        one.link.close()


def run(*arguments):
    """Run runworker; return what it wrote."""
    out = io.StringIO()
    call_command("runworker", *arguments, stdout=out)
    return out.getvalue()


def test_the_workers_are_ours_where_the_runworker_is_that_of_channels(settings):
    assert worker_command() == "runworker"
    pytest.importorskip("channels")
    settings.INSTALLED_APPS = ["channels", *settings.INSTALLED_APPS]
    name = worker_command()
    command = load_command_class(get_commands()[name], name)
    assert type(command) is runworker.Command


def test_a_layer_in_memory_has_no_workers(memory):
    assert "This layer lives in one process" in refused("runworker")


@kinds.on_databases
def test_it_says_what_it_reads_and_where(layer, workers):
    consumer("thumbnails")(lambda message: None)
    said = run("--exclude", "websocket.*")
    how, one = workers
    assert (
        said
        == f"Worker {one.name} reads http.request, http.disconnect, thumbnails from {layer.describe()}.\n"
    )
    assert how == (30.0, None)


@kinds.only("sqlite")
def test_patterns_can_be_given_again_and_again(layer, workers):
    consumer("thumbs.large")(lambda message: None)
    consumer("thumbs.small")(lambda message: None)
    run("--only", "http.*", "--only", "thumbs.*", "--exclude", "*.large", "--exclude", "http.[rd]*")
    assert workers[1].channels == ["thumbs.small"]


@pytest.mark.parametrize(
    "arguments", [["--only", "no.*"], ["--exclude", "*"], ["--only", "http.*", "--exclude", "h*"]]
)
@kinds.only("sqlite")
def test_a_worker_without_a_channel_is_refused(layer, workers, arguments):
    assert (
        refused("runworker", *arguments) == "No channel with a consumer is left: change --only or --exclude."
    )
    assert workers == []


@kinds.only("sqlite")
def test_a_child_has_its_name_wakeups_and_life_from_its_parent(layer, workers, monkeypatch):
    reader, writer = os.pipe()
    wakeup = WakeupPipe.new()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reader))
    assert run("--child", "worker-1-x", "--wakeup-fd", str(wakeup), "--graceful-timeout", "7") == ""
    how, one = workers
    assert (one.name, list(one._wakeups), how) == ("worker-1-x", [wakeup], (7.0, reader))
    sys.stdin.close()
    for descriptor in (writer, *wakeup):
        os.close(descriptor)


@kinds.only("sqlite")
def test_a_worker_loads_the_site_before_it_says_that_it_is_ready(layer, workers, monkeypatch):
    order = []
    load_site, load = runworker.load_site, runworker.Worker.load
    monkeypatch.setattr(runworker, "load_site", lambda alias: (order.append("site"), load_site(alias))[1])
    monkeypatch.setattr(runworker.Worker, "load", lambda self: (order.append("middleware"), load(self))[1])
    monkeypatch.setattr(runworker.Worker, "run", lambda self: order.append(self))
    run()
    *before, worker = order
    worker.link.close()
    assert before == ["site", "middleware"]
    assert worker._executor.views._application is not None


@kinds.only("sqlite")
def test_a_routing_that_cannot_be_made_is_one_sentence(layer, settings):
    settings.DBCHANNELS = {"default": {"ROUTING": "no.such.routing"}}
    assert "cannot be imported" in refused("runworker")


@kinds.only("sqlite")
def test_a_worker_without_a_parent_has_one_thread(layer, workers):
    assert "--threads is for runserver: start more workers" in refused("runworker", "--threads=4")


@kinds.only("sqlite")
def test_a_setting_that_cannot_be_meant_is_one_sentence(layer, settings):
    channel_layers.clear()
    settings.DBCHANNELS = {"default": {"ROUTNG": "x"}}
    assert "write 'ROUTING'" in refused("runworker")


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e10"])
@kinds.only("sqlite")
def test_a_graceful_timeout_that_is_none_is_refused(layer, workers, seconds):
    assert "--graceful-timeout" in refused("runworker", f"--graceful-timeout={seconds}")
    assert workers == []


# Signals.


class Stoppable:
    """What a signal stops."""

    wants_successor = False

    def __init__(self):
        self.done = queue.SimpleQueue()

    def stop(self):
        """Note it."""
        self.done.put("stop")

    def abandon(self):
        """Note it, and fail."""
        self.done.put("abandon")
        raise LayerUnavailable("The database is away.")


@pytest.fixture
def exits(monkeypatch):
    """The codes with which the process would have ended; its signals are its own again after the test."""
    codes = queue.SimpleQueue()

    kept = {number: signal.getsignal(number) for number in (*runworker.SIGNALS, signal.SIGHUP)}
    monkeypatch.setattr(os, "_exit", codes.put)
    monkeypatch.setattr(runworker, "start_anew", lambda: codes.put("anew"))
    monkeypatch.setattr(runworker, "GIVE_BACK_WITHIN", 60.0)
    yield codes
    os.close(signal.set_wakeup_fd(-1))
    for number, handler in kept.items():
        signal.signal(number, handler)
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.cancel()
            thread.join()


def told(*workers):
    """Return what each worker was told, in order."""
    return [[one.done.get(timeout=10) for _ in range(one.done.qsize())] for one in workers]


@pytest.mark.parametrize("number", runworker.SIGNALS)
def test_the_first_signal_stops_all_and_the_second_has_them_give_back_what_they_run(exits, number):
    both = [Stoppable(), Stoppable()]
    runworker.stop_at_signals(both, 60.0)
    signal.raise_signal(number)
    assert [one.done.get(timeout=10) for one in both] == ["stop", "stop"]
    assert exits.empty()
    signal.raise_signal(number)
    assert exits.get(timeout=10) == 1
    assert [words[-1] for words in told(*both)] == ["abandon", "abandon"]


def test_one_that_does_not_end_in_time_gives_back_what_it_runs(exits):
    one = Stoppable()
    runworker.stop_at_signals([one], 0.001)
    signal.raise_signal(signal.SIGTERM)
    assert exits.get(timeout=10) == 1
    assert told(one) == [["stop", "abandon"]]


def test_one_whose_parent_dies_ends_a_minute_later_whatever_it_runs(exits, monkeypatch):
    assert runworker.ORPHANED == 60.0
    monkeypatch.setattr(runworker, "ORPHANED", 0.05)
    one, (life, held) = Stoppable(), os.pipe()
    runworker.stop_at_signals([one], 3600.0, life)
    assert one.done.empty()
    os.close(held)
    assert exits.get(timeout=10) == 1
    assert told(one) == [["stop", "abandon"]]
    os.close(life)


def end(exits):
    """Let the thread that waits for signals come to its end."""
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
    assert exits.get(timeout=10) == 1


@pytest.fixture
def terminal(monkeypatch):
    """Whether the process has a terminal: the list's last value."""
    has = [False]
    monkeypatch.setattr(runworker, "has_terminal", lambda: has[-1])
    return has


def test_sighup_stops_all_and_starts_the_command_anew(exits, terminal):
    both = [Stoppable(), Stoppable()]
    runworker.stop_at_signals(both, 60.0)
    signal.raise_signal(signal.SIGHUP)
    assert [one.done.get(timeout=10) for one in both] == ["stop", "stop"]
    assert [one.wants_successor for one in both] == [True, True]
    assert exits.empty()
    end(exits)


def test_sighup_with_a_consumer_that_takes_too_long_gives_back_its_message_and_starts_anew(exits, terminal):
    one = Stoppable()
    runworker.stop_at_signals([one], 0.001)
    signal.raise_signal(signal.SIGHUP)
    assert exits.get(timeout=10) == "anew"
    assert told(one) == [["stop", "abandon"]]


def test_a_child_ends_instead_and_its_parent_starts_another(exits, terminal):
    one, (life, held) = Stoppable(), os.pipe()
    runworker.stop_at_signals([one], 0.001, life)
    signal.raise_signal(signal.SIGHUP)
    assert exits.get(timeout=10) == 1
    os.close(held)
    os.close(life)


def test_sigterm_after_sighup_ends_it(exits, terminal):
    one = Stoppable()
    runworker.stop_at_signals([one], 60.0)
    for number, wanted in [(signal.SIGHUP, True), (signal.SIGTERM, False)]:
        signal.raise_signal(number)
        assert one.done.get(timeout=10) == "stop"
        assert one.wants_successor is wanted
    assert exits.empty()
    signal.raise_signal(signal.SIGHUP)  # it does not change its mind, and does not hurry
    assert one.done.get(timeout=10) == "stop"
    assert one.wants_successor is False and exits.empty()
    signal.raise_signal(signal.SIGTERM)
    assert exits.get(timeout=10) == 1


def test_a_terminal_that_is_closed_ends_it(exits, terminal):
    terminal.append(True)
    one = Stoppable()
    runworker.stop_at_signals([one], 60.0)
    terminal.append(False)
    signal.raise_signal(signal.SIGHUP)
    assert one.done.get(timeout=10) == "stop"
    assert one.wants_successor is False and exits.empty()
    signal.raise_signal(signal.SIGTERM)
    assert exits.get(timeout=10) == 1


# The log.


def test_standard_output_is_flushed_at_each_line(log, monkeypatch):
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe))
    output.log_to_terminal(1)
    print("Serving.")
    assert pipe.getvalue() == b"Serving.\n"


@pytest.mark.parametrize(
    ("verbosity", "level"), [(0, logging.WARNING), (1, logging.INFO), (2, logging.INFO), (3, logging.INFO)]
)
def test_the_log_is_shown_as_verbosely_as_asked(log, monkeypatch, capsys, verbosity, level):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log.handlers.clear()
    output.log_to_terminal(verbosity)
    output.log_to_terminal(verbosity)
    assert log.level == level
    logging.getLogger("dbchannels.worker").warning("Something of note.")
    assert capsys.readouterr().err.count("Something of note.") == 1


def test_a_sites_own_handler_is_enough(log, monkeypatch):
    own = logging.NullHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log.handlers[:] = [own]
    output.log_to_terminal(1)
    assert log.handlers == [own]


def test_no_command_runs_the_checks_in_its_own_process():
    """They import the site's URLs and views, which the interface server must never do."""
    assert runchannels.Command.requires_system_checks == runworker.Command.requires_system_checks == []


def development_config(port="8000"):
    """Return what runserver starts at this port."""
    command = runserver.Command()
    command.addr, command.port, command.use_ipv6 = "127.0.0.1", port, False
    return command.config(vars(command.create_parser("manage.py", "runserver").parse_args([])))


def test_runserver_refuses_a_port_beyond_65535():
    with pytest.raises(InvalidConfiguration, match=r"^'127\.0\.0\.1:99999' is not an address: give a port, "):
        development_config("99999")


def test_the_help_of_runserver_has_its_own_number_of_workers():
    help_text = " ".join(runserver.Command().create_parser("manage.py", "runserver").format_help().split())
    workers = development_config().workers
    assert f"worker processes, or threads if the layer is in memory ({workers}, or 8)" in help_text


def test_a_body_is_of_any_size_while_one_develops_and_100_mebibytes_else():
    server = development_config().server
    assert (
        min(server.max_body, server.max_spool) > 2**50
        and server.max_body_memory == ServerConfig().max_body_memory
    )
    options = vars(runchannels.Command().create_parser("manage.py", "runchannels").parse_args([]))
    assert LaunchConfig.from_options(options).server.max_body == 100 * 2**20
