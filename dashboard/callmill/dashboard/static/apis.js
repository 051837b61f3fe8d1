// The APIs: what each is allowed, what it does, and what limits it now.

import { Chart } from "./chart.js";
import { bar, element, find, say, sync } from "./dom.js";
import { showFleet } from "./fleet.js";
import * as format from "./format.js";
import { Live } from "./live.js";

const FIGURES = [
  ["Calls/s", (api) => format.rate(api.rate), (api) => `${format.compact(api.hour.calls)} in the last hour`],
  ["In flight", (api) => format.count(api.now.in_flight), (api) => (api.now.permits == null ? "" : `${format.count(api.now.permits)} permits held`)],
  ["Waiting", (api) => format.compact(api.now.waiting), (api) => (api.queued_chunks ? `${format.plural(api.queued_chunks, "chunk")} queued, the oldest ${format.span(api.oldest_chunk_age_s)}` : "no chunk queued")],
  ["Next start", (api) => nextStart(api.now), (api) => (!(api.last.limiter_wait.p50 > 0.001) ? "" : `the limiter's wait: p50 ${format.latency(api.last.limiter_wait.p50)}`)],
  ["Latency p50", (api) => format.latency(api.last.latency.p50), (api) => hour(api.hour.latency.p50)],
  ["Latency p95", (api) => format.latency(api.last.latency.p95), (api) => hour(api.hour.latency.p95)],
  ["Latency p99", (api) => format.latency(api.last.latency.p99), (api) => hour(api.hour.latency.p99)],
  ["Answers 429", (api) => format.compact(api.last.throttled), (api) => `${format.compact(api.hour.throttled)} in the last hour`],
  ["Failed jobs", (api) => format.compact(api.last.failed), (api) => `${format.compact(api.hour.failed)} in the last hour`],
  ["Tokens", (api) => format.compact(api.hour.tokens), () => "in the last hour"],
];

const COUNTS = { bucket: "its server is a bucket", sliding: "its server counts sliding windows", fixed: "its server counts fixed windows", unknown: "how its server counts is not known" };

const page = find("page");
const charts = new Map();
new Live(page, { address: () => page.dataset.data, show });

function show({ apis, fleet }) {
  showFleet(page, fleet);
  find("empty").hidden = apis.length > 0;
  sync(find("apis"), apis, (api) => api.now.api, create, update);
}

function hour(latency_s) {
  return latency_s == null ? "" : `${format.latency(latency_s)} in the last hour`;
}

function nextStart(now) {
  if (now.paused_s == null) return "paused";
  if (now.next_start_s == null) return now.paused_s ? `in ${format.span(now.paused_s)}` : "—";
  return now.next_start_s < 1 ? "now" : `in ${format.span(now.next_start_s)}`;
}

// One word for the state, and a sentence where there is more to say.
function state(now) {
  if (now.held) return ["held", `${now.held}.`];
  if (now.breaker !== "closed") return ["down", now.down || `The breaker is ${now.breaker}.`];
  if (now.paused_s !== 0) {
    const until = now.paused_s == null ? "until resumed" : `for ${format.span(now.paused_s)}`;
    return ["paused", `Paused ${until}${now.paused_by ? ` by ${now.paused_by}` : ""}: ${now.pause_reason ?? "no reason given"}`];
  }
  if (now.diverted_to) return ["diverted", `Its calls go to ${now.diverted_to}.`];
  if (now.in_flight || now.waiting || now.rate) return ["running", ""];
  return now.workers ? ["idle", ""] : ["unserved", "No worker serves it."];
}

function create(api) {
  const name = api.now.api;
  return element("article", { class: "cm-panel cm-api", id: `api-${name}`, "aria-label": `API ${name}` },
    element("header", {},
      element("div", {}, element("h2", {}, name), element("p", { class: "cm-muted", "data-url": true })),
      element("span", { class: "cm-state", "data-state": true })),
    element("p", { class: "cm-notice", "data-notice": true, hidden: true }),
    element("p", { class: "cm-limits" }, element("span", {}, "What limits it now"), element("strong", { "data-limits-by": true })),
    element("div", { class: "cm-columns" },
      element("div", {},
        element("h3", {}, "Limits"),
        element("ul", { class: "cm-shares", "data-shares": true }),
        element("ul", { class: "cm-keys", "data-learned": true }),
        element("p", { class: "cm-muted", "data-no-limits": true }, "No limit: calls start as fast as workers can."),
        element("div", { "data-keys-part": true, hidden: true }, element("h3", {}, "Credentials"), element("ul", { class: "cm-keys", "data-keys": true }))),
      element("figure", { class: "cm-chart" },
        element("figcaption", {}, element("h3", {}, "Calls per minute"), element("span", { class: "cm-muted" }, "last hour")),
        element("div", { "data-calls": true, role: "img" }))),
    element("dl", { class: "cm-figures" }, ...FIGURES.map(([label]) => element("div", {}, element("dt", {}, label), element("dd", {}, element("b"), element("small"))))));
}

