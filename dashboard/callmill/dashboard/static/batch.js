// One batch.

import { showCharts } from "./batch_charts.js";
import { listen } from "./batch_control.js";
import { bar, element, find, say, sync } from "./dom.js";
import * as format from "./format.js";
import { Live } from "./live.js";

const page = find("page");
const live = new Live(page, { address: () => page.dataset.data, show, gone });
const offer = listen(page, () => live.ask());

function gone() {
  find("gone").hidden = false;
  find("figures").hidden = true;
  find("trouble").hidden = true;
  live.rest();
  say(find("live-text"), "Gone");
}

function show(view) {
  const batch = view.progress;
  document.title = `${batch.name || batch.id} · Callmill`;
  say(find("title"), batch.name || batch.id);
  find("tasks-link").href = tasks(batch);
  showBadges(batch);
  showProgress(batch);
  showFigures(view);
  showCharts(view);
  showCauses(view.errors, batch);
  showSlowest(view.slowest);
  showFacts(view);
  offer(batch);
}

// Flower looks tasks up by what their args say: the batch's name on one line, cut at 60, or its id.
function tasks(batch) {
  const label = (batch.name.trim().split(/\s+/).join(" ") || batch.id).slice(0, 59);
  const quoted = label.replace(/[\\"]/g, "\\$&");
  return `${page.dataset.tasks}?name=${encodeURIComponent(`callmill.run_chunk args:"${quoted}"`)}`;
}

function showBadges(batch) {
  const badges = [{ text: batch.state, kind: `cm-state cm-state-${batch.state}` }];
  if (batch.priority !== "normal") badges.push({ text: batch.priority, kind: "cm-tag" });
  if (batch.tenant) badges.push({ text: `tenant ${batch.tenant}`, kind: "cm-tag" });
  sync(find("badges"), badges, (badge) => badge.kind + badge.text, () => element("span"), (place, badge) => {
    place.className = badge.kind;
    say(place, badge.text);
  });
  if (find("badges").firstChild.nodeType === Node.TEXT_NODE) find("badges").firstChild.remove();
}

function showProgress(batch) {
  const share = (jobs) => (batch.total ? jobs / batch.total : 0);
  const words = format.counts(batch);
  say(find("percent"), batch.total ? format.percent(share(batch.done)) : "0 %");
  say(find("counts"), `of ${format.count(batch.total)}${batch.sealed ? "" : " so far"} · ${words}`);
  bar(find("bar"), [{ kind: "ok", share: share(batch.succeeded) }, { kind: "bad", share: share(batch.failed) }], `${words} of ${format.count(batch.total)} jobs`);
  say(find("limited"), batch.limited_by);
}

function showFigures(view) {
  const batch = view.progress;
  const write = (name, value, note = "") => {
    say(page.querySelector(`[data-metric="${name}"]`), value);
    say(page.querySelector(`[data-note="${name}"]`), note || "\u00a0");
  };
  const overall = batch.mean_rate;
  write("rate", format.rate(batch.ended ? overall : batch.rate), batch.ended ? "over its whole time" : `${format.rate(overall)} on average`);
  write("eta", batch.ended ? "over" : format.span(batch.eta), batch.ended ? `since ${format.time(view.ended_at)}` : batch.sealed ? "at this rate" : "still being submitted");
  write("elapsed", format.span(batch.elapsed), batch.ended ? "in all" : `since ${format.time(view.began_at)}`);
  write("calls", format.compact(batch.calls), `${format.plural(batch.retries, "retry", "retries")} · ${format.count(batch.throttled)} × 429`);
  write("p50", format.latency(batch.p50), "half of the calls");
  write("p95", format.latency(batch.p95), "19 of 20 calls");
  write("p99", format.latency(batch.p99), "99 of 100 calls");
  write("failed", format.compact(batch.failed), batch.done ? `${format.percent(batch.failed / batch.done)} of those done` : "");
}

function showCauses(causes, batch) {
  find("no-failures").hidden = causes.length > 0;
  sync(find("causes"), causes, (cause) => cause.cause, createCause, (line, cause) => {
    say(line.querySelector("code"), cause.cause);
    say(line.querySelector(".cm-cause-jobs"), format.plural(cause.jobs, "job"));
    bar(line.querySelector(".cm-bar"), [{ kind: "bad", share: cause.jobs / Math.max(1, batch.failed) }], `${format.percent(cause.jobs / Math.max(1, batch.failed))} of the failed jobs`);
  });
}

function createCause({ cause }) {
  const list = element("div", { class: "cm-examples", hidden: true });
  const button = element("button", { type: "button", class: "btn btn-sm btn-link", "aria-expanded": "false", onclick: () => examples(cause, list, button) }, "Show jobs");
  return element("li", {},
    element("p", {}, element("code"), element("span", { class: "cm-cause-jobs" }), button),
    element("div", { class: "cm-bar cm-bar-thin", role: "img" }), list);
}

async function examples(cause, list, button) {
  list.hidden = !list.hidden;
  button.setAttribute("aria-expanded", String(!list.hidden));
  say(button, list.hidden ? "Show jobs" : "Hide jobs");
  if (list.hidden) return;
  list.replaceChildren(element("p", { class: "cm-muted" }, "Looking…"));
  try {
    const answer = await fetch(`${page.dataset.failed}?${new URLSearchParams(cause === "other" ? {} : { cause })}`, { cache: "no-store" });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error.message);
    list.replaceChildren(...found.jobs.map(example));
    if (!found.jobs.length) list.append(element("p", { class: "cm-muted" }, `None among the first ${format.count(found.looked_at)} failed jobs: callmill failures ${decodeURIComponent(page.dataset.data.split("/").pop())}`));
  } catch (error) {
    list.replaceChildren(element("p", { class: "cm-muted" }, error.message));
  }
}

function example(job) {
  return element("p", {}, element("code", {}, job.id), ` ${job.message} `,
    element("span", { class: "cm-muted" }, `${format.plural(job.attempts, "call")}, ${format.time(job.at)}${job.request_id ? `, request ${job.request_id}` : ""}`));
}

function showSlowest(jobs) {
  find("slowest-table").hidden = !jobs.length;
  find("no-slowest").hidden = jobs.length > 0;
  sync(find("slowest"), jobs, (job) => job.index, () => element("tr", {}, element("th", { scope: "row" }, element("code")), element("td", { class: "cm-number" }), element("td", { class: "cm-number" })),
    (line, job) => {
      say(line.querySelector("code"), job.id);
      say(line.children[1], format.count(job.index));
      say(line.children[2], format.latency(job.latency_s));
    });
}

function showFacts(view) {
  const facts = [
    ["APIs", view.apis.join(", ") || "none yet"],
    ["Submitted", format.time(view.created_at)],
    ["Ended", view.ended_at ? format.time(view.ended_at) : "not yet"],
    ["Deadline", view.deadline_at ? format.time(view.deadline_at) : "none"],
    ["Chunks", `${format.count(view.chunks)}, ${format.count(view.leased)} at workers now`],
    ["Outcomes not yet released", `${format.bytes(view.unread_bytes)}${view.max_unread_bytes ? ` of ${format.bytes(view.max_unread_bytes)}` : ""}`],
  ];
  sync(find("facts"), facts, ([name]) => name, ([name]) => element("div", { class: "detail-row" }, element("dt", {}, name), element("dd")), (row, [, value]) => say(row.lastChild, value));
}
