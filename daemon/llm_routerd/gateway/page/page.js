// The page: looks at the gateway every two seconds, and follows what runs.

import { ask, follow, key, Refusal, requestPath } from "./events.js";
import { button, count, el, keyed, plural, say, span, usd, waiting } from "./shown.js";
import { Transcript, twice } from "./transcript.js";

const LOOK_MS = 2000;
const LONGEST_PAUSE_MS = 15000;
const MOST_FOLLOWED = 3; // a browser has six connections to a server; looks, buttons and a prompt of one's own need some
const GONE_MS = 5000; // how long a request is still seen that has ended

const $ = (id) => document.getElementById(id);
const rows = { running: new Map(), lanes: new Map(), deployments: new Map(), workers: new Map(), confirmations: new Map() };
const own = new Set(); // requests that were asked from this page
const followed = new Set();
let lookedAt = 0;
let failures = 0;
let timer = 0;
let rowsMade = 0;
let skew = 0; // ms by which the server's clock is ahead of ours

// --- what is seen at a look

async function look() {
  clearTimeout(timer);
  try {
    const response = await ask("v1/overview", { signal: AbortSignal.timeout(10000) });
    const seen = await response.json();
    lookedAt = Date.now();
    show(seen);
    failures = 0;
    linked();
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) {
      wantKey();
      return;
    }
    failures += 1;
    linked(error instanceof Refusal ? error.message : "the gateway does not answer");
  }
  schedule();
}

function schedule() {
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(look, Math.min(LOOK_MS * 2 ** Math.max(0, failures - 1), LONGEST_PAUSE_MS));
}

function linked(trouble = "") {
  const link = $("link");
  link.classList.toggle("bad", Boolean(trouble));
  document.body.classList.toggle("stale", Boolean(trouble) && lookedAt > 0);
  const since = lookedAt ? `; what is shown is from ${new Date(lookedAt).toLocaleTimeString()}` : "";
  if (!lookedAt) say($("summary"), "");
  say(link, trouble ? `${trouble}${since}` : "live");
}

function show(seen) {
  skew = seen.at_ms - Date.now();
  $("door").hidden = true;
  $("board").hidden = false;
  $("leave").hidden = !key.get();
  say($("who"), seen.tenant === null ? "" : `You see the requests of ${seen.tenant}.`);
  showSummary(seen);
  showModels(seen.models);
  showConfirmations(seen.confirmations);
  showRunning(seen);
  keyed($("lanes"), rows.lanes, seen.lanes, (lane) => lane.lane, laneRow);
  say($("dead-count"), `${plural(seen.dead_letters ?? 0, "dead letter")} for an operator to look at`);
  $("dead").hidden = !seen.dead_letters;
  const keyless = seen.deployments.filter((each) => each.state === "disabled").map((each) => each.name);
  const usable = seen.deployments.filter((each) => each.state !== "disabled");
  keyed($("deployments"), rows.deployments, usable, (each) => each.name, deploymentRow);
  say($("keyless"), `Not asked, for their keys are missing: ${keyless.join(", ")}.`);
  $("keyless").hidden = keyless.length === 0;
  showToday(seen.today);
  $("workers-section").hidden = seen.workers === null;
  $("workers-none").hidden = Boolean(seen.workers?.length);
  keyed($("workers"), rows.workers, seen.workers ?? [], (worker) => worker.name, workerRow);
}

function showSummary({ lanes, running, more_running: more, tenant, today, workers }) {
  const waiting = lanes.reduce((sum, lane) => sum + lane.waiting, 0);
  const oldest = Math.max(...lanes.map((lane) => lane.oldest_ms ?? -1));
  const parts = [`${count(running.length + more)} running`, `${count(waiting)} waiting${waiting && oldest >= 0 ? `, the oldest for ${span(oldest)}` : ""}`];
  if (workers) parts.push(workers.length ? plural(workers.length, "worker") : "no worker");
  parts.push(`${usd(today.sums.cost_usd)} today, ${usd(today.sums.saved_usd)} saved`);
  say($("summary"), parts.join(" · "));
  document.title = `${running.length + more ? `${running.length + more} running – ` : ""}llm-routerd${tenant ? ` (${tenant})` : ""}`;
}