function update(panel, api) {
  const { now } = api;
  const [word, more] = state(now);
  say(find("url", panel), `${now.base_url} · ${format.plural(now.workers, "worker process", "worker processes")}${api.shares.length ? ` · ${COUNTS[now.enforcer] ?? now.enforcer}` : ""}`);
  say(find("state", panel), word);
  find("state", panel).className = `cm-state cm-state-${word}`;
  say(find("notice", panel), more);
  find("notice", panel).hidden = !more || more === api.limits_by;
  say(find("limits-by", panel), api.limits_by);
  find("no-limits", panel).hidden = api.shares.length > 0 || now.learned.length > 0;
  sync(find("learned", panel), now.learned, (one) => one.words, () => element("li", {}), updateLearned);
  sync(find("shares", panel), api.shares, (share) => share.limit, createShare, (line, share) => updateShare(line, share, now));
  find("keys-part", panel).hidden = !now.keys.length;
  sync(find("keys", panel), now.keys, (key) => key.name, () => element("li", {}, element("code"), element("span")), updateKey);
  panel.querySelectorAll(".cm-figures > div").forEach((figure, position) => {
    const [, value, note] = FIGURES[position];
    say(figure.querySelector("b"), value(api));
    say(figure.querySelector("small"), note(api));
  });
  showCalls(find("calls", panel), api);
}

function createShare() {
  const line = (name, label) => element("div", { class: "cm-share", [`data-${name}`]: true }, element("span", {}, label), element("div", { class: "cm-bar", role: "img" }), element("b"));
  return element("li", {},
    element("header", {}, element("strong"), element("details", {}, element("summary"), element("p"))),
    line("now", "now"), line("hour", "hour"));
}

function updateShare(line, share, now) {
  const bound = now.bounds.find((one) => one.limit === share.limit);
  const details = line.querySelector("details");
  say(line.querySelector("strong"), share.limit);
  say(details.firstChild, bound?.usable == null ? "how much of it is usable" : `${format.precise(bound.usable)} usable`);
  say(details.lastChild, bound?.why ?? "");
  details.hidden = !bound?.why;
  for (const [name, value] of [["now", share.now], ["hour", share.hour]]) {
    const part = find(name, line);
    part.hidden = value == null;
    bar(part.querySelector(".cm-bar"), [{ kind: value >= 0.9 ? "full" : "used", share: value ?? 0 }], `${format.percent(value)} of ${share.limit} used, ${name === "now" ? "now" : "over the last hour"}`);
    say(part.querySelector("b"), format.percent(value));
  }
}

function updateLearned(line, one) {
  say(line, `${one.words} since ${format.since(one.since_s)}${one.more}`);
}

function updateKey(line, key) {
  say(line.firstChild, key.name);
  const until = key.paused_s == null ? "set aside until resumed" : key.paused_s ? `set aside for ${format.span(key.paused_s)}` : "in use";
  say(line.lastChild, `${until}${key.by ? ` by ${key.by}` : ""}${key.reason ? `: ${key.reason}` : ""}`);
}

function showCalls(place, api) {
  const { minutes } = api;
  if (!charts.has(place)) {
    const number = (_, value) => format.count(value);
    charts.set(place, new Chart(place, {
      height: 160,
      x: { time: true, label: "at", value: (_, at) => (at == null ? "—" : format.clock(new Date(at * 1000)).slice(0, 5)), values: (_, splits) => splits.map((at) => format.clock(new Date(at * 1000)).slice(0, 5)) },
      y: { values: (_, splits) => splits.map(format.compact) },
      series: [
        { label: "calls", colour: "--cm-calls", fill: true, solid: true, kind: "bars", value: number },
        { label: "failed jobs", colour: "--cm-bad", fill: true, solid: true, kind: "bars", value: number },
        { label: "429", colour: "--cm-warn", fill: true, solid: true, kind: "bars", value: number },
      ],
    }));
  }
  charts.get(place).set([minutes.at, minutes.calls, minutes.failed, minutes.throttled], `Calls per minute: ${format.count(api.hour.calls)} calls, ${format.count(api.hour.failed)} failed jobs and ${format.count(api.hour.throttled)} answers 429 in the last hour`);
}
