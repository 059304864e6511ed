import { Socket } from "../dbchannels/dbchannels.js";

const $ = (id) => document.getElementById(id);
const time = (date) => new Date(date).toLocaleTimeString();

// Each row is shown once, and again when it has changed.
function show(list, { id }, text) {
  const found = list.querySelector(`[data-id="${id}"]`);
  const item = found ?? list.appendChild(document.createElement("li"));
  item.dataset.id = id;
  item.textContent = text;
}

const socket = new Socket(location.pathname);
for (const state of ["connecting", "open", "waiting", "closed"])
  socket.on(state, () => ($("state").textContent = state));
socket.on("unauthorized", () => location.reload()); // logged out: the page leads to the login
socket.on("json", ({ line, visit }) => {
  if (line) show($("lines"), line, `${line.name}: ${line.text}`);
  if (visit) show($("visits"), visit, `${visit.name}, ${time(visit.came)} to ${visit.left ? time(visit.left) : "now"}`);
});

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const { text } = event.target.elements;
  if (socket.sendJSON({ text: text.value })) text.value = "";
});