function showModels(models) {
  const select = $("model");
  if (select.options.length === models.length && models.every((name, at) => select.options[at].value === name)) return;
  const chosen = select.value;
  select.replaceChildren(...models.map((name) => new Option(name, name)));
  if (models.includes(chosen)) select.value = chosen;
  else if (models.includes("default")) select.value = "default";
}

function laneRow({ lane }) {
  const cells = [0, 1, 2].map(() => el("td"));
  return {
    node: el("tr", Object.assign(el("th", lane), { scope: "row" }), ...cells),
    update({ waiting, oldest_ms: oldest, running, is_served: served }) {
      say(cells[0], count(waiting));
      say(cells[1], waiting ? span(oldest) : "–");
      say(cells[2], served || !waiting ? count(running) : "nobody serves it");
      cells[0].classList.toggle("some", waiting > 0);
    },
  };
}

const DOINGS = { "": "not begun", queued: "waits for a box", attempt: "asked", token: "answering", reasoning: "thinking", rejected: "discarded", tool_call: "calls a tool", tool_result: "has a tool's answer", turn: "waits for its tools", confirmed: "waits for its tools", denied: "waits for its tools" };
const STATES = { none: "no calls yet", answering: "answers", rejected: "last answer not accepted", failing: "fails", cooling: "left alone" };

function deploymentRow({ name }) {
  const dot = el("span.dot");
  const model = el("span.model");
  const state = el("span.state");
  const recent = el("span.recent");
  const facts = el("span.facts");
  recent.setAttribute("role", "img");
  return {
    node: el("li.deployment", el("div.head", el("span.name", dot, el("b", name)), recent), el("p.line", model), el("p.line", state, facts)),
    update(each) {
      dot.className = `dot ${each.state}`;
      say(model, `${each.model}${each.is_local ? "" : ", in the cloud"}`);
      const lasts = each.since ? Date.now() + skew - each.since * 1000 : 0;
      const since = lasts >= 1000 ? `, for ${span(lasts)}` : "";
      say(state, `${STATES[each.state] ?? each.state}${each.code && each.state !== "answering" ? `: ${each.code}` : ""}${since}`);
      state.className = `state ${each.state}`;
      const calls = each.recent.length;
      say(facts, calls ? `${each.answers} of ${calls}${each.median_ms === null ? "" : `, median ${span(each.median_ms)}`}` : "");
      facts.title = calls ? `Of its last ${calls} calls ${each.answers} were answered.` : "";
      const shape = each.recent.join(",");
      if (recent.dataset.shape !== shape || !recent.childElementCount) {
        recent.dataset.shape = shape;
        recent.replaceChildren(...each.recent.slice(-24).map((code) => el(code ? "i.no" : "i")));
        recent.setAttribute("aria-label", calls ? `last calls: ${each.answers} of ${calls} answered` : "no calls yet");
        recent.title = each.recent.filter(Boolean).slice(-5).join(", ");
      }
    },
  };
}

function workerRow({ name }) {
  const facts = el("span.facts");
  return {
    node: el("li.worker", el("b", name), facts),
    update({ running, models }) {
      say(facts, `${count(running)} running · ${plural(models.length, "model name")}`);
      facts.title = models.join(", ");
    },
  };
}

