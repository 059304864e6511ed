// One WebSocket that comes back by itself. The page says what a frame means; this says when to try again.

const SHORTEST = 500; // ms to wait before coming back, at least
const LONGEST = 10_000; // ms, at most
const GOOD = 5_000; // ms that a connection has to last before waits are short again

// The part of every wait that is left to chance keeps a thousand pages from coming back in the same second.
function wait(failures) {
  const longest = Math.min(LONGEST, 2 * SHORTEST * 2 ** failures);
  return SHORTEST + Math.random() * (longest - SHORTEST);
}

const WORDS = {
  connecting: "Connecting…",
  open: "Connected",
  waiting: "Offline. Coming back…",
  closed: "Not connected",
};

// Say in an element of the class "state" how the connection is.
export function showState(element, state) {
  if (element.dataset.state !== state) element.textContent = WORDS[state];
  element.dataset.state = state;
}

export class Connection {
  // onState gets "connecting", "open", "waiting" (to come back) or "closed" (for good); onFrame the text of a
  // frame. stays(code) says whether the server closed with a code after which coming back makes no sense.
  constructor(url, { onState, onFrame, stays = () => false }) {
    Object.assign(this, { url, onState, onFrame, stays, socket: null, timer: null, failures: 0 });
    this.online = () => this.timer && this.open();
  }

  open() {
    clearTimeout(this.timer);
    this.timer = null;
    window.addEventListener("online", this.online);
    this.onState("connecting");
    const socket = new WebSocket(this.url);
    let opened = Infinity;
    socket.addEventListener("open", () => {
      opened = Date.now();
      this.onState("open");
    });
    socket.addEventListener("message", (event) => this.onFrame(event.data));
    socket.addEventListener("close", (event) => {
      if (socket === this.socket) this.closed(event.code, Date.now() - opened >= GOOD);
    });
    this.socket = socket;
  }

  closed(code, wasGood) {
    if (this.stays(code)) return this.close();
    this.failures = wasGood ? 0 : this.failures + 1;
    this.timer = setTimeout(() => this.open(), wait(wasGood ? 0 : this.failures - 1));
    this.onState("waiting");
  }

  // False when there is no connection: nothing was sent, and the text is still the caller's.
  send(text) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(text);
    return true;
  }

  close() {
    clearTimeout(this.timer);
    this.timer = null;
    window.removeEventListener("online", this.online);
    const socket = this.socket;
    this.socket = null;
    socket?.close(1000);
    this.onState("closed");
  }
}
