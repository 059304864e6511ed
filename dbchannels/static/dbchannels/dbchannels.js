// A WebSocket that comes back by itself, for pages of a site with dbchannels; docs/javascript.rst explains it.

const SHORTEST = 500; // ms before coming back, at least
const LONGEST = 10_000; // ms, at most
const GOOD = 5_000; // ms that a connection has to last before waits are short again

// Not when the site is done with us (1000, 1008), or has a reason of its own; 4401: logged out.
export const comesBack = (code) => code !== 1000 && code !== 1008 && !(code >= 4000 && code <= 4999);

export class Socket {
  constructor(url, { protocols = [], queue = 0, longest = LONGEST, again = comesBack } = {}) {
    Object.assign(this, { url, protocols, queue, longest, again, state: "closed", ended: false, failures: 0 });
    this.unsent = [];
    this.listeners = {};
    this.streams = new Map();
    this.hint = () => this.timer && !document.hidden && this.open(); // online, or looked at, again
    queueMicrotask(() => this.ended || this.socket || this.open()); // the listeners come first
  }

  // "connecting", "open", "waiting" ({ seconds }), "closed" and "unauthorized" ({ code, reason }); "text",
  // "json" (each text that is JSON, as its value), "binary" (an ArrayBuffer).
  on(event, listener) {
    (this.listeners[event] ??= []).push(listener);
    return this;
  }

  stream(name) {
    if (!this.streams.has(name)) this.streams.set(name, new Stream(this, name));
    return this.streams.get(name);
  }

  // False when there is neither a connection nor room in the queue: the message is still the caller's.
  send(data) {
    if (this.state === "open") this.socket.send(data);
    else if (!this.ended && this.unsent.length < this.queue) this.unsent.push(data);
    else return false;
    return true;
  }

  sendJSON(value) {
    return this.send(JSON.stringify(value));
  }

  open() {
    this.#drop();
    this.ended = false;
    this.#listen(addEventListener);
    const url = new URL(typeof this.url === "function" ? this.url() : this.url, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = (this.socket = new WebSocket(url, this.protocols));
    socket.binaryType = "arraybuffer";
    let opened = Infinity;
    const current = (act) => (event) => socket === this.socket && act(event);
    socket.onopen = current(() => {
      opened = Date.now();
      for (const data of this.unsent.splice(0)) socket.send(data);
      this.#become("open");
    });
    socket.onmessage = current(({ data }) => this.#read(data));
    socket.onclose = current(({ code, reason }) => this.#closed(code, reason, Date.now() - opened >= GOOD));
    this.#become("connecting"); // the last: a listener may close it
  }

  close(code = 1000, reason = "") {
    this.#drop(code, reason);
    this.#become("closed", { code, reason });
  }

  #drop(...why) {
    clearTimeout(this.timer);
    this.timer = null;
    this.ended = true;
    this.#listen(removeEventListener);
    this.socket?.close(...why);
    this.socket = null;
  }

  #listen(change) {
    for (const type of ["online", "visibilitychange"]) change(type, this.hint, true);
  }

  #closed(code, reason, good) {
    if (!this.again(code)) {
      this.#drop();
      if (code === 4401) this.#tell("unauthorized", { code, reason });
      return this.#become("closed", { code, reason });
    }
    // What is left to chance keeps a thousand pages from coming back in the same second.
    this.failures = good ? 1 : this.failures + 1;
    const most = Math.min(this.longest, SHORTEST * 2 ** this.failures);
    const ms = SHORTEST + Math.random() * Math.max(0, most - SHORTEST);
    this.timer = setTimeout(() => this.open(), ms);
    this.#become("waiting", { seconds: Math.ceil(ms / 1000) });
  }

  #read(data) {
    if (typeof data !== "string") return this.#tell("binary", data);
    this.#tell("text", data);
    let value;
    try {
      value = JSON.parse(data);
    } catch {
      return;
    }
    const stream = this.streams.get(value?.stream);
    if (stream && "payload" in value) for (const listener of stream.listeners) listener(value.payload);
    else this.#tell("json", value);
  }

  #become(state, detail = {}) {
    this.state = state;
    this.#tell(state, detail);
  }

  #tell(event, detail) {
    for (const listener of this.listeners[event] ?? []) listener(detail);
  }
}

// Frames of { "stream": name, "payload": ... }.
class Stream {
  constructor(socket, name) {
    Object.assign(this, { socket, name, listeners: [] });
  }

  on(listener) {
    this.listeners.push(listener);
    return this;
  }

  send(payload) {
    return this.socket.sendJSON({ stream: this.name, payload });
  }
}
