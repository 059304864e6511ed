"""``manage.py channels_deploy``: the files that put this project on a server, with its own paths and settings.

The texts are Django templates in ``management/deploy``. The first line of each names the file. Every value that may
hold a character with a meaning in the file's format goes through the filter of that format, see ``formats``.
"""

from __future__ import annotations

import grp
import math
import os
import pwd
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.core.management.base import CommandError
from django.template import Context, Engine

from dbchannels.conf import layer_settings
from dbchannels.management import formats
from dbchannels.management.output import ChannelsCommand
from dbchannels.processes.supervisor import manage_command, worker_command
from dbchannels.server.listeners import Address
from dbchannels.server.options import DEFAULTS, FLAGS, LaunchConfig, add_options

TEMPLATES = Path(__file__).parents[1] / "deploy"
#: The templates of each target.
TARGETS = {
    "systemd": ("service", "worker.service"),
    "nginx": ("nginx",),
    "caddy": ("caddy",),
    "cron": ("cron",),
    "docker": ("dockerfile", "dockerignore", "compose"),
}
#: What a container has instead of the defaults of runchannels: its own network, and files in a tmpfs, which is memory.
IN_CONTAINER: dict[str, Any] = {
    "bind": ["0.0.0.0:8000"],
    "workers": 4,
    "trusted_proxies": ["172.16.0.0/12,192.168.0.0/16"],
    "max_body": 2**26,
    "max_body_memory": 2**26,
    "max_spool": 2**27,
    "max_response_spool": 2**27,
}
ONLY_TAG = re.compile(r"^({% (?:if|elif|else|endif|for|endfor|include)\b[^\n]*?%})\n", re.MULTILINE)
WEB_GROUPS = ("www-data", "nginx", "caddy", "http")  # those of nginx and Caddy, by distribution
STARTING = 90  # seconds that the server may need at its start beyond --wait-for-database, with some to spare
STOPPING = 10  # seconds that the server may need at its end beyond --graceful-timeout, with some to spare
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

# What is known about this project.


class Program(NamedTuple):
    """How this very ``manage.py`` is started: from which folder, and by which words after the interpreter."""

    folder: Path
    python: str
    words: list[str]

    @classmethod
    def this(cls) -> Program:
        """Read it from the running process."""
        python, *words = manage_command()
        python = os.path.abspath(python)  # "../venv/bin/python" has its dots in sys.executable
        path = Path(words[-1])
        if words[0] == "-m" or path.parent == Path(python).parent:  # python -m site; django-admin
            return cls(Path.cwd(), python, words)
        return cls(path.parent, python, [path.name])


class Database(NamedTuple):
    """The databases of the site and of its layer: whether a server runs on this machine, and SQLite's files."""

    place: str  # "local", "remote" or "none"
    paths: list[str]

    @classmethod
    def of(cls, *aliases: str) -> Database:
        """Read the settings of these aliases."""
        entries = [settings.DATABASES.get(alias, {}) for alias in dict.fromkeys(aliases)]
        found = [one for one in entries if one.get("ENGINE")]
        servers = [one for one in found if not one["ENGINE"].endswith(("sqlite3", "spatialite"))]
        hosts = [str(one.get("HOST") or "") for one in servers]
        away = any(one.get("OPTIONS", {}).get("service") for one in servers) or any(
            host and host not in LOCAL_HOSTS and not host.startswith("/") for host in hosts
        )
        ours = any("postg" in one["ENGINE"] for one in servers)
        place = "none" if not servers else "remote" if away else "local" if ours else "none"
        files = [os.path.abspath(str(one["NAME"])) for one in found if one not in servers and one.get("NAME")]
        return cls(place, files + [host for host in hosts if host.startswith("/")])


class Served(NamedTuple):
    """A folder that the proxy serves below a path."""

    url: str
    folder: str


def served_folders(root_path: str) -> Iterator[Served]:
    """Yield STATIC_ROOT and MEDIA_ROOT with their paths, unless another host serves them."""
    for url, folder in (
        (settings.STATIC_URL, settings.STATIC_ROOT),
        (settings.MEDIA_URL, settings.MEDIA_ROOT),
    ):
        parts = urlsplit(str(url or ""))
        path = unquote(parts.path)
        if folder and not parts.netloc and path.rstrip("/") not in ("", root_path):
            yield Served(path.rstrip("/") + "/", os.path.abspath(folder))


