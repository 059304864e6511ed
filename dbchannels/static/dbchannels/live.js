// The admin's live page: the last hour as charts, and the channels as they are now. admin/live.py has the data.

const HOUR = 3600; // s
const GAP = 25; // s between two samples, from which on a line is broken: nobody measured
const AGAIN = 10; // s until the data is fetched again when there is no socket
const WIDTH = 400, HEIGHT = 100; // of a chart, in its own units
const LOST = "The server cannot be reached. This page tries again.";
const SVG = "http://www.w3.org/2000/svg";

const number = (value) => value.toLocaleString(undefined, { maximumFractionDigits: value < 10 ? 1 : 0 });
const seconds = (value) =>
  value === 0 ? "0 s" : value < 1 ? `${number(value * 1000)} ms` : value < 120 ? `${number(value)} s` : `${number(value / 60)} min`;
const perSecond = (value) => `${number(value)}/s`;

// Each chart by the id of its figure: how a value is written, and its lines, each with a key of the samples.
const CHARTS = {
  depth: [number, { ready: "ready", delayed: "delayed" }],
  rates: [perSecond, { in: "in", out: "out" }],
  wait: [seconds, { wait_p50: "p50", wait_p95: "p95", wait_p99: "p99" }],
  run: [seconds, { run_p50: "p50", run_p95: "p95" }],
  failures: [perSecond, { failures: "failed" }],
  oldest: [seconds, { oldest: "oldest" }],
  sockets: [number, { sockets: "sockets" }],
  workers: [number, { workers: "workers" }],
};

const page = document.getElementById("live");
const choice = page.querySelector("select");
const status = page.querySelector("[role=status]");
let moments = []; // of the chosen channel: { at (s since 1970), values: { key: value } }, the oldest first
let socket = null, timer = null;
let ask = () => {}; // asks for what is new

const made = (name, attributes, ...inside) => {
  const element = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...inside);
  return element;
};

// One line as the path of an SVG, broken where nothing was measured.
const path = (points, start, most) => {
  let before = -Infinity;
  return points
    .map(([at, value]) => {
      const x = ((at - start) / HOUR) * WIDTH, y = HEIGHT - (value / most) * (HEIGHT - 4);
      const step = `${at - before > GAP ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
      before = at;
      return step;
    })
    .join("");
};

const draw = (figure, write, lines, start) => {
  const series = Object.entries(lines).map(([key, name]) => {
    const points = moments
      .map((one) => [one.at, one.values[key]])
      .filter(([, value]) => value !== undefined && value !== null);
    return { name, points, last: points.at(-1)?.[1] };
  });
  figure.hidden = !series.some(({ points }) => points.length);
  const most = Math.max(...series.flatMap(({ points }) => points.map(([, value]) => value))) || 1;
  const drawn = series.map(({ points }, index) =>
    made("svg:path", { d: path(points, start, most), class: `line-${index}`, "vector-effect": "non-scaling-stroke" }));
  const said = series.map(({ name, last }) => `${name} ${last === undefined ? "unknown" : write(last)}`);
  const label = `${figure.querySelector("figcaption").textContent}: ${said.join(", ")}`;
  const image = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label };
  figure.querySelector(".chart").replaceChildren(made("span", { class: "most" }, write(most)), made("svg:svg", image, ...drawn));
  figure.querySelector(".legend").replaceChildren(...said.map((text, index) => made("span", { class: `line-${index}` }, text)));
};

const drawTable = (rows, more) => {
  page.querySelector("tbody").replaceChildren(
    ...rows.map((row) => {
      const name = made("th", { scope: "row" }, made("a", { href: row.url }, row.channel));
      const cells = [row.ready, row.delayed, row.running, row.dead].map((value) => made("td", {}, number(value)));
      const oldest = made("td", {}, row.oldest === null ? "" : seconds(row.oldest));
      return made("tr", row.alarming ? { class: "alarming" } : {}, name, ...cells, oldest, made("td", {}, row.state));
    }),
  );
  const rest = page.querySelector(".more");
  rest.hidden = !more;
  rest.querySelector("span").textContent = number(more);
  for (const { channel } of rows) offer(channel);
};

// A channel to choose.
const offer = (channel) => {
  if (![...choice.options].some(({ value }) => value === channel)) choice.append(made("option", { value: channel }, channel));
};

// The values of one moment, out of lists with a value for each.
const valuesAt = (series, index) => Object.fromEntries(Object.entries(series).map(([key, values]) => [key, values[index]]));

const show = (answer) => {
  if (answer.channel !== choice.value) return; // another one was chosen meanwhile
  const last = since();
  answer.series.moments.forEach((at, index) => {
    if (at > last) moments.push({ at, values: valuesAt(answer.series.values, index) });
  });
  moments = moments.filter(({ at }) => at > answer.at - HOUR);
  for (const [id, [write, lines]] of Object.entries(CHARTS))
    draw(document.getElementById(`chart-${id}`), write, lines, answer.at - HOUR);
  drawTable(answer.channels, answer.more);
  status.textContent = `As of ${new Date(answer.at * 1000).toLocaleTimeString()}`;
};

const since = () => moments.at(-1)?.at ?? 0;

// Over the socket: each answer says in how many seconds to ask again.
const connect = async () => {
  const { Socket } = await import(page.dataset.client);
  if (document.hidden) return;
  ask = () => socket?.sendJSON({ since: since(), channel: choice.value, ticket: page.dataset.ticket });
  socket = new Socket(location.pathname)
    .on("open", () => ask())
    .on("json", (answer) => {
      if (!answer.series) return; // an error
      show(answer);
      clearTimeout(timer);
      timer = setTimeout(ask, answer.ask_in * 1000);
    })
    .on("waiting", () => (status.textContent = LOST))
    .on("closed", () => socket && (ask = poll)()); // not by stop(): the socket was refused
};

const poll = async () => {
  try {
    const answer = await fetch(`${page.dataset.json}?${new URLSearchParams({ since: since(), channel: choice.value })}`);
    if (!answer.ok) throw new Error(answer.statusText);
    show(await answer.json());
  } catch {
    status.textContent = LOST;
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(poll, AGAIN * 1000);
};

// A page that nobody sees asks for nothing.
const stop = () => {
  clearTimeout(timer);
  const open = socket;
  socket = null;
  open?.close();
};

document.addEventListener("visibilitychange", () => (document.hidden ? stop() : connect()));
choice.addEventListener("change", () => {
  moments = [];
  ask();
});
const asked = new URLSearchParams(location.search).get("channel");
if (asked) {
  offer(asked);
  choice.value = asked;
}
connect();
