// The processes of Callmill, below Flower's own table of workers.

import { element, find, say, sync } from "./dom.js";
import * as format from "./format.js";
import { Live } from "./live.js";

const page = find("page");
new Live(page, { address: () => page.dataset.data, show });

const COLUMNS = [
  ["In flight", (one) => format.count(one.in_flight)],
  ["Waiting", (one) => format.count(one.waiting)],
  ["Calls/s", (one) => format.rate(one.rate)],
  ["CPU per call", (one) => (one.cpu_us_per_call == null ? "—" : `${format.count(one.cpu_us_per_call)} µs`)],
  ["Loop lag", (one) => format.latency(one.loop_lag_s)],
  ["Memory", (one) => format.bytes(one.rss_bytes)],
  ["Up", (one) => format.span(Date.now() / 1000 - one.started)],
];

function show({ processes }) {
  find("table", page).hidden = !processes.length;
  find("empty", page).hidden = Boolean(processes.length);
  processes.sort((one, other) => one.host.localeCompare(other.host) || one.pid - other.pid);
  sync(find("rows", page), processes, (one) => one.id, create, update);
}

function create(one) {
  return element("tr", {},
    element("th", { scope: "row" }, `${one.host} · ${one.pid}`, element("span", { class: "cm-under" })),
    ...COLUMNS.map(([label]) => element("td", { class: "cm-number", "data-label": label })),
    element("td", { "data-label": "Serves" }));
}

function update(line, one) {
  say(line.querySelector(".cm-under"), one.draining ? "draining: takes nothing new" : one.held ? `holds: ${one.held}` : "");
  COLUMNS.forEach(([, value], position) => say(line.children[position + 1], value(one)));
  say(line.lastChild, one.apis.join(", "));
}
