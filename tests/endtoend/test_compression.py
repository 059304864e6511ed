"""Compressed WebSockets through the whole way, with clients that real sites have."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator

import pytest

from tests.harness import CLOSE, HOST, LiveSite, Served, Socket, client_frame

RSV1 = 0x40
OFFER = "permessage-deflate; client_max_window_bits"
LARGE = json.dumps([{"number": number, "text": "a cup of tea"} for number in range(10_000)])


@pytest.fixture(scope="module")
def compressing(postgresql_site: LiveSite) -> Iterator[Served]:
    """A server that compresses, for all tests of this module."""
    served = postgresql_site.serve("--workers", "1", "--ws-compression")
    yield served
    served.end()


def header(client: Socket) -> list[bytes]:
    """Return what the server said of extensions."""
    return [
        line for line in client.head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-extensions")
    ]


@pytest.mark.postgresql
def test_who_does_not_offer_it_is_served_as_ever(compressing):
    client = compressing.socket("/echo/")
    assert header(client) == []
    assert client.ask(LARGE) == LARGE


@pytest.mark.postgresql
def test_without_the_option_it_is_not_agreed_on(served):
    client = served.socket("/echo/", Sec_WebSocket_Extensions=OFFER)
    assert client.status == 101 and header(client) == []
    assert served.socket("/echo/", Sec_WebSocket_Extensions=";").status == 101  # nobody reads it


@pytest.mark.postgresql
def test_an_offer_that_is_none_is_refused(compressing):
    refused = compressing.socket("/echo/", Sec_WebSocket_Extensions="permessage-deflate;")
    assert refused.status == 400 and refused.rest().endswith("is not a list of extensions.\n")


@pytest.mark.postgresql
def test_a_bomb_is_refused_with_1009_and_hurts_nobody(compressing):
    other = compressing.socket("/echo/")
    client = compressing.socket("/echo/", Sec_WebSocket_Extensions=OFFER)
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    frame = client_frame(2, (stream.compress(bytes(2**28)) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4])
    client.raw.sendall(bytes([frame[0] | RSV1]) + frame[1:])
    code = b""
    while len(code) < 4:
        code += client.raw.recv(4)
    assert (code[0], int.from_bytes(code[2:4], "big")) == (0x80 | CLOSE, 1009)
    assert other.ask("still here") == "still here"


@pytest.mark.postgresql
def test_the_websockets_package(compressing):
    websockets = pytest.importorskip("websockets.sync.client")
    url = f"ws://{HOST}:{compressing.port}/echo/"
    with websockets.connect(url, compression="deflate") as client:
        extensions = client.protocol.extensions
        assert [one.name for one in extensions] == ["permessage-deflate"]
        for message in ("hello", "", LARGE, b"", LARGE.encode(), b"\x00" * 1_000_000):
            client.send(message)
            assert client.recv(timeout=20) == message
    assert client.protocol.close_code == 1000
    with websockets.connect(url, compression=None) as client:
        assert client.protocol.extensions == []
        client.send(LARGE)
        assert client.recv(timeout=20) == LARGE


@pytest.mark.postgresql
@pytest.mark.parametrize("bits", [9, 15])
def test_the_websockets_package_with_windows_of_other_sizes(compressing, bits):
    websockets = pytest.importorskip("websockets.sync.client")
    deflate = pytest.importorskip("websockets.extensions.permessage_deflate")
    factory = deflate.ClientPerMessageDeflateFactory(server_max_window_bits=bits, client_max_window_bits=bits)
    with websockets.connect(
        f"ws://{HOST}:{compressing.port}/echo/", compression=None, extensions=[factory]
    ) as client:
        client.send(LARGE)
        assert client.recv(timeout=20) == LARGE
        assert client.protocol.extensions[0].remote_max_window_bits == bits


@pytest.mark.postgresql
def test_the_websocket_client_package_which_does_not_compress(compressing):
    websocket = pytest.importorskip("websocket")
    client = websocket.create_connection(f"ws://{HOST}:{compressing.port}/echo/", timeout=20)
    for message in ("hello", LARGE):
        client.send(message)
        assert client.recv() == message
    client.close()


@pytest.mark.postgresql
def test_a_room_of_members_with_and_without(compressing):
    websockets = pytest.importorskip("websockets.sync.client")
    url = f"ws://{HOST}:{compressing.port}/room/compressed/"
    plain = compressing.socket("/room/compressed/")
    with websockets.connect(url) as first, websockets.connect(url) as second:
        first.send(LARGE)
        assert first.recv(timeout=20) == second.recv(timeout=20) == plain.receive() == LARGE
        plain.send("short")
        assert first.recv(timeout=20) == second.recv(timeout=20) == plain.receive() == "short"


IN_THE_PAGE = """
async ([url, text]) => {
  const socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  const next = () => new Promise((resolve, reject) => {
    socket.onmessage = (event) => resolve(event.data);
    socket.onclose = (event) => reject(new Error("closed " + event.code));
  });
  await new Promise((resolve, reject) => { socket.onopen = resolve; socket.onerror = reject; });
  const found = [socket.extensions];
  for (const message of ["hello", "", text]) {
    const answer = next();
    socket.send(message);
    found.push(await answer);
  }
  const answer = next();
  socket.send(new Uint8Array(300000));
  found.push((await answer).byteLength);
  const closed = new Promise((resolve) => { socket.onclose = (event) => resolve(event.code); });
  socket.close(4000);
  found.push(await closed);
  return found;
}
"""


@pytest.mark.browser
@pytest.mark.postgresql
def test_chromium(compressing):
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium: install Debian's package chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://{HOST}:{compressing.port}/")
        url = f"ws://{HOST}:{compressing.port}/echo/"
        extensions, *echoed = page.evaluate(IN_THE_PAGE, [url, LARGE])
        browser.close()
    assert extensions.startswith("permessage-deflate")
    assert echoed == ["hello", "", LARGE, 300_000, 4000]
