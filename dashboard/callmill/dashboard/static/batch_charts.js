// The charts of a batch's page.

import { Chart } from "./chart.js";
import { find } from "./dom.js";
import * as format from "./format.js";

const BUCKET_RATIO = 1.05; // of the ledger's latency buckets
const BARS_PER_DECADE = 12;

const since = { values: (_, splits) => splits.map((s) => (s === 0 ? "0" : format.span(s).replace(/ 0 (s|min|h)$/, ""))), value: (_, s) => (s == null ? "—" : format.span(s)), label: "after" };
const jobs = (_, value) => format.count(value);
let charts = null;

function create() {
  const place = (name) => document.querySelector(`[data-chart="${name}"]`);
  const compact = { values: (_, splits) => splits.map(format.compact) };
  const seconds = { values: (_, splits) => splits.map(format.latency) };
  return {
    progress: new Chart(place("progress"), {
      x: since, y: compact,
      series: [
        { label: "done", colour: "--cm-ok", fill: true, value: jobs },
        { label: "failed", colour: "--cm-bad", fill: true, value: jobs },
      ],
    }),
    throughput: new Chart(place("throughput"), {
      x: since,
      series: [
        { label: "jobs done", colour: "--cm-ok", fill: true },
        { label: "calls", colour: "--cm-calls" },
        { label: "retries", colour: "--cm-warn", dash: [4, 4] },
        { label: "429", colour: "--cm-bad", dash: [2, 3] },
      ],
    }),
    latency: new Chart(place("latency"), { x: since, y: seconds, series: [{ label: "mean", colour: "--cm-calls", fill: true, value: (_, value) => format.latency(value) }] }),
    histogram: new Chart(place("histogram"), {
      x: { label: "around", values: (_, splits) => splits.map((exponent) => format.latency(10 ** exponent)), value: (_, exponent) => (exponent == null ? "—" : format.latency(10 ** exponent)) },
      y: compact,
      series: [{ label: "calls", colour: "--cm-calls", fill: true, solid: true, kind: "bars", value: jobs }],
    }),
  };
}

export function showCharts(view) {
  charts ??= create();
  const { history, step_s: step, progress: batch } = view;
  const last = history.length ? history[history.length - 1].t_s : 0;
  let done = 0;
  let failed = 0;
  const rows = history.map((point) => [point.t_s, (done += point.succeeded + point.failed), (failed += point.failed)]);
  const column = (position) => rows.map((row) => row[position]);
  charts.progress.set([[0, ...column(0)], [0, ...column(1)], [0, ...column(2)]], `Progress: ${format.count(batch.done)} of ${format.count(batch.total)} jobs done, ${format.count(batch.failed)} failed`);
  // The last step is not over while the batch runs: its rates would be too low.
  const whole = history.filter((point) => batch.ended || point.t_s <= view.age_s || history.length === 1);
  const per = (value) => whole.map((point) => Math.max(0, value(point)) / step);
  const at = whole.map((point) => point.t_s);
  charts.throughput.set([at, per((p) => p.succeeded + p.failed), per((p) => p.calls), per((p) => p.retries), per((p) => p.throttled)], `Throughput: ${format.rate(batch.rate)} jobs per second now, over ${format.span(last)}`);
  charts.latency.set([at, whole.map((p) => p.latency_s)], `Latency: p50 ${format.latency(batch.p50)}, p95 ${format.latency(batch.p95)}, p99 ${format.latency(batch.p99)}`);
  charts.histogram.set(histogram(view.latency_buckets), `Latency distribution of ${format.count(batch.calls)} calls, from the fastest to the slowest`);
  find("figures").classList.toggle("cm-no-history", !history.length);
}

// The ledger's buckets are 5 % wide; drawn they are a twelfth of a decade, so that single calls do not make a comb.
function histogram(buckets) {
  const bars = new Map();
  for (const [bucket, calls] of Object.entries(buckets)) {
    const exponent = ((Number(bucket) + 0.5) * Math.log(BUCKET_RATIO)) / Math.LN10 - 6;
    const bar = Math.floor(exponent * BARS_PER_DECADE);
    bars.set(bar, (bars.get(bar) ?? 0) + calls);
  }
  const numbers = [...bars.keys()].sort((one, other) => one - other);
  if (!numbers.length) return [[], []];
  const first = numbers[0] - 1;
  const every = Array.from({ length: numbers[numbers.length - 1] - first + 2 }, (_, position) => first + position);
  return [every.map((bar) => (bar + 0.5) / BARS_PER_DECADE), every.map((bar) => bars.get(bar) ?? 0)];
}
