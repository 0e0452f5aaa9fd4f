// The events of a request: read as they come, by fetch, for EventSource sends no key.

const KEY = "llm-routerd-key";
const FINAL = "9007199254740991-0";

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** What the gateway did not do, with its status and its own words. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Ask the gateway; a path without a leading slash, so that the page may lie under any prefix. */
export async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  const all = { ...headers };
  if (key.get()) all.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  const options = { method, headers: all, signal, cache: "no-store", credentials: "same-origin" };
  if (body !== undefined) options.body = JSON.stringify(body);
  const response = await fetch(path, options);
  if (!response.ok) throw new Refusal(response.status, await reason(response));
  return response;
}

async function reason(response) {
  let text = "";
  try {
    text = await response.text();
    const error = JSON.parse(text).error;
    return String(error.message ?? error);
  } catch {
    return text.slice(0, 200) || `status ${response.status}`;
  }
}

export const requestPath = (id, rest = "") => `v1/requests/${encodeURIComponent(id)}${rest}`;

/**
 * Call `take({id, type, data})` with each event of a request, to its end; goes on where it was after a lost connection.
 * A page that is hidden holds no connection: a browser has six to a server, for all of its tabs together.
 * Throws a Refusal where the gateway does not tell them; returns when `signal` says so.
 */
export async function follow(id, take, signal) {
  let last = "";
  let pause = 500;
  while (!signal.aborted) {
    const connection = new AbortController();
    const leave = () => (signal.aborted || document.hidden) && connection.abort();
    signal.addEventListener("abort", leave);
    document.addEventListener("visibilitychange", leave);
    try {
      await visible();
      const headers = { Accept: "text/event-stream" };
      if (last) headers["Last-Event-ID"] = last;
      const response = await ask(requestPath(id, "/events"), { headers, signal: connection.signal });
      for await (const event of frames(response.body)) {
        if (event.id) last = event.id;
        pause = 500;
        take(event);
        if (event.id === FINAL) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refusal && error.status < 500 && error.status !== 429) throw error;
    } finally {
      signal.removeEventListener("abort", leave);
      document.removeEventListener("visibilitychange", leave);
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 2, 8000);
  }
}

/** Until the page is seen. */
async function visible() {
  while (document.hidden) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

/** The events in a stream of bytes. */
async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { id: "", type: "message", data: [] };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        const [, name, text] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (line === "") {
          if (event.data.length) yield parsed(event);
          event = { id: "", type: "message", data: [] };
        } else if (name === "id") event.id = text;
        else if (name === "event") event.type = text;
        else if (name === "data") event.data.push(text);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // also where the reader had enough: the connection is free again
  }
}

function parsed(event) {
  let data = null;
  try {
    data = JSON.parse(event.data.join("\n"));
  } catch {
    // what is no JSON is no event of ours
  }
  return { id: event.id, type: event.type, data: data !== null && typeof data === "object" ? data : {} };
}

/** The attempt that an event belongs to; Infinity: it is the request's last. */
export const attemptOf = (event) => (event.id === FINAL ? Infinity : Number(event.id.split("-")[0]) || 0);
