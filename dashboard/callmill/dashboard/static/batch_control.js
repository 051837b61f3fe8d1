// The buttons of a batch's page.

import { find, say, toast } from "./dom.js";
import * as format from "./format.js";

const OVER = ["done", "cancelled"];

// Returns what shows the buttons that make sense for the batch.
export function listen(page, changed) {
  const buttons = [...page.querySelectorAll("[data-action]")];
  const dialogs = { cancel: find("confirm", page), "retry-failed": find("confirm-retry", page) };
  let busy = false;

  async function act(button) {
    if (busy) return;
    const dialog = dialogs[button.dataset.what];
    if (dialog && !(await confirmed(dialog))) return;
    busy = true;
    buttons.forEach((other) => (other.disabled = true));
    button.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(button.dataset.action, { method: "POST", headers: { "X-XSRFToken": token() } });
      const said = await answer.json();
      if (!answer.ok) throw new Error(said.error.message);
      toast(said.message);
    } catch (error) {
      toast(error.message, "danger");
    } finally {
      busy = false;
      buttons.forEach((other) => (other.disabled = false));
      button.removeAttribute("aria-busy");
      changed();
    }
  }

  for (const button of buttons) button.addEventListener("click", () => act(button));

  return (batch) => {
    const over = batch.ended || OVER.includes(batch.state);
    const makesSense = {
      pause: !over && batch.state !== "paused",
      resume: !over && batch.state === "paused",
      cancel: !over,
      "retry-failed": batch.failed > 0 && batch.state !== "cancelled",
    };
    const left = batch.total - batch.done;
    say(find("confirm-rest", page), `The ${format.plural(left, "job")} without an outcome`);
    say(find("confirm-failed", page), format.plural(batch.failed, "failed job"));
    for (const button of buttons) {
      if (document.activeElement === button && !makesSense[button.dataset.what]) find("tasks-link", page).focus();
      button.hidden = !makesSense[button.dataset.what];
    }
  };
}

function confirmed(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

function token() {
  return decodeURIComponent(document.cookie.match(/(?:^|;\s*)_xsrf=([^;]+)/)?.[1] ?? "");
}
