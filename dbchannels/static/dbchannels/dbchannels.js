// A WebSocket that comes back by itself, for pages of dbchannels; see docs/javascript.rst.

const SHORTEST = 500; // ms before coming back, at least
const LONGEST = 10_000; // ms, at most
const GOOD = 5_000; // ms that a connection has to last before waits are short again
const HIDDEN = /^\0(heartbeat|id|start|gap)(?: (\d+))?$/; // what the server tells this script
const EVENTS = "connecting,open,waiting,closed,unauthorized,text,json,binary,gap".split(",");

// Not when the site is done with us (1000, 1008), or has a reason of its own; 4401: logged out.
export const comesBack = (code) => code !== 1000 && code !== 1008 && !(code >= 4000 && code <= 4999);

export class Socket {
  constructor(url, { protocols = [], queue = 0, longest = LONGEST, again = comesBack, heartbeat = 30, resume = false } = {}) {
    heartbeat &&= Math.max(10, heartbeat); // s
    Object.assign(this, { url, protocols, queue, longest, again, heartbeat, resume, lastId: "" });
    Object.assign(this, { state: "closed", ended: false, failures: 0, unsent: [], listeners: {}, streams: new Map() });
    this.hint = () => this.timer && !document.hidden && this.open(); // online or seen again
    queueMicrotask(() => this.ended || this.socket || this.open()); // the listeners come first
  }

  // "connecting", "open", "waiting" ({ seconds }), "closed" and "unauthorized" ({ code, reason }); "text",
  // "json" (each text that is JSON, as its value), "binary" (an ArrayBuffer), "gap" (messages are lost).
  on(event, listener) {
    if (!EVENTS.includes(event)) throw TypeError(`There is no event ${event}, but ${EVENTS}.`);
    (this.listeners[event] ??= []).push(listener);
    return this;
  }

  // Its frames are { "stream": name, "payload": ... }.
  stream(name) {
    let stream = this.streams.get(name);
    if (!stream) {
      const on = (listener) => stream.listeners.push(listener) && stream;
      const send = (payload) => this.sendJSON({ stream: name, payload });
      this.streams.set(name, (stream = { listeners: [], on, send }));
    }
    return stream;
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
    const url = new URL(typeof this.url === "function" ? this.url() : this.url, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const ask = (what, value) => (url.search += (url.search && "&") + `dbchannels-${what}=${value}`);
    if (this.heartbeat) ask("heartbeat", this.heartbeat >> 1);
    if (this.resume) ask("resume", this.lastId);
    this.nextId = ""; // of the next message
    const socket = (this.socket = new WebSocket(url, this.protocols));
    socket.binaryType = "arraybuffer";
    let opened = Infinity;
    const current = (act) => (event) => socket === this.socket && act(event);
    const closed = current(({ code, reason }) => this.#closed(code, reason, Date.now() - opened >= GOOD));
    const heard = () => {
      clearTimeout(this.silence);
      this.silence = this.heartbeat && setTimeout(closed, this.heartbeat * 1000, { code: 1006, reason: "" });
    };
    socket.onopen = current(() => {
      opened = Date.now();
      heard();
      for (const data of this.unsent.splice(0)) socket.send(data);
      this.#become("open");
    });
    socket.onmessage = current(({ data }) => heard() || this.#hide(data) || this.#read(data));
    socket.onclose = closed;
    heard(); // nobody may answer the handshake either
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
    clearTimeout(this.silence);
    this.socket?.close(...why);
    this.socket = null;
  }

  #listen(change) {
    for (const type of ["online", "visibilitychange"]) change(type, this.hint, true);
  }

  #closed(code, reason, good) {
    this.#drop();
    if (!this.again(code)) {
      if (code === 4401) this.#tell("unauthorized", { code, reason });
      return this.#become("closed", { code, reason });
    }
    this.ended = false;
    this.#listen(addEventListener);
    // By chance, so that a thousand pages do not come back at once.
    this.failures = good ? 1 : this.failures + 1;
    const most = Math.min(this.longest, SHORTEST * 2 ** this.failures);
    const ms = SHORTEST + Math.random() * Math.max(0, most - SHORTEST);
    this.timer = setTimeout(() => this.open(), ms);
    this.#become("waiting", { seconds: Math.ceil(ms / 1000) });
  }

  #hide(data) {
    const id = this.nextId;
    this.nextId = "";
    if (id) return (this.lastId = id), false; // a message, whatever it begins with
    const [, word, position] = HIDDEN.exec(data) ?? [];
    if (word !== "heartbeat" && !this.resume) return false;
    if (word === "id") this.nextId = position;
    else if (position) this.lastId = position;
    if (word === "gap") this.#tell("gap", {});
    return word;
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
