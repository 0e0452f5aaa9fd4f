// Ask llm-routerd with node-redis: node ask.js ["a prompt" [id]]
//
// Exit code: 0 a result, 1 an error, 2 a cancellation, 69 no Redis for half a minute.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient, ErrorReply } from "redis";

const EXIT_CODES = { result: 0, error: 1, cancelled: 2 }; // the final events
const BLOCK_MS = 5_000;
const TRIES = 30;

const [prompt = "Why is the sky blue?", id = randomUUID()] = process.argv.slice(2);
const redis = createClient({
  url: process.env.REDIS_URL ?? "redis://127.0.0.1:6379/0",
  disableOfflineQueue: true, // a command fails at once while Redis is away, and is repeated here
  socket: { socketTimeout: 2 * BLOCK_MS },
});
redis.on("error", () => {}); // it connects again by itself

/** Repeat a command while Redis is away. An XADD too: two entries with one id are one request. */
async function patiently(command) {
  for (let tries = 0; tries < TRIES; tries++) {
    try {
      return await command();
    } catch (error) {
      if (error instanceof ErrorReply) throw error;
      console.error(`[${error.message}; trying again]`);
      await sleep(1000);
    }
  }
  process.exit(69);
}

/** Yield the events; goes on from the last ID seen, and ends after the final one. */
async function* follow() {
  for (let lastId = "0"; ; ) {
    const position = { key: `llm:events:${id}`, id: lastId };
    const [stream] = (await patiently(() => redis.xRead(position, { BLOCK: BLOCK_MS }))) ?? [];
    for (const { id: eventId, message } of stream?.messages ?? []) {
      lastId = eventId;
      yield { attempt: Number(eventId.split("-")[0]), type: message.type, data: JSON.parse(message.data) };
      if (message.type in EXIT_CODES) return;
    }
  }
}

await Promise.race([redis.connect().catch(() => {}), sleep(1000)]); // it goes on trying
await patiently(() => redis.xAdd("llm:requests", "*", { id, prompt, stream: "true" }));

let shown = 0; // the attempt whose text is on the screen
for await (const { attempt, type, data } of follow()) {
  if (shown && (type === "rejected" || type === "attempt" || (type === "result" && data.attempt !== shown))) {
    process.stdout.write("\n[discarded]\n");
    shown = 0;
  }
  if (type === "token") {
    process.stdout.write(data.text);
    shown = attempt;
  } else if (type === "result") {
    process.stdout.write(`${shown ? "" : data.raw_text}\n`);
  } else if (type in EXIT_CODES) {
    console.error(`\n${type}: ${data.message ?? data.reason}`);
  }
  process.exitCode = EXIT_CODES[type];
}
redis.destroy();
