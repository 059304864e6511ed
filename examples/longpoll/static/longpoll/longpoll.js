// Ask for the next headline, show it, ask again: the oldest way of all to be told something.

import { post } from "../demo/post.js";
import { showState } from "../demo/state.js";

const list = document.getElementById("headlines");
const state = document.getElementById("state");
let newest = Number(list.firstElementChild?.dataset.id ?? 0);
let failures = 0;

function show(headline) {
  newest = headline.id;
  const item = document.createElement("li");
  Object.assign(item, { className: "card", dir: "auto", textContent: headline.text });
  list.prepend(item);
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function ask() {
  const response = await fetch(`${list.dataset.next}?after=${newest}`);
  if (response.status === 200) show(await response.json());
  else if (response.status !== 204) throw new Error(`answered ${response.status}`);
}

async function follow() {
  for (;;) {
    try {
      showState(state, "open");
      await ask();
      failures = 0;
    } catch {
      showState(state, "waiting");
      failures += 1;
      await pause(Math.random() * Math.min(10_000, 500 * 2 ** failures));
    }
  }
}

// What is published is sent without leaving the page, whose own request for the next headline brings it back.
document.getElementById("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const { problem } = await post(form);
  document.getElementById("problem").textContent = problem;
  if (!problem) form.elements.text.value = "";
});

follow();
