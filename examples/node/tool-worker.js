// Serve two tools to llm-routerd with node-redis: TOOL_FILE=notes node tool-worker.js
//
// `echo` gives back what it is given, `note` appends a line to the file TOOL_FILE. One call at a time: start it again
// for more. Ends on SIGTERM, with the call that it has begun.

import { appendFile, readFile } from "node:fs/promises";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "redis";

const GROUP = "llm-tools";
const BLOCK_MS = 2_000;
const LOST_MS = 180_000; // longer than any call here may take: what was read so long ago has lost its worker
const CONSUMER = `${hostname()}-${process.pid}`; // of this process alone: what is pending for it is begun again
const FILE = process.env.TOOL_FILE ?? "notes";

const isText = (value) => typeof value === "string";
const hasOnly = (value, ...names) => Object.keys(value).every((name) => names.includes(name));

const TOOLS = {
  echo: {
    registration: {
      description: "Gives back the text that it is given.",
      idempotent: true,
      parameters: {
        type: "object",
        properties: { text: { type: "string" } },
        required: ["text"],
        additionalProperties: false,
      },
    },
    takes: (given) => hasOnly(given, "text") && isText(given.text),
    act: async ({ text }) => text,
  },
  note: {
    registration: {
      description: "Appends a line to the notes.",
      confirm: true,
      idempotent: true,
      timeout_ms: 120_000,
      parameters: {
        type: "object",
        properties: { text: { type: "string" }, seconds: { type: "number", minimum: 0 } },
        required: ["text"],
        additionalProperties: false,
      },
    },
    takes: (given) => hasOnly(given, "text", "seconds") && isText(given.text) && (given.seconds ?? 0) >= 0,
    // Idempotent, because it looks: where it was killed between the line and the answer, it acts once all the same.
    act: async ({ text, seconds = 0 }, callId) => {
      const notes = await readFile(FILE, "utf8").catch(() => "");
      if (!notes.split("\n").some((line) => line.startsWith(`${callId} `))) {
        await appendFile(FILE, `${callId} ${text}\n`);
        await sleep(1000 * seconds);
      }
      return "noted";
    },
  },
};
const streamOf = (name) => `llm:tools:${name}`;
const toolOf = (stream) => TOOLS[stream.slice("llm:tools:".length)];

// A command fails at once while Redis is away, and is repeated here. Reading waits on a connection of its own.
const redis = createClient({
  url: process.env.REDIS_URL ?? "redis://127.0.0.1:6379/0",
  disableOfflineQueue: true,
  socket: { socketTimeout: 5 * BLOCK_MS },
});
const reader = redis.duplicate();
for (const client of [redis, reader]) client.on("error", () => {}); // it connects again by itself

let stopping = false;
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => (stopping = true));

/** Repeat a command while Redis is away: a second answer to a call is passed over. */
async function patiently(command) {
  for (;;) {
    try {
      return await command();
    } catch (error) {
      console.error(`[${error.message}; trying again]`);
      await sleep(1000);
    }
  }
}

/** Register the tools that are not there, or all; make the consumer groups that are not there. */
async function register(how) {
  for (const [name, { registration }] of Object.entries(TOOLS)) {
    await redis[how]("llm:tools", name, JSON.stringify(registration));
    await redis.xGroupCreate(streamOf(name), GROUP, "0", { MKSTREAM: true }).catch((error) => {
      if (!error.message.startsWith("BUSYGROUP")) throw error;
    });
  }
}

/** Answer, acknowledge and delete one entry. No call, or one that nobody waits for any more: it does not act. */
async function serve(stream, entry, text) {
  let call = null;
  try {
    call = JSON.parse(text);
  } catch {} // it is deleted below
  const answer = {};
  const now = await patiently(() => redis.sendCommand(["TIME"])); // the server's clock
  if (call?.call_id && call.deadline_ms > 1000 * now[0] + now[1] / 1000) {
    answer.call_id = call.call_id;
    const { takes, act } = toolOf(stream);
    try {
      if (takes(call.arguments)) answer.result = await act(call.arguments, call.call_id);
      else answer.error = "the arguments are not valid";
    } catch (error) {
      console.error(`${call.call_id} failed: ${error.code ?? error.name}`); // what it says may be anybody's data
      answer.error = "the tool failed";
    }
  }
  await patiently(() => {
    const all = redis.multi();
    if (answer.call_id) all.xAddNoMkStream(`llm:inbox:${call.id}`, "*", answer); // one that has gone is not made again
    return all.xAck(stream, GROUP, entry).xDel(stream, entry).exec();
  });
}

/** What is there at a position: 0 is what is pending for us, from a reply that got lost; > is what is new. */
async function read(position) {
  const streams = Object.keys(TOOLS).map((name) => ({ key: streamOf(name), id: position }));
  const reply = (await reader.xReadGroup(GROUP, CONSUMER, streams, { COUNT: 1, BLOCK: BLOCK_MS })) ?? [];
  return reply.flatMap(({ name, messages }) => messages.map(({ id, message }) => [name, id, message?.call]));
}

await Promise.all([redis, reader].map((client) => Promise.race([client.connect().catch(() => {}), sleep(1000)])));
await patiently(() => register("hSet"));
for (let position = "0"; !stopping; ) {
  try {
    const entries = await read(position);
    for (const entry of entries) await serve(...entry);
    if (entries.length > 0) continue;
    if (position === ">") {
      await register("hSetNX");
      for (const name of Object.keys(TOOLS)) {
        await redis.xAutoClaimJustId(streamOf(name), GROUP, CONSUMER, LOST_MS, "0", { COUNT: 10 }); // pending for us then
      }
    }
    position = position === "0" ? ">" : "0";
  } catch (error) {
    console.error(`[${error.message}; trying again]`); // Redis is away, or was emptied
    await sleep(1000);
    await register("hSetNX").catch(() => {});
    position = "0";
  }
}
for (const name of Object.keys(TOOLS)) {
  // Our name goes with us, unless something is pending for it, which would be lost.
  const pending = await redis.xPendingRange(streamOf(name), GROUP, "-", "+", 1, { consumer: CONSUMER }).catch(() => [1]);
  if (pending.length === 0) await redis.xGroupDelConsumer(streamOf(name), GROUP, CONSUMER).catch(() => {});
}
for (const client of [redis, reader]) client.destroy();
