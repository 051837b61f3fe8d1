// Writes numbers for people. What is not known is a dash.

const NONE = "—";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => (value == null ? NONE : whole.format(value));
export const compact = (value) => (value == null ? NONE : value < 100000 ? whole.format(value) : short.format(value));

export function rate(value) {
  if (value == null) return NONE;
  if (value === 0) return "0";
  return value < 10 ? value.toFixed(1) : whole.format(value);
}

export function percent(share) {
  if (share == null) return NONE;
  const value = share * 100;
  if (value > 0 && value < 0.1) return "<0.1 %";
  return `${value < 10 && value % 1 ? value.toFixed(1) : Math.floor(value)} %`;
}

export const precise = (share) => (share == null ? NONE : `${(Math.floor(share * 1000) / 10).toFixed(share < 1 ? 1 : 0)} %`);

export function latency(seconds) {
  if (seconds == null) return NONE;
  if (seconds === 0) return "0";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${seconds < 0.01 ? (seconds * 1e3).toFixed(1) : Math.round(seconds * 1e3)} ms`;
  return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
}

export function span(seconds) {
  if (seconds == null) return NONE;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function bytes(value) {
  if (value == null) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = value > 0 ? Math.min(units.length - 1, Math.floor(Math.log2(value) / 10)) : 0;
  const scaled = value / 1024 ** step;
  return `${scaled < 10 && step ? scaled.toFixed(1) : Math.round(scaled)} ${units[step]}`;
}

export const time = (unix_s) => (unix_s == null ? NONE : new Date(unix_s * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" }));
export function since(unix_s) {
  const at = new Date(unix_s * 1000);
  const today = at.toDateString() === new Date().toDateString();
  return at.toLocaleString("en-GB", { ...(today ? {} : { dateStyle: "medium" }), timeStyle: "short" });
}
export const clock = (date) => date.toLocaleTimeString("en-GB");
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

// What became of a batch's jobs.
export const counts = (batch) => `${count(batch.succeeded)} succeeded, ${count(batch.failed)} failed, ${count(batch.total - batch.done)} ${batch.ended ? "not run" : "waiting"}`;
