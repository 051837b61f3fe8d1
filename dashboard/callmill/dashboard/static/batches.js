// The list of batches. What is chosen stands in the address, so that it can be kept and passed on.

import { bar, element, find, say, sync } from "./dom.js";
import { showFleet } from "./fleet.js";
import * as format from "./format.js";
import { Live } from "./live.js";

const ROWS = 25;
const page = find("page");
const filters = find("filters");
const chosen = new URLSearchParams(location.search);
let offset = Math.max(0, Number.parseInt(chosen.get("offset"), 10) || 0);
let typing = null;

for (const option of filters.elements.state) option.checked = option.value === (chosen.get("state") ?? "");
filters.elements.name.value = chosen.get("name") ?? "";

const query = () => new URLSearchParams({ offset, limit: ROWS, state: filters.elements.state.value, name: filters.elements.name.value.trim() });
const live = new Live(page, { address: () => `${page.dataset.data}?${query()}`, show });

function choose(first = 0) {
  offset = first;
  const kept = [...query()].filter(([name, value]) => name !== "limit" && value && value !== "0");
  history.replaceState(null, "", kept.length ? `?${new URLSearchParams(kept)}` : location.pathname);
  live.ask();
}

filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("change", () => choose());
filters.elements.name.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(choose, 250);
});
find("show-all").addEventListener("click", () => {
  filters.reset();
  choose();
});
find("newer").addEventListener("click", () => choose(Math.max(0, offset - ROWS)));
find("older").addEventListener("click", () => choose(offset + ROWS));

function show({ rows, total, fleet }) {
  if (!rows.length && total && offset) return choose(Math.floor((total - 1) / ROWS) * ROWS);
  showFleet(page, fleet);
  const filtered = filters.elements.state.value || filters.elements.name.value.trim();
  find("table").hidden = !rows.length;
  find("empty").hidden = Boolean(rows.length || filtered);
  find("none-found").hidden = Boolean(rows.length || !filtered);
  find("pager").hidden = total <= ROWS;
  say(find("range"), `${format.count(offset + 1)} to ${format.count(offset + rows.length)} of ${format.count(total)}`);
  find("newer").disabled = offset === 0;
  find("older").disabled = offset + rows.length >= total;
  sync(find("rows"), rows, (row) => row.id, create, update);
}

function create(row) {
  const cell = (name, label, ...children) => element("td", { [`data-cell-${name}`]: true, "data-label": label, class: label && name !== "progress" && name !== "limits" ? "cm-number" : null }, ...children);
  return element("tr", {},
    element("th", { scope: "row" },
      element("a", { href: page.dataset.batch.replace(/0$/, encodeURIComponent(row.id)) }),
      element("span", { class: "cm-under" }, element("span", { class: "cm-state" }), element("code", {}, row.id), element("span", { "data-class": true }))),
    cell("progress", "Progress", element("div", { class: "cm-bar", role: "img" }), element("span", { class: "cm-under" })),
    cell("rate", "Rate"), cell("eta", "ETA"), cell("retries", "Retries"), cell("age", "Age"), cell("limits", "What limits it"));
}

function update(line, row) {
  const cell = (name) => find(`cell-${name}`, line);
  say(line.querySelector("a"), row.name || "unnamed");
  const state = line.querySelector(".cm-state");
  state.className = `cm-state cm-state-${row.state}`;
  say(state, row.state);
  say(find("class", line), [row.priority === "normal" ? "" : row.priority, row.tenant].filter(Boolean).join(" · "));
  const words = format.counts(row);
  const share = (jobs) => (row.total ? jobs / row.total : 0);
  bar(cell("progress").firstChild, [{ kind: "ok", share: share(row.succeeded) }, { kind: "bad", share: share(row.failed) }], `${words} of ${format.count(row.total)} jobs`);
  say(cell("progress").lastChild, `${row.total ? format.percent(share(row.done)) : "0 %"} · ${words}`);
  say(cell("rate"), row.ended ? "—" : `${format.rate(row.rate)}/s`);
  say(cell("eta"), format.span(row.eta));
  say(cell("retries"), format.count(row.retries));
  say(cell("age"), `${row.ended ? "took " : ""}${format.span(row.elapsed)}`);
  say(cell("limits"), row.limited_by);
  cell("limits").classList.toggle("cm-muted", row.ended);
}
