// The posts as they are now, the newest first. Every text is set as textContent, so it can be nothing but text.

import { Socket } from "../dbchannels/dbchannels.js";
import { followState } from "../demo/state.js";

const $ = (id) => document.getElementById(id);
const shown = new Map(); // id of a post -> its element

function show(post) {
  const element = shown.get(post.id) ?? $("post-template").content.firstElementChild.cloneNode(true);
  element.querySelector("h2").textContent = post.title;
  element.querySelector(".text").textContent = post.text;
  const time = element.querySelector("time");
  time.dateTime = post.posted_at;
  time.textContent = new Date(post.posted_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  if (!shown.has(post.id)) $("posts").prepend(element);
  shown.set(post.id, element);
}

function remove(id) {
  shown.get(id)?.remove();
  shown.delete(id);
}

function read(news) {
  if (news.type === "all") {
    [...shown.keys()].forEach(remove);
    news.posts.toReversed().forEach(show);
  } else if (news.type === "post") show(news.post);
  else if (news.type === "gone") remove(news.id);
  $("nothing").hidden = shown.size > 0;
}

followState($("state"), new Socket(location.pathname).on("json", read));