def site_hosts() -> list[str]:
    """Return ALLOWED_HOSTS without the asterisk."""
    hosts = [host for host in settings.ALLOWED_HOSTS if host != "*"]
    for host in hosts:
        if not re.fullmatch(r"[\w.:\[\]-]+", host):
            raise CommandError(f"ALLOWED_HOSTS has {host!r}, which is no name of a host: write site.example.")
    return hosts


def is_below(paths: Iterable[str], *folders: str) -> bool:
    """Whether one of the paths, as it is named or as its links lead, is in one of the folders."""
    names = {name for path in paths for name in (path, os.path.realpath(path))}
    return any(f"{name}/".startswith(f"{folder}/") for name in names for folder in folders)


def option_words(values: dict[str, Any], names: Iterable[str]) -> Iterator[str]:
    """Yield those options that differ from their defaults, as a command line has them."""
    for name in names:
        value, flag = values[name], name.replace("_", "-")
        if value == DEFAULTS[name]:
            continue
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
            continue
        for one in value if isinstance(value, list) else [value]:
            yield f"--{flag}"
            yield f"{one:g}" if isinstance(one, float) else str(one)


class Command(ChannelsCommand):
    help = "Prints the files that put this project on a server, with its own paths and settings."
    requires_system_checks: list[str] = []  # noqa: RUF012  (it needs no code of the site)

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "target", choices=TARGETS, help="the program that the files are for", metavar="|".join(TARGETS)
        )
        parser.add_argument(
            "--name", default="", help="the name of the service (the package of the settings)", metavar="NAME"
        )
        parser.add_argument(
            "--user", default="", help="the user of the service (the owner of the project)", metavar="USER"
        )
        parser.add_argument(
            "--listen", default="", help="where nginx or Caddy listens (80, and 443)", metavar="[ADDR:]PORT"
        )
        parser.add_argument(
            "--output", default="", help="write the files into this folder (print them)", metavar="FOLDER"
        )
        parser.add_argument("--force", action="store_true", help="with --output: replace files that exist")
        group = parser.add_argument_group("options of runchannels", "They go into the files.")
        add_options(group)
        for action in group._group_actions:  # what is not given depends on the project and the target
            action.default = None

    def handle(self, *args: Any, **options: Any) -> None:
        files = self.render(options)
        if not options["output"]:
            self.stdout.write("\n".join(text for _, text in files), ending="")
            return
        folder = Path(options["output"])
        there = [name for name, _ in files if (folder / name).exists()]
        if there and not options["force"]:
            raise CommandError(f"{folder / there[0]} exists: add --force to replace it.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files:
                (folder / name).write_text(text)
                self.stdout.write(
                    f"Wrote {folder / name}. Its first lines say where it goes and what to run."
                )
        except OSError as error:
            raise CommandError(f"{error.filename} cannot be written: {error.strerror}.") from None

    def render(self, options: dict[str, Any]) -> list[tuple[str, str]]:
        """Return the name and the text of each file."""
        target = options["target"]
        program = Program.this()
        name = options["name"] or default_name(program.folder)
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,30}", name):
            raise CommandError(
                f"{name!r} is no name for a service: give --name, in letters, digits, - and _."
            )
        if options["takeover"] or options["detach"]:
            raise CommandError(
                "--takeover and --detach are for the command that replaces a running server: leave them out."
            )
        values = launch_values(options, name, target)
        config = LaunchConfig.from_options(values)
        context = {
            "name": name,
            "begin": math.ceil(config.wait_for_database) + STARTING,
            "stop": math.ceil(config.server.graceful_timeout) + STOPPING,
            "allowed_hosts": ",".join(settings.ALLOWED_HOSTS),
            **program_context(program, values, options),
        }
        if target == "systemd":
            context |= systemd_context(program, values, config, options["user"])
            context["reload"] = [*context["server"], "--takeover", "--detach"]
        elif target == "docker":
            context |= docker_context(program, values, config)
        elif target != "cron":
            context |= proxy_context(config, name, options["listen"])
        for note in notes(target, context):
            self.stderr.write(self.style.WARNING(note))
        templates = {path.name: ONLY_TAG.sub(r"\1", path.read_text()) for path in TEMPLATES.iterdir()}
        loader = ("django.template.loaders.locmem.Loader", templates)
        engine = Engine(loaders=[loader], builtins=[formats.__name__])
        texts = [
            engine.get_template(one).render(Context(context, autoescape=False)) for one in TARGETS[target]
        ]
        return [(os.path.basename(text.partition("\n")[0].removeprefix("# ")), text) for text in texts]


