// Builds and changes elements. Everything shown goes through textContent: nothing that was submitted becomes markup.

export const find = (name, within = document) => within.querySelector(`[data-${name}]`);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (name === "class") made.className = value;
    else if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// Changes a text only where it differs, so that selections and screen readers are left in peace.
export function say(target, text) {
  if (target && target.textContent !== text) target.textContent = text;
}

// Makes the children of a place those of the items, by key: what stays keeps its element, and with it the focus.
export function sync(place, items, key, create, update) {
  const known = new Map([...place.children].filter((child) => child.dataset.key).map((child) => [child.dataset.key, child]));
  const wanted = items.map((item) => {
    const name = String(key(item));
    const child = known.get(name) ?? create(item);
    child.dataset.key = name;
    update(child, item);
    return child;
  });
  for (const child of [...place.children]) if (!wanted.includes(child)) child.remove();
  wanted.forEach((child, position) => {
    if (place.children[position] !== child) place.insertBefore(child, place.children[position] ?? null);
  });
}

// A bar of shares: [{share, kind}], drawn from the left; what is not drawn is left open.
export function bar(place, parts, label) {
  sync(place, parts.filter((part) => part.share > 0), (part) => part.kind, (part) => element("span", { class: `cm-part cm-part-${part.kind}` }),
    (child, part) => { child.style.width = `${Math.min(100, part.share * 100)}%`; });
  if (place.getAttribute("aria-label") !== label) place.setAttribute("aria-label", label);
}

export function toast(message, kind = "success") {
  const shown = element("div", { class: `toast align-items-center border-0 text-bg-${kind}`, role: kind === "danger" ? "alert" : "status" },
    element("div", { class: "d-flex" },
      element("div", { class: "toast-body" }, message),
      element("button", { type: "button", class: "btn-close btn-close-white me-2 m-auto", "data-bs-dismiss": "toast", "aria-label": "Close" })));
  document.getElementById("toast-container").append(shown);
  shown.addEventListener("hidden.bs.toast", () => shown.remove());
  window.bootstrap.Toast.getOrCreateInstance(shown, { delay: kind === "danger" ? 10000 : 5000 }).show();
}
