// What happens to one request, attempt by attempt: text as it comes, and what is discarded, with the reason.

import { attemptOf } from "./events.js";
import { button, count, el, say, span, usd, waiting } from "./shown.js";

const LONGEST_KEPT = 20000; // characters of one attempt

class Attempt {
  constructor(number) {
    this.number = number;
    this.title = el("span.title", `attempt ${number}`);
    this.fate = el("span.fate");
    this.text = document.createTextNode("");
    this.body = el("div.text", this.text);
    this.node = el("details.attempt", el("summary", this.title, this.fate), this.body);
    this.node.open = true;
    this.isDiscarded = false;
    this.isTurn = false;
    this.deployment = "";
  }

  begin({ deployment = "", model = "", delivery = 1 }) {
    this.deployment = deployment;
    const again = delivery > 1 ? `, delivery ${delivery}` : "";
    say(this.title, `attempt ${this.number}: ${deployment}${again}`);
    this.title.title = model;
    this.tell("asked");
  }

  tell(fate) {
    say(this.fate, fate);
  }

  add(text) {
    const atEnd = this.body.scrollTop + this.body.clientHeight >= this.body.scrollHeight - 8;
    if (this.text.length === 0) this.tell("answering");
    this.text.appendData(text);
    if (this.text.length > LONGEST_KEPT) this.text.deleteData(0, this.text.length - LONGEST_KEPT / 2);
    if (atEnd) this.body.scrollTop = this.body.scrollHeight;
  }

  think(text) {
    if (!this.thought) {
      this.thought = document.createTextNode("");
      const node = el("details.thinking", el("summary", "thinking"), el("div.text", this.thought));
      this.node.insertBefore(node, this.body);
      this.tell("thinking");
    }
    this.thought.appendData(text);
  }

  note(text, ...more) {
    this.node.append(el("p.note", text, ...more));
  }

  discard(why) {
    this.isDiscarded = true;
    this.node.classList.add("discarded");
    if (this.text.length === 0 && !this.thought) this.node.classList.add("bare");
    this.tell(why);
    const struck = document.createElement("del");
    struck.append(this.text);
    this.body.append(struck);
  }

  /** It is the answer, whatever was thought of it before. */
  accept() {
    this.isDiscarded = false;
    this.node.classList.remove("discarded", "bare");
    this.node.classList.add("answer");
    this.body.replaceChildren(this.text);
    this.tell("answered");
  }

  /** Nothing more will come: what was discarded is folded away. */
  close() {
    if (this.isDiscarded) this.node.open = false;
  }
}

export class Transcript {
  /** `announces`: its end is read out by a screen reader; the text is not, which would never stop. */
  constructor({ announces = false } = {}) {
    this.attempts = new Map();
    this.tools = new Map(); // by the id of a call
    this.end = el("p.end");
    if (announces) this.end.setAttribute("role", "status");
    this.waits = el("p.waits");
    this.waits.hidden = true;
    this.node = el("div.transcript", this.waits, this.end);
    this.hasEnded = false;
  }

  take(event) {
    const { type, data } = event;
    const number = attemptOf(event);
    this.waits.hidden = type !== "queued"; // until another event follows
    if (type === "queued" && number !== Infinity) {
      say(this.waits, waiting(data, data.at_ms)); // which has just come
      return;
    }
    if (number === Infinity) {
      this.finish(type, data);
      return;
    }
    const attempt = this.attempt(number);
    switch (type) {
      case "attempt":
        attempt.begin(data);
        break;
      case "token":
        attempt.add(String(data.text ?? ""));
        break;
      case "reasoning":
        attempt.think(String(data.text ?? ""));
        break;
      case "rejected":
        attempt.discard(`discarded after ${span(data.latency_ms)}: ${data.code}${data.reason ? `, ${data.reason}` : ""}`);
        break;
      case "tool_call":
        this.tools.set(data.call_id, data.name);
        attempt.note(`calls ${data.name} `, el("code", brief(data.arguments)), data.confirm ? ", which a person is to allow" : "");
        break;
      case "tool_result":
        attempt.note(data.error === undefined ? `${data.name} answered ` : `${data.name} failed: `, el("code", brief(data.error ?? data.result)));
        break;
      case "turn": // its text is final
        attempt.isTurn = true;
        attempt.tell(`turn ${data.turn} is done`);
        break;
      case "confirmed":
      case "denied":
        attempt.note(
          `${this.tools.get(data.call_id) ?? "a call"} is ${type === "confirmed" ? "allowed" : "denied"} by ${data.by || "somebody"}`,
          data.arguments ? ", for " : "",
          data.arguments ? el("code", brief(data.arguments)) : "",
          data.always ? ", for the rest of the run" : "",
          data.reason ? `: ${data.reason}` : "",
        );
        break;
    }
  }

