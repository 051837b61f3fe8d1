// Keeps a page live: asks for its figures every two seconds, less often while that fails, never while nobody looks.

import { find, say } from "./dom.js";
import { clock } from "./format.js";

const EVERY_MS = 2000;
const LONGEST_MS = 30000;
const PATIENCE_MS = 8000;

export class Live {
  // page: the element with the state's parts; address(): where the figures are; show(figures): draws them.
  constructor(page, { address, show, gone }) {
    Object.assign(this, { page, address, show, gone, failures: 0, seen: null, timer: null, asking: null });
    document.addEventListener("visibilitychange", () => (document.hidden ? this.rest() : this.ask()));
    find("retry", page).addEventListener("click", () => this.ask());
    this.ask();
  }

  rest() {
    clearTimeout(this.timer);
    this.state("", "Resting while hidden");
  }

  // Asks at once; an answer that is still to come is for a question that nobody asks any more.
  async ask() {
    clearTimeout(this.timer);
    this.asking?.abort();
    const asking = (this.asking = new AbortController());
    const patience = setTimeout(() => asking.abort("patience"), PATIENCE_MS);
    try {
      const answer = await fetch(this.address(), { signal: asking.signal, headers: { Accept: "application/json" }, cache: "no-store" });
      const figures = await answer.json();
      if (asking !== this.asking) return;
      if (!answer.ok) throw Object.assign(new Error(figures.error.message), { status: answer.status });
      this.failures = 0;
      this.seen = new Date();
      this.lively();
      this.show(figures);
    } catch (error) {
      if (asking !== this.asking) return;
      if (error.status === 404 && this.gone) return this.gone();
      this.failures += 1;
      this.trouble(error);
    } finally {
      clearTimeout(patience);
    }
    if (!document.hidden) this.timer = setTimeout(() => this.ask(), this.pause());
  }

  pause() {
    return Math.min(LONGEST_MS, EVERY_MS * 2 ** Math.min(this.failures, 4));
  }

  lively() {
    this.state("live", "Live");
    find("trouble", this.page).hidden = true;
    const figures = find("figures", this.page);
    figures.removeAttribute("aria-busy");
    figures.classList.remove("cm-stale");
  }

  trouble(error) {
    const trouble = find("trouble", this.page);
    const [title, text] = explained(error);
    say(find("trouble-title", trouble), title);
    say(find("trouble-text", trouble), text);
    say(find("trouble-next", trouble), `Trying again every ${this.pause() / 1000} s.`);
    say(find("trouble-since", trouble), this.seen ? `The figures below are from ${clock(this.seen)}.` : "");
    trouble.hidden = false;
    this.page.classList.toggle("cm-never", !this.seen);
    find("figures", this.page).classList.add("cm-stale");
    this.state("error", "Not live");
  }

  state(kind, text) {
    this.page.classList.toggle("cm-never", kind === "error" && !this.seen);
    find("live-dot", this.page).className = `status-dot${kind ? ` status-dot-${kind}` : ""}`;
    say(find("live-text", this.page), text);
  }
}

function explained(error) {
  if (error.status === 503) return ["Redis does not answer", `Calls in flight finish, no new one starts, and everything goes on by itself when Redis is back. ${error.message}`];
  if (error.status === 401) return ["Signed out", "Load the page again to sign in."];
  if (error.status) return ["The figures could not be read", error.message];
  return ["The dashboard does not answer", "Its server is not running, or the network between here and there is down."];
}
