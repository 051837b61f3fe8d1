// The four cards on top of the lists.

import { say } from "./dom.js";
import * as format from "./format.js";

export function showFleet(page, fleet) {
  const card = (name) => page.querySelector(`[data-fleet="${name}"]`);
  const { redis } = fleet;
  say(card("rate"), format.rate(fleet.rate));
  say(card("waiting"), fleet.waiting ? `${format.plural(fleet.waiting, "job")} wait for a slot` : "\u00a0");
  say(card("in_flight"), format.count(fleet.in_flight));
  say(card("processes"), format.count(fleet.processes));
  say(card("none"), fleet.processes ? "\u00a0" : "start one: callmill worker");
  say(card("memory"), format.bytes(redis.used_bytes));
  say(card("memory_of"), redis.full || (redis.max_bytes ? `${format.percent(redis.used_bytes / redis.max_bytes)} of ${format.bytes(redis.max_bytes)}` : "no maxmemory set"));
  card("redis").classList.toggle("metric-card-danger", Boolean(redis.full));
}
