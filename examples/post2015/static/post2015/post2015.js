// One room: what is typed goes out as it is, what comes in is shown as it is.

import { Socket } from "../dbchannels/dbchannels.js";
import { followState } from "../demo/state.js";

const $ = (id) => document.getElementById(id);

const socket = new Socket(location.pathname).on("text", (text) => {
  const item = document.createElement("li");
  item.dir = "auto";
  item.textContent = text;
  $("lines").append(item);
  $("log").scrollTop = $("log").scrollHeight;
});

followState($("state"), socket, (state) => {
  $("text").disabled = $("send").disabled = state !== "open";
});

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  if (socket.send($("text").value)) $("text").value = "";
});