  /** The attempt of a number; a new one takes the place of all before. */
  attempt(number) {
    let attempt = this.attempts.get(number);
    if (!attempt) {
      for (const earlier of this.attempts.values()) {
        if (!earlier.isDiscarded && !earlier.isTurn) earlier.discard("discarded: another worker began anew");
      }
      attempt = new Attempt(number);
      this.attempts.set(number, attempt);
      this.node.insertBefore(attempt.node, this.waits);
    }
    return attempt;
  }

  finish(type, data) {
    this.hasEnded = true;
    if (type === "result") this.answered(data);
    else this.failed(type === "cancelled" ? `stopped: ${data.reason || "no reason was given"}` : `${data.code ?? type}: ${data.message ?? ""}`);
    for (const attempt of this.attempts.values()) attempt.close();
  }

  answered(data) {
    const number = Number(data.attempt) || Math.max(1, ...this.attempts.keys());
    for (const [other, attempt] of this.attempts) {
      if (other !== number && !attempt.isDiscarded && !attempt.isTurn) attempt.discard("discarded: another worker answered");
    }
    const attempt = this.attempts.get(number) ?? this.attempt(number);
    if (!attempt.deployment) attempt.begin(data);
    if (typeof data.raw_text === "string" && attempt.text.data !== data.raw_text) attempt.text.data = data.raw_text;
    attempt.accept();
    for (const call of data.tool_calls ?? []) attempt.note("wants ", el("code", `${call.function?.name}(${brief(call.function?.arguments)})`));
    const used = data.usage ?? {};
    const facts = [`${data.deployment} in ${span(data.latency_ms)}`];
    if (data.ttft_ms !== null && data.ttft_ms !== undefined) facts.push(`first token ${span(data.ttft_ms)}`);
    if (data.queue_ms) facts.push(`queued ${span(data.queue_ms)}`);
    facts.push(`${count(used.prompt_tokens ?? 0)} + ${count(used.completion_tokens ?? 0)} tokens`);
    facts.push(data.cost_usd === 0 ? "free" : typeof data.cost_usd === "number" ? usd(data.cost_usd) : "price unknown");
    say(this.end, facts.join(" · "));
  }

  failed(why) {
    for (const attempt of this.attempts.values()) {
      if (!attempt.isDiscarded && !attempt.isTurn) attempt.tell("ended");
    }
    this.end.classList.add("bad");
    say(this.end, why);
  }
}

/** A value as a person may take it in at a glance. */
export function brief(value, most = 400) {
  const text = typeof value === "string" ? value : JSON.stringify(value) ?? "";
  return text.length > most ? `${text.slice(0, most)}…` : text;
}

/** A button that asks once more before it does what cannot be undone. */
export function twice(text, sure, act) {
  let asked = 0;
  const node = button(text, () => {
    if (asked) {
      clearTimeout(asked);
      asked = 0;
      say(node, text);
      act(node);
      return;
    }
    say(node, sure);
    asked = setTimeout(() => {
      asked = 0;
      say(node, text);
    }, 4000);
  });
  return node;
}
