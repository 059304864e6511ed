// The element that {% live_group %} writes: it shows what is sent to its groups; see docs/live-fragments.rst.

const STALE = 4410; // close code: the token is too old or belongs to another session; the page has a new one
const SOON = 60_000; // ms after a new token within which no other one is fetched
const AGAIN = 5_000; // ms, at least, until the page is fetched again after a failure; each one doubles the most
const LONG = 30_000; // ms, at most, for the page to arrive

// What hx-swap-oob and the action of a <turbo-stream> say, by the method of the element that is their target.
const SWAPS = {
  outerHTML: "replaceWith",
  innerHTML: "replaceChildren",
  beforebegin: "before",
  afterbegin: "prepend",
  beforeend: "append",
  afterend: "after",
  delete: "remove",
};
const ACTIONS = {
  replace: "replaceWith",
  update: "replaceChildren",
  before: "before",
  prepend: "prepend",
  append: "append",
  after: "after",
  remove: "remove",
};

const put = (targets, method, content) => {
  if (!method) throw new Error("there is no such swap or action");
  for (const target of targets) {
    const copy = content.cloneNode(true); // its scripts do not run, as they came from innerHTML
    const elements = [...copy.children];
    target[method](copy);
    for (const element of elements) window.htmx?.process(element);
  }
};

// One element at the top of a fragment, as htmx reads it. Without hx-swap-oob it replaces the one with its id.
const swap = (element) => {
  const name = element.hasAttribute("data-hx-swap-oob") ? "data-hx-swap-oob" : "hx-swap-oob";
  const [, style, selector] = /^([^:]*):?(.*)$/s.exec(element.getAttribute(name) || "true");
  element.removeAttribute(name);
  if (!selector && !element.id) throw new Error("it has neither an id nor a selector");
  const method = SWAPS[style === "true" ? "outerHTML" : style];
  const content = document.createDocumentFragment();
  content.append(...(method === "replaceWith" ? [element] : element.childNodes));
  put(document.querySelectorAll(selector || `#${CSS.escape(element.id)}`), method, content);
};

const parentOf = (element) => element.parentElement;

// A <turbo-stream>: by Turbo, where the page has it.
const stream = (element) => {
  if (customElements.get("turbo-stream")) return document.documentElement.append(element);
  const { content } = element.querySelector("template") ?? document.createElement("template");
  const selector = element.getAttribute("targets") || `#${CSS.escape(element.getAttribute("target"))}`;
  const targets = [...document.querySelectorAll(selector)];
  const method = ACTIONS[element.getAttribute("action")];
  // What is added takes the place of what has its id there: the page may be newer than the fragment.
  const ids = new Set([...content.children].map(({ id }) => id).filter(Boolean));
  const around = { append: (one) => one, prepend: (one) => one, before: parentOf, after: parentOf }[method];
  for (const target of around ? targets : [])
    for (const child of [...around(target).children]) if (ids.has(child.id)) child.remove();
  put(targets, method, content);
};

// What replaces the element that has the focus gets it, and the selection, if it has the same id; as in htmx.
const focusAgain = ({ id, isConnected, selectionStart, selectionEnd }) => {
  const element = !isConnected && id && document.getElementById(id);
  if (!element) return;
  element.focus({ preventScroll: true });
  if (selectionStart != null) element.setSelectionRange?.(selectionStart, selectionEnd);
};

const show = (html) => {
  const focused = document.activeElement;
  const template = document.createElement("template");
  template.innerHTML = html;
  for (const element of [...template.content.children]) {
    const start = element.cloneNode(false).outerHTML;
    try {
      (element.localName === "turbo-stream" ? stream : swap)(element);
      focusAgain(focused);
    } catch (error) {
      console.error(`dbchannels cannot show ${start}: ${error.message}.`);
    }
  }
};

