"""nginx in front, over a Unix socket: what it says of its clients reaches views, consumers and the log."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.harness import HOST, Answer, LiveSite, Served, ask, until

pytestmark = [pytest.mark.nginx, pytest.mark.postgresql]

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

CONFIGURATION = """
{user}
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {server}
}}
"""
TLS = "ssl; ssl_certificate {folder}/certificate.pem; ssl_certificate_key {folder}/key.pem"


@contextmanager
def behind_nginx(site: LiveSite, folder: Path, *options: str, tls: bool = False) -> Iterator[Served]:
    """Start a server on a Unix socket, and nginx on a port: clients go to the latter."""
    if NGINX is None:
        pytest.skip("There is no nginx.")
    path = folder / "s"
    served = site.serve("--workers", "1", "--bind", f"unix:{path}", "--proxy-headers", *options, bind="")
    assert f"Serving unix:{path} and WebSockets" in served.output()
    nginx = start_nginx(folder, path, served, tls)
    try:
        yield served
    finally:
        nginx.terminate()
        nginx.wait(60)
        served.end()


@pytest.fixture(scope="module")
def proxied(postgresql_site, tmp_path_factory):
    """One such pair for the tests that leave it as it was."""
    with behind_nginx(postgresql_site, tmp_path_factory.mktemp("n")) as served:
        yield served


@pytest.fixture(scope="module")
def encrypted(postgresql_site, tmp_path_factory):
    """Another one, with a certificate of its own signing in its folder."""
    folder = tmp_path_factory.mktemp("n")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-days", "2", "-subj", "/CN=site", "-addext", f"subjectAltName=IP:{HOST}"]
    subprocess.run([*command, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    # The address of this machine, which nginx names as its client, is no proxy's.
    options = "--forwarded-host", "--trusted-proxies", "unix"
    with behind_nginx(postgresql_site, folder, *options, tls=True) as served:
        yield Encrypted(served, ssl.create_default_context(cafile=str(certificate)))


class Encrypted:
    """The pair as its clients see it, who trust the certificate."""

    def __init__(self, served: Served, context: ssl.SSLContext) -> None:
        self.port, self.context = served.port, context

    def request(
        self, method: str, path: str, body: str = "", headers: dict[str, str] | None = None
    ) -> Answer:
        """Send one request by https."""
        with closing(
            http.client.HTTPSConnection(HOST, self.port, timeout=60, context=self.context)
        ) as connection:
            return ask(connection, method, path, body or None, headers)

    def socket(self, path: str, origin: str, **given):
        """Open a WebSocket by wss."""
        client = pytest.importorskip("websockets.sync.client")
        return client.connect(f"wss://{HOST}:{self.port}{path}", ssl=self.context, origin=origin, **given)


def start_nginx(folder: Path, path: Path, served: Served, tls: bool) -> subprocess.Popen[bytes]:
    """Start it on a free port, which becomes the server's.

    It has the file that channels_deploy prints, with TLS as a site adds it. Without TLS a test chooses what nginx says
    of the scheme.
    """
    with socket.create_server((HOST, 0)) as free:
        served.port = free.getsockname()[1]
    address = f"{HOST}:{served.port}"
    done = served.site.manage("channels_deploy", "nginx", "--bind", f"unix:{path}", "--listen", address)
    listen = f"  listen {address};"
    assert done.stdout.count(listen) == 1 and done.stdout.count("$scheme") == 1, done.stderr
    if tls:
        server = done.stdout.replace(listen, f"  listen {address} {TLS.format(folder=folder)};")
    else:
        server = done.stdout.replace("$scheme", "$http_x_test_scheme")
    return run_nginx(folder, server, served.port)


def run_nginx(folder: Path, server: str, port: int) -> subprocess.Popen[bytes]:
    """Start nginx with a part of its configuration; wait until it listens on this port."""
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, user=user, server=server))
    command = [
        str(NGINX),
        "-p",
        str(folder),
        "-c",
        str(folder / "nginx.conf"),
        "-e",
        str(folder / "error.log"),
    ]
    nginx = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    until(lambda: accepts(port) or nginx.poll() is not None, "nginx listens")
    assert nginx.poll() is None, (folder / "error.log").read_text()
    return nginx


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((HOST, port), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_view_sees_the_client_its_scheme_and_its_host(proxied):
    seen = proxied.get("/seen?a=b", **{"X-Test-Scheme": "https"}).json()
    assert (seen["REMOTE_ADDR"], seen["secure"], seen["QUERY_STRING"]) == (HOST, True, "a=b")
    assert seen["host"] == f"{HOST}:{proxied.port}"
    assert proxied.get("/seen", **{"X-Test-Scheme": "http"}).json()["secure"] is False


def test_a_client_cannot_say_who_it_is(proxied):
    lies = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https", "X-Test-Scheme": "http"}
    seen = proxied.get("/seen", **lies).json()
    assert (seen["REMOTE_ADDR"], seen["secure"]) == ("198.51.100.7", False)


def test_a_websocket_passes_with_its_scheme_and_its_origin_is_checked(proxied):
    origin = f"https://{HOST}:{proxied.port}"
    client = proxied.socket("/echo/", Origin=origin, X_Test_Scheme="https")
    assert client.status == 101
    assert client.ask("tea") == "tea"
    assert client.ask(b"\x00" * 100_000) == b"\x00" * 100_000
    assert proxied.socket("/scheme/", Origin=origin, X_Test_Scheme="https").receive() == "wss 127.0.0.1"
    assert proxied.socket("/scheme/", X_Test_Scheme="http").receive() == "ws 127.0.0.1"
    assert proxied.socket("/echo/", Origin="https://evil.example").status == 403
    client.close(4000)
    assert client.closed() == 4000


def test_over_tls_a_view_knows_that_it_is_secure(encrypted):
    seen = encrypted.request("GET", "/seen").json()
    assert (seen["secure"], seen["host"], seen["REMOTE_ADDR"]) == (True, f"{HOST}:{encrypted.port}", HOST)
    lie = {"X-Forwarded-Proto": "http", "X-Forwarded-For": "198.51.100.7"}
    assert encrypted.request("GET", "/seen", headers=lie).json()["secure"] is True


def test_nothing_that_a_client_forges_is_believed(encrypted):
    """nginx overwrites or extends each header that the server believes, as docs/server.rst asks."""
    forged = {
        "X-Forwarded-For": "198.51.100.7",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Port": "1",
        "X-Real-IP": "198.51.100.7",
        "Forwarded": "for=198.51.100.7;host=evil.example;proto=http",
    }
    seen = encrypted.request("GET", "/seen", headers=forged).json()
    assert (seen["secure"], seen["host"], seen["REMOTE_ADDR"]) == (True, f"{HOST}:{encrypted.port}", HOST)
    origin = f"https://{HOST}:{encrypted.port}"
    with encrypted.socket("/scheme/", origin, additional_headers=forged) as client:
        assert client.recv(timeout=60) == f"wss {HOST}"


def test_over_tls_a_form_needs_a_referer_of_the_site_as_django_asks(encrypted):
    """Only of secure requests, and compared with the scheme and the host that the proxy tells."""
    answer = encrypted.request("GET", "/token")
    given = {"Cookie": f"csrftoken={answer.cookies()['csrftoken']}", "X-CSRFToken": answer.text}

    def status(**headers: str) -> int:
        return encrypted.request("POST", "/guarded", "a=b", {**given, **headers}).status

    assert status() == 403
    assert status(Referer="https://evil.example/") == 403
    assert status(Origin=f"http://{HOST}:{encrypted.port}") == 403
    assert status(Referer=f"https://{HOST}:{encrypted.port}/token") == 200
    assert status(Origin=f"https://{HOST}:{encrypted.port}") == 200


def test_over_tls_a_websocket_knows_that_it_is_secure_and_its_origin_is_checked(encrypted):
    origin = f"https://{HOST}:{encrypted.port}"
    with encrypted.socket("/scheme/", origin) as client:
        assert client.recv(timeout=60) == f"wss {HOST}"
    with encrypted.socket("/echo/", origin) as client:
        for message in ("tea", b"\x00" * 100_000):
            client.send(message)
            assert client.recv(timeout=60) == message
    exceptions = pytest.importorskip("websockets.exceptions")
    with (
        pytest.raises(exceptions.InvalidStatus) as raised,
        encrypted.socket("/echo/", "https://evil.example"),
    ):
        pass
    assert raised.value.response.status_code == 403


def test_uploads_and_streams_pass(proxied, postgresql_site):
    body = b"x" * 300_000
    form = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nn\r\n' + (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + body + b"\r\n--b--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert proxied.request("POST", "/upload", form, headers).json()["size"] == len(body)
    with proxied.connection() as connection:
        connection.request("GET", "/stream/through%20nginx")
        response = connection.getresponse()
        assert response.readline() == b"first\n"  # it does not wait for the second
        postgresql_site.note("through nginx")
        assert response.read() == b"second\n"


def test_the_log_names_the_client(proxied):
    proxied.get("/seen")
    until(lambda: '"GET /seen HTTP/1.1" 200' in proxied.output(), "it is logged")
    assert re.search(rf'^{re.escape(HOST)} - - \[.*\] "GET /seen', proxied.output(), re.M)


def test_at_a_stop_clients_hear_it_and_the_socket_is_removed(postgresql_site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("n")
    with behind_nginx(postgresql_site, folder) as served:
        client = served.socket("/echo/")
        assert client.ask("tea") == "tea"
        served.process.terminate()
        assert client.closed() == 1001
        assert served.process.wait(60) == 0
        assert not (folder / "s").exists()
        assert served.get("/").status == 502