function showToday({ known_since: since, sums }) {
  const ends = [[sums.answered, "answered"], [sums.failed, "failed"], [sums.cancelled, "cancelled"]];
  const facts = [
    ["requests", count(sums.requests), ends.filter(([n]) => n).map(([n, what]) => `${count(n)} ${what}`).join(", ")],
    ["tokens", count(sums.prompt_tokens + sums.completion_tokens), `${count(sums.prompt_tokens)} in, ${count(sums.completion_tokens)} out`],
    ["cost", usd(sums.cost_usd), sums.unpriced_calls ? `and ${plural(sums.unpriced_calls, "call")} of unknown price` : ""],
    ["saved", usd(sums.saved_usd), "against the next in the cloud"],
  ];
  const list = $("today");
  const shape = JSON.stringify(facts);
  if (list.dataset.shape !== shape) {
    list.dataset.shape = shape;
    list.replaceChildren(...facts.map(([term, value, more]) => el("div", el("dt", term), el("dd", value, el("span.more", more)))));
  }
  $("today-hint").hidden = since === null;
  if (since !== null) say($("today-hint"), `Since ${new Date(since * 1000).toLocaleTimeString()}: what was before is no longer in the metrics stream.`);
}

// --- what runs

function showRunning({ running, more_running: more }) {
  keyed($("running"), rows.running, running, (each) => each.id, runningRow);
  say($("running-count"), running.length ? count(running.length + more) : "");
  $("running-none").hidden = $("running").childElementCount > 0;
  say($("running-more"), more ? `and ${count(more)} more` : "");
  $("running-more").hidden = !more;
}

function runningRow({ id }) {
  const facts = el("p.facts");
  const place = el("div.place");
  const watch = button("Watch", () => (row.stop ? unwatch(row) : watchOnly(row)));
  const cancel = twice("Cancel", "Cancel it?", () => stop(id, place));
  watch.setAttribute("aria-expanded", "false");
  const isOwn = own.has(id);
  const name = el("code.id", id);
  name.title = id;
  name.id = `request-${(rowsMade += 1)}`;
  for (const each of [watch, cancel]) each.setAttribute("aria-describedby", name.id);
  const row = {
    node: el("li.request", el("div.head", name, el("span.controls", isOwn ? null : watch, isOwn ? null : cancel)), facts, place),
    watch,
    place,
    id,
    stop: null,
    update(each) {
      const doing = each.calls_waiting ? "waits for a person" : DOINGS[each.last] ?? each.last;
      const where = each.queued ? waiting(each.queued, Date.now() + skew) : each.deployment ? `${each.deployment}, ${doing}` : doing;
      const again = each.deliveries > 1 ? ` · delivery ${each.deliveries}` : "";
      say(facts, `${where} · ${span(each.age_ms)} · lane ${each.lane} · ${each.worker}${again}${isOwn ? " · asked here" : ""}`);
    },
    leave() {
      row.node.classList.add("gone");
      say(facts, "ended");
      setTimeout(() => {
        unwatch(row);
        row.node.remove();
        $("running-none").hidden = $("running").childElementCount > 0;
      }, GONE_MS);
    },
  };
  if (!isOwn && followed.size < MOST_FOLLOWED) watchRow(row);
  return row;
}

function watchOnly(row) {
  if (followed.size >= MOST_FOLLOWED) unwatch(followed.values().next().value);
  watchRow(row);
}

async function watchRow(row) {
  const controller = new AbortController();
  const transcript = new Transcript();
  row.stop = controller;
  followed.add(row);
  say(row.watch, "Hide");
  row.watch.setAttribute("aria-expanded", "true");
  row.place.replaceChildren(transcript.node);
  try {
    await follow(row.id, (event) => transcript.take(event), controller.signal);
  } catch (error) {
    trouble(row.place, error);
  }
  if (row.stop === controller) followed.delete(row);
}

function unwatch(row) {
  row.stop?.abort();
  row.stop = null;
  followed.delete(row);
  say(row.watch, "Watch");
  row.watch.setAttribute("aria-expanded", "false");
  row.place.replaceChildren();
}

async function stop(id, place) {
  try {
    await ask(requestPath(id), { method: "DELETE" });
    look();
  } catch (error) {
    trouble(place, error);
  }
}