// The page at an address of the site as a document, empty if it refuses this visitor; null if it cannot be had now.
const fetchPage = async (url) => {
  try {
    // Not to where a redirect leads, which is a login, perhaps at another site that this script cannot reach.
    const response = await fetch(url, { redirect: "manual", cache: "no-store", signal: AbortSignal.timeout(LONG) });
    if (response.status >= 500 || response.status === 429) return null;
    return new DOMParser().parseFromString(response.ok ? await response.text() : "", "text/html");
  } catch {
    return null;
  }
};

class LiveGroup extends HTMLElement {
  static observedAttributes = ["groups", "state"];
  #socket = null;
  #state = null;
  #tries = 0; // to connect
  #renewedAt = -Infinity;

  connectedCallback() {
    // Turbo shows a page from its cache only until it has the new one.
    if (!document.documentElement.hasAttribute("data-turbo-preview")) this.#open();
  }

  // An element that is only moved keeps its socket.
  disconnectedCallback() {
    queueMicrotask(() => this.isConnected || this.#end());
  }

  // Turbo and htmx may turn this element into that of another page, or of the same page anew.
  attributeChangedCallback(name, before, now) {
    if (!this.#socket || before === now) return;
    if (name === "groups") {
      this.#end();
      this.#open();
    } else if (now !== this.#state) this.setAttribute("state", this.#state);
  }

  async #open() {
    const { Socket } = await import(this.getAttribute("client"));
    if (!this.isConnected || this.#socket) return;
    const socket = (this.#socket = new Socket(() => this.getAttribute("connect"), { resume: true }));
    [this.#tries, this.#renewedAt] = [0, -Infinity];
    for (const state of ["connecting", "open", "waiting"]) socket.on(state, (detail) => this.#become(state, detail));
    for (const event of ["unauthorized", "gap", "json"]) socket.on(event, (detail) => this.#tell(event, detail));
    socket.on("connecting", () => this.#tries++);
    socket.on("text", (text) => this.#tell("text", text) && text.trimStart().startsWith("<") && show(text));
    socket.on("closed", (why) => (why.code === STALE ? this.#renew(socket, why) : this.#become("closed", why)));
  }

  #end() {
    this.#socket?.close();
    this.#socket = null;
  }

  // Take a new token from the page itself, out of its element for the same groups.
  async #renew(socket, why, failures = 0) {
    if (Date.now() - this.#renewedAt < SOON) {
      console.error("dbchannels: a new token was refused too. See docs/live-fragments.rst, 'When a token is refused'.");
      return this.#become("closed", why);
    }
    // By chance: when a server has restarted, many pages come back at once, and each is rendered anew.
    const most = this.#tries > 1 || failures ? AGAIN << Math.min(failures, 4) : 0;
    const ms = Math.max(failures && AGAIN, Math.random() * most);
    this.#become("waiting", { seconds: Math.ceil(ms / 1000) });
    await new Promise((resolve) => setTimeout(resolve, ms));
    const page = this.#socket === socket && (await fetchPage(this.getAttribute("page")));
    if (this.#socket !== socket) return; // the element has left the page
    if (!page) return this.#renew(socket, why, failures + 1);
    const groups = this.getAttribute("groups");
    const found = [...page.querySelectorAll(this.localName)].find((one) => one.getAttribute("groups") === groups);
    if (!found) return this.#become("closed", why);
    this.setAttribute("connect", found.getAttribute("connect"));
    this.#renewedAt = Date.now();
    socket.open();
  }

  #become(state, detail) {
    this.#state = state;
    this.setAttribute("state", state);
    this.#tell(state, detail);
  }

  // False if a listener has called preventDefault().
  #tell(event, detail) {
    return this.dispatchEvent(new CustomEvent(`dbchannels:${event}`, { detail, bubbles: true, cancelable: true }));
  }
}

// Another copy of this file may be there, after a deploy, in a page that Turbo or htmx has changed.
if (!customElements.get("dbchannels-live")) customElements.define("dbchannels-live", LiveGroup);
