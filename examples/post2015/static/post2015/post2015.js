// One room: what is typed goes out as it is, what comes in is shown as it is.

import { Connection, showState } from "../demo/connection.js";

const $ = (id) => document.getElementById(id);

function changed(state) {
  showState($("state"), state);
  $("text").disabled = $("send").disabled = state !== "open";
}

function show(text) {
  const item = document.createElement("li");
  item.dir = "auto";
  item.textContent = text;
  $("lines").append(item);
  $("log").scrollTop = $("log").scrollHeight;
}

const address = new URL(location.pathname, location.href.replace(/^http/, "ws"));
const connection = new Connection(address, { onState: changed, onFrame: show });

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  if (connection.send($("text").value)) $("text").value = "";
});

connection.open();