function trouble(place, error) {
  const note = el("p.notice.bad", error instanceof Refusal ? error.message : "the gateway does not answer");
  note.setAttribute("role", "alert");
  place.querySelector(":scope > .notice")?.remove();
  place.append(note);
}

// --- what waits for a person

function showConfirmations(waiting) {
  $("confirmations").hidden = waiting.length === 0;
  say($("confirmations-title"), waiting.length ? `${plural(waiting.length, "tool call")} ${waiting.length === 1 ? "waits" : "wait"} for your word` : "");
  keyed($("confirmations-list"), rows.confirmations, waiting, (call) => `${call.id} ${call.call_id}`, confirmationRow);
}

function confirmationRow(call) {
  const left = el("span.left");
  const place = el("div");
  const said = call.arguments ?? "The arguments are too long to be shown here; they are in the request's events.";
  const answer = async (agrees) => {
    const allowed = buttons.map((each) => each.disabled);
    buttons.forEach((each) => (each.disabled = true));
    try {
      const path = requestPath(call.id, `/confirmations/${encodeURIComponent(call.call_id)}`);
      await ask(path, { method: "POST", body: { confirm: agrees, args_sha256: call.args_sha256 } });
      place.replaceChildren(el("p.note", agrees ? "allowed" : "denied"));
      look();
    } catch (error) {
      buttons.forEach((each, at) => (each.disabled = allowed[at]));
      trouble(place, error);
    }
  };
  const buttons = [button("Allow", () => answer(true), "primary"), button("Deny", () => answer(false))];
  buttons[0].disabled = call.arguments === null; // nobody agrees to what was not shown
  buttons.forEach((each) => each.setAttribute("aria-label", `${each.textContent} ${call.name}`));
  return {
    node: el("li.call", el("div.head", el("b", call.name || "a tool"), el("span.controls", ...buttons)), el("pre", said), el("p.facts", el("code.id", call.id), left), place),
    update({ expires_at_ms: until }) {
      say(left, until ? ` · for another ${span(until - Date.now() - skew)}` : "");
    },
  };
}

// --- a prompt of one's own

let trying = null;

async function tryPrompt(event) {
  event.preventDefault();
  if (!$("stop").hidden) return; // one at a time
  const controller = new AbortController();
  const mine = { controller, id: null };
  trying = mine;
  const transcript = new Transcript({ announces: true });
  const place = $("answer");
  place.replaceChildren(transcript.node);
  busy(true);
  try {
    const body = { prompt: $("prompt").value, model: $("model").value, stream: $("early").checked ? "live" : true };
    const made = await (await ask("v1/requests", { method: "POST", body, signal: controller.signal })).json();
    mine.id = String(made.id);
    own.add(mine.id);
    look();
    await follow(mine.id, (each) => transcript.take(each), controller.signal);
  } catch (error) {
    if (!controller.signal.aborted) trouble(place, error);
  }
  if (trying === mine) busy(false);
}

function busy(isBusy) {
  $("ask").hidden = isBusy;
  $("stop").hidden = !isBusy;
  $("answer").setAttribute("aria-busy", String(isBusy));
}

function stopTrying() {
  if (trying?.id) stop(trying.id, $("answer"));
  else trying?.controller.abort();
}

// --- keys

function wantKey() {
  $("board").hidden = $("confirmations").hidden = true;
  $("door").hidden = false;
  $("leave").hidden = true;
  say($("summary"), "");
  say($("link"), "");
  if (key.get()) {
    key.forget();
    say($("door-hint"), "That is none of this gateway's keys.");
    $("door-hint").classList.add("bad");
  }
  $("key").focus();
}

$("door-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key").value = "";
  look();
});
$("leave").addEventListener("click", () => {
  key.forget();
  location.reload();
});
$("try-form").addEventListener("submit", tryPrompt);
$("stop").addEventListener("click", stopTrying);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("try-form").requestSubmit();
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
look();