def default_name(folder: Path) -> str:
    """Return the package of the settings, or the folder's name where they are a single module."""
    package, dot, _ = os.environ.get("DJANGO_SETTINGS_MODULE", "").partition(".")
    return re.sub(r"[^A-Za-z0-9_-]+", "-", package if dot else folder.name)


def launch_values(options: dict[str, Any], name: str, target: str) -> dict[str, Any]:
    """Return the options of the server: those that were given, else what the project and the target need."""
    given = {key: options[key] for key in FLAGS if options.get(key) is not None}
    values = {
        **DEFAULTS,
        "bind": [f"unix:/run/{name}/site.sock"],
        "probe_port": "8001",
        "proxy_headers": True,
        "root_path": (settings.FORCE_SCRIPT_NAME or "").rstrip("/"),
        **(IN_CONTAINER if target == "docker" else {}),
        **({"control": f"/run/{name}/control"} if target == "systemd" else {}),
        **given,
    }
    if "max_body" not in given:  # Django must be able to read what it allows
        values["max_body"] = max(values["max_body"], settings.DATA_UPLOAD_MAX_MEMORY_SIZE or 0)
    on_unix = any(one.startswith("unix:") for one in values["bind"])
    if on_unix and not {"socket_owner", "socket_mode"} & given.keys():
        group = next(filter(is_group, WEB_GROUPS), "")
        values["socket_owner" if group else "socket_mode"] = f":{group}" if group else "666"
    return values


