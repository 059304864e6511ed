// Uploads without leaving the page, and how far each picture is. EventSource comes back by itself.

import { post } from "../demo/post.js";
import { showState } from "../demo/state.js";

const $ = (id) => document.getElementById(id);
const list = $("photos");
const shown = new Map(); // id of a photo -> its element

const address = (photo, side) => list.dataset.picture.replace("/0/160", `/${photo.id}/${side}`);

function link(photo, side) {
  return Object.assign(document.createElement("a"), { href: address(photo, side), textContent: `${side} px` });
}

function show(photo) {
  if (!shown.has(photo.id)) {
    const element = $("photo-template").content.firstElementChild.cloneNode(true);
    element.querySelector(".name").textContent = photo.name;
    list.prepend(element);
    shown.set(photo.id, element);
  }
  const element = shown.get(photo.id);
  const bar = element.querySelector("progress");
  bar.value = Math.max(bar.value, photo.progress); // the answer to the upload may come after the first news
  element.querySelector(".problem").textContent = photo.problem;
  bar.hidden = Boolean(photo.problem);
  const image = element.querySelector("img");
  if (bar.value === 100 && image.hidden) {
    image.src = address(photo, 160);
    image.hidden = false;
    const sizes = element.querySelector(".sizes");
    sizes.append(...list.dataset.sides.split(" ").map((side) => link(photo, side)));
    sizes.hidden = false;
  }
}

const events = new EventSource(list.dataset.events);
events.addEventListener("open", () => showState($("state"), "open"));
events.addEventListener("error", () => showState($("state"), "waiting"));
events.addEventListener("message", (event) => show(JSON.parse(event.data)));
showState($("state"), "connecting");

$("upload").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const token = form.elements.csrfmiddlewaretoken.value;
  const problems = [];
  $("problem").textContent = "";
  for (const file of form.elements.file.files) {
    const body = new FormData();
    body.append("csrfmiddlewaretoken", token);
    body.append("file", file);
    const { data, problem } = await post(form, body);
    if (data.id) show(data);
    else problems.push(`${file.name}: ${problem || "The server gave no answer that this page understands."}`);
    $("problem").textContent = problems.join(" ");
  }
  form.reset();
});
