// Making what is seen.  Every text goes in as text: prompts, answers and names are data, whoever wrote them.

/** An element: el("p.hint", "text", another). */
export function el(what, ...children) {
  const [tag, ...classes] = what.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export function button(text, onclick, kind = "") {
  const node = el("button", text);
  node.type = "button";
  if (kind) node.className = kind;
  node.addEventListener("click", onclick);
  return node;
}

/** Set a text only where it is another, so that what somebody has marked stays marked. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Keep the children of a list as the items are: `make(item)` gives a row, {node, update(item), leave?()}. */
export function keyed(parent, rows, items, keyOf, make) {
  const seen = new Set();
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (seen.has(key)) continue;
    seen.add(key);
    if (!rows.has(key)) rows.set(key, make(item));
    const row = rows.get(key);
    row.update(item);
    if (row.node === next) next = next.nextElementSibling;
    else parent.insertBefore(row.node, next);
  }
  for (const [key, row] of rows) {
    if (seen.has(key)) continue;
    rows.delete(key);
    if (row.leave) row.leave();
    else row.node.remove();
  }
}

/** A stretch of time, with two figures at the most. */
export function span(ms) {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return "–";
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d`;
}

/** What an event `queued` says, by the server's time `now` in ms: "2 before you on attic, about 20 s". */
export function waiting({ reason, estimated_wait_ms: estimate, at_ms: at }, now) {
  const told = String(reason ?? "waiting");
  if (typeof estimate !== "number") return told;
  const left = estimate - (typeof at === "number" ? Math.max(0, now - at) : 0);
  if (!(left > 0)) return told; // it has taken longer: nobody knows
  return `${told}, about ${left < 60000 ? `${Math.ceil(left / 1000)} s` : span(left)}`;
}

export function usd(value) {
  if (value === 0) return "$0";
  if (value < 0.00005) return "< $0.0001";
  return `$${value.toFixed(value < 0.1 ? 4 : 2)}`;
}

export const count = (value) => Number(value).toLocaleString("en-US");
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
