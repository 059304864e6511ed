// The page of one room. Every text from elsewhere is set as textContent, so it can be nothing but text.

import { Socket } from "../dbchannels/dbchannels.js";
import { followState } from "../demo/state.js";

const NOT_ADMITTED = 4400; // close code: the name was refused, coming back will not help
const TOGETHER = 5 * 60_000; // ms between two lines of one person that are shown as one block
const NEAR = 80; // px from the end at which the log still follows

const $ = (id) => document.getElementById(id);
const title = document.title;
const people = new Map(); // who is here: id of the presence -> name
const seen = new Set(); // ids of the lines on the page
let me = null; // our own presence
const sent = []; // texts that have not come back yet
let last = null; // the newest line on the page
let unread = 0;
let following = true; // the end of the log is in view, and stays there
let socket = null;

// Joining and leaving.

function join(name) {
  const query = new URLSearchParams({ name });
  socket = new Socket(`?${query}`, { again: (code) => code !== NOT_ADMITTED }).on("json", read);
  followState($("state"), socket, changed);
  stored(() => sessionStorage.setItem("chat-name", name));
  stored(() => localStorage.setItem("chat-name", name));
  $("join-problem").textContent = "";
  $("join").hidden = true;
  for (const id of ["chat", "leave", "state"]) $(id).hidden = false;
}

function leave() {
  socket?.close();
  socket = null;
  stored(() => sessionStorage.removeItem("chat-name"));
  $("join").hidden = false;
  for (const id of ["chat", "leave", "state"]) $(id).hidden = true;
  $("name").focus();
}

// The session's storage lets this window join again by itself, the local one proposes the name to the next window.
// A browser that is told to keep nothing throws at the mere mention of either.
function stored(action) {
  try {
    return action();
  } catch {
    return null;
  }
}

function changed(state) {
  if (state === "waiting" || state === "closed") disconnected();
}

function disconnected() {
  $("text").disabled = $("send").disabled = true;
  giveBack(sent.splice(0));
  people.clear();
  me = null;
  showPeople();
}

// Frames from the server; chat/frames.py lists them.

const readers = {
  welcome({ you, here, lines }) {
    me = you;
    for (const person of here) people.set(person.id, person.name);
    showPeople();
    const missed = seen.size > 0 && lines.length > 0 && !lines.some((line) => seen.has(line.id));
    $("log").setAttribute("aria-busy", "true"); // history is not read out
    if (missed) note("Some messages before this may be missing.");
    for (const line of lines) showLine(line);
    $("log").removeAttribute("aria-busy");
    toEnd();
    $("text").disabled = $("send").disabled = false;
    if (document.activeElement === document.body) $("text").focus(); // never taken from another field
  },

  joined({ person }) {
    if (![...people.values()].includes(person.name)) note(`${person.name} joined`);
    people.set(person.id, person.name);
    showPeople();
  },

  left({ person }) {
    people.delete(person.id);
    if (![...people.values()].includes(person.name)) note(`${person.name} left`);
    showPeople();
  },

  said({ line, by }) {
    const mine = by === me?.id;
    if (mine) sent.shift();
    showLine(line, mine);
    if (document.hidden) document.title = `(${++unread}) ${title}`;
  },

  error({ code, text }) {
    if (code === "bad-name") {
      leave();
      $("join-problem").textContent = text;
    } else {
      giveBack(sent.splice(0, 1));
      $("say-problem").textContent = text;
    }
  },
};

function read(frame) {
  readers[frame.type]?.(frame);
}

// Saying something.

function say() {
  const text = $("text").value.trim();
  if (!text || !socket?.sendJSON({ type: "say", text })) return;
  sent.push(text);
  $("say-problem").textContent = "";
  $("text").value = "";
  fit();
}

function giveBack(texts) {
  $("text").value = [...texts, $("text").value].filter(Boolean).join("\n");
  fit();
}

function fit() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight + 2}px`; // 2 px of border
}

// Showing.

function copy(id) {
  return $(id).content.firstElementChild.cloneNode(true);
}

function face(element, name) {
  let hue = 0;
  for (const one of name) hue = (hue * 31 + one.codePointAt(0)) % 360;
  element.style.setProperty("--hue", hue);
  element.textContent = [...name][0].toUpperCase();
}

function showPeople() {
  const names = [...new Set(people.values())].sort((a, b) => a.localeCompare(b));
  $("count").textContent = names.length || "";
  $("here").replaceChildren(
    ...names.map((name) => {
      const item = copy("person-template");
      face(item.querySelector(".face"), name);
      item.querySelector(".name").textContent = name;
      item.classList.toggle("me", name === me.name);
      return item;
    }),
  );
}

function showLine(line, follow = false) {
  if (seen.has(line.id)) return;
  seen.add(line.id);
  const at = new Date(line.at);
  if (at.toDateString() !== last?.at.toDateString()) showDay(at);
  const item = copy("line-template");
  face(item.querySelector(".face"), line.name);
  item.querySelector(".name").textContent = line.name;
  item.querySelector(".text").textContent = line.text;
  const time = item.querySelector("time");
  time.dateTime = line.at;
  time.title = at.toLocaleString();
  time.textContent = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const together = last?.item === $("lines").lastElementChild && last?.name === line.name && at - last.at < TOGETHER;
  item.classList.toggle("follows", together);
  item.classList.toggle("mine", line.name === me?.name);
  append(item, follow);
  last = { item, at, name: line.name };
}

function showDay(at) {
  const text = at.toLocaleDateString([], { weekday: "long", day: "numeric", month: "long" });
  append(entry("day", at.toDateString() === new Date().toDateString() ? "Today" : text));
}

function note(text) {
  append(entry("note", text));
}

function entry(kind, text) {
  const item = document.createElement("li");
  item.className = kind;
  item.textContent = text;
  return item;
}

function append(item, follow = false) {
  $("nothing").hidden ||= item.classList.contains("line");
  $("lines").append(item);
  if (following || follow) toEnd();
  else $("newest").hidden = false;
}

function toEnd() {
  $("log").scrollTop = $("log").scrollHeight;
  following = $("newest").hidden = true;
}

// What the person does.

$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("name").value.trim();
  if (name) join(name);
});

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  say();
});

$("text").addEventListener("input", () => {
  $("say-problem").textContent = "";
  fit();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // Enter also ends a composed character
  event.preventDefault();
  say();
});

$("leave").addEventListener("click", leave);
$("newest").addEventListener("click", toEnd);
$("log").addEventListener("scroll", () => {
  const log = $("log");
  following = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR;
  if (following) $("newest").hidden = true;
});
new ResizeObserver(() => following && toEnd()).observe($("log")); // the window or the field below changed its height

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  unread = 0;
  document.title = title;
});

$("name").value = stored(() => localStorage.getItem("chat-name")) ?? "";
const name = stored(() => sessionStorage.getItem("chat-name"));
if (name) join(name);