def is_group(name: str) -> bool:
    """Whether this machine has such a group."""
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def program_context(program: Program, values: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the command lines of this project, its folder, and the variables that they need."""
    module = os.environ.get("DJANGO_SETTINGS_MODULE", "")
    variables = {"DJANGO_SETTINGS_MODULE": module, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    path = options.get("pythonpath")
    own = [f"--pythonpath={os.path.abspath(path)}"] if path else []
    start = [program.python, *program.words]
    names = "max_messages", "max_memory", "layer", "wait_for_database"
    return {
        "folder": str(program.folder),
        "enter": ["cd", str(program.folder)],
        "settings": module,
        "environment": [f"{name}={value}" for name, value in variables.items() if value],
        "server": [*start, "runchannels", *option_words(values, FLAGS), *own],
        "worker": [
            *(*start, worker_command(), "--exclude", "http.*", "--exclude", "websocket.*"),
            *(*option_words(values, names), *own),
        ],
        "purge": [*start, "channels_purge", "--older-than", "30d", "--no-input", *own],
    }


def systemd_context(
    program: Program, values: dict[str, Any], config: LaunchConfig, user: str
) -> dict[str, Any]:
    """Return what only the units have: the user, the folder of the socket, and what may be protected."""
    if not user:
        number = program.folder.stat().st_uid
        try:
            user = pwd.getpwuid(number).pw_name
        except KeyError:
            user = str(number)
        if number == 0:
            raise CommandError(f"{program.folder} belongs to root, who must not run a site: give --user.")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", user):
        raise CommandError(f"{user!r} is no name of a user.")
    database = Database.of("default", layer_settings(config.layer).database)
    sockets = [one.path for one in (*config.server.addresses, config.control) if one and one.path]
    folders = {os.path.relpath(os.path.dirname(path), "/run") for path in sockets}
    runtime = sorted(one for one in folders if one != "." and not one.startswith(".."))
    if "." in folders:
        raise CommandError(
            "Only root can make a socket in /run itself: put it into a folder, such as /run/NAME/site.sock."
        )
    roots = [str(one) for one in (settings.STATIC_ROOT, settings.MEDIA_ROOT) if one]
    written = [str(program.folder), *map(os.path.abspath, roots), *sockets, *database.paths]
    paths = [*written, program.python, *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    return {
        "user": user,
        "group": values["socket_owner"].partition(":")[2],
        "runtime_folder": formats.systemd_words(["/", *runtime])[2:],
        "database": database.place,
        "files": max(65_536, 4 * config.server.max_connections),
        "privileged_port": any(not one.path and 0 < one.port < 1024 for one in config.server.addresses),
        "in_tmp": is_below(paths, "/tmp", "/var/tmp"),
        "in_home": is_below(paths, "/home", "/root", "/run/user"),
        "in_system": is_below(written, "/usr", "/boot", "/efi", "/etc"),
    }


def proxy_context(config: LaunchConfig, name: str, listen: str) -> dict[str, Any]:
    """Return what nginx and Caddy have."""
    server, hosts = config.server, site_hosts()
    public = [host.lstrip(".") for host in hosts if re.search(r"[a-z]\Z", host) and host not in LOCAL_HOSTS]
    address = Address.parse(listen) if listen else None
    if address and address.path:
        raise CommandError("--listen takes a port, such as 8080, or an address and a port.")
    upstream = server.addresses[0]
    wildcards = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    upstream = upstream._replace(host=wildcards.get(upstream.host, upstream.host))
    return {
        "upstream": str(upstream),
        "upstream_idle": int(server.keep_alive_timeout / 2),
        "variable": re.sub(r"\W", "_", name),
        "listen": [str(address)] if address else ["80", "[::]:80"],
        "hosts": [] if "*" in settings.ALLOWED_HOSTS else hosts,
        "certificate_hosts": public,
        "max_body": server.max_body,
        "served": list(served_folders(server.root_path)),
        "root_path": server.root_path,
        "longest": math.ceil(max(server.http_timeout, server.later_timeout)) + 30,
        "caddy_addresses": [f"http://:{address.port}"] if address else public or [":80"],
        "caddy_bind": address.host if address else "",
        "caddy_upstream": f"unix/{upstream.path}" if upstream.path else str(upstream),
    }


def docker_context(program: Program, values: dict[str, Any], config: LaunchConfig) -> dict[str, Any]:
    """Return what the files of Docker have; its build runs in the folder with the list of packages."""
    kinds = ("requirements.txt", "pyproject.toml")
    folders = (program.folder, *program.folder.parents[:2])
    found = [(one, kind) for one in folders for kind in kinds if (one / kind).exists()]
    root, requirements = found[0] if found else (program.folder, "")
    below = program.folder.relative_to(root).as_posix()
    address, server = config.server.addresses[0], config.server
    if address.path:
        raise CommandError(
            "A container needs a port that can be reached from outside: give --bind 0.0.0.0:8000."
        )
    if server.health_address is None:
        raise CommandError("The health check of a container needs --probe-port.")
    media = os.path.abspath(settings.MEDIA_ROOT) if settings.MEDIA_ROOT else ""
    if media and is_below([media], str(root)):
        media = os.path.join("/app", os.path.relpath(media, root))
    for path in (below, media):
        if not re.fullmatch(r"[\w./-]*", path, re.ASCII):
            raise CommandError(
                f"{path!r} cannot be written into a Dockerfile. Rename it in letters and digits."
            )
    manage = ["django-admin"] if os.path.isabs(program.words[-1]) else ["python", *program.words]
    size = math.ceil((server.max_spool + server.max_response_spool) / 2**20)
    budgets = 2 * (server.max_body_memory + server.max_websocket_memory) / 2**20
    return {
        "root": str(root),
        "below": "" if below == "." else below,
        "requirements": requirements,
        "version": "{}.{}".format(*sys.version_info),
        "container_manage": manage,
        "container_server": [*manage, "runchannels", *option_words(values, FLAGS)],
        "static_root": settings.STATIC_ROOT,
        "port": address.port,
        "probe_port": server.health_address.port,
        "media": media,
        "tmpfs": size,
        # The server and each worker as docs/containers.rst counts them; beyond that, what clients can fill.
        "memory": 256 * math.ceil((65 + 55 * config.workers + size + budgets) / 256),
    }


def notes(target: str, context: dict[str, Any]) -> Iterator[str]:
    """Yield what the project lacks for these files."""
    if settings.DEBUG:
        yield "DEBUG is True: set it to False where everybody can reach the site."
    elif not settings.ALLOWED_HOSTS and target != "cron":
        yield "ALLOWED_HOSTS is empty, so every request is answered 400: write the names of the site into it."
    if target in ("nginx", "caddy"):
        if not settings.STATIC_ROOT:
            yield "STATIC_ROOT is not set, so no static files are served: set it, and run collectstatic."
        if not context["hosts"]:
            yield "ALLOWED_HOSTS names no single host, so this answers to all names that no other site has."
    if target == "docker":
        if not any("whitenoise" in one.lower() for one in settings.MIDDLEWARE):
            yield "Nothing serves static files in the container: add WhiteNoise's middleware to MIDDLEWARE."
        if not context["requirements"]:
            yield f"{context['root']} has no requirements.txt: write one that names dbchannels."
        if Database.of("default").place == "none":
            yield "The settings name no database server: read DATABASE_URL, as the compose file sets it."
