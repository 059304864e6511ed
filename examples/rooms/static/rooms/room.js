import { Socket } from "../dbchannels/dbchannels.js";

const $ = (id) => document.getElementById(id);
const time = (date) => new Date(date).toLocaleTimeString();
const waiting = new Map(); // the lines that have not come back from the server, by their keys

// Each row is shown once, and again when it has changed.
function show(list, id, text) {
  const found = list.querySelector(`[data-id="${id}"]`);
  const item = found ?? list.appendChild(document.createElement("li"));
  item.dataset.id = id;
  item.textContent = text;
}

const socket = new Socket(location.pathname);
for (const state of ["connecting", "open", "waiting", "closed"])
  socket.on(state, () => ($("state").textContent = $("state").dataset.state = state));
socket.on("open", () => waiting.forEach((text, key) => socket.sendJSON({ key, text })));
socket.on("unauthorized", () => location.reload()); // logged out: the page leads to the login
socket.on("json", ({ line, visit }) => {
  if (visit) show($("visits"), visit.id, `${visit.name}, ${time(visit.came)} to ${visit.left ? time(visit.left) : "now"}`);
  if (!line) return;
  show($("lines"), line.id, `${line.name}: ${line.text}`);
  if (waiting.delete(line.key)) $("waiting").querySelector(`[data-id="${line.key}"]`).remove();
});

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = event.target.elements.text;
  const text = input.value.trim();
  if (!text) return;
  const key = crypto.getRandomValues(new Uint32Array(4)).join("-");
  waiting.set(key, text);
  show($("waiting"), key, `${text} (waiting)`);
  socket.sendJSON({ key, text }); // without a connection, "open" sends it
  input.value = "";
});
