// Ollama's own client: `node ollama.js URL CASE PROMPT`, as openai.js.
import { Ollama } from "ollama";
import { PLACE } from "./place.js";

const [url, name, prompt] = process.argv.slice(2);
const client = new Ollama({ host: url });
const asked = { model: "default", messages: [{ role: "user", content: prompt }] };
const tools = [{ type: "function", function: { name: "weather", parameters: PLACE } }];

async function whole(more) {
  const found = { text: "", reasoning: "", calls: [] };
  for await (const { message, eval_count } of await client.chat({ ...asked, ...more, stream: true })) {
    found.text += message.content;
    found.reasoning += message.thinking ?? "";
    found.calls.push(...(message.tool_calls ?? []));
    found.tokens = eval_count;
  }
  return found;
}

const CASES = {
  async plain() {
    const { message, eval_count } = await client.chat(asked);
    return { text: message.content, tokens: eval_count };
  },
  async streamed() {
    return whole();
  },
  async reasoning() {
    const { text, reasoning } = await whole({ think: true });
    return { text, reasoning };
  },
  async tools() {
    return (await whole({ tools })).calls.map(({ function: called }) => [called.name, called.arguments]);
  },
  async schema() {
    return JSON.parse((await whole({ format: PLACE })).text);
  },
  async error() {
    const { status_code } = await client.chat(asked).catch((error) => error);
    return { status: status_code, code: null };
  },
  async broken() {
    return whole().then(() => ({ raised: false }), () => ({ raised: true }));
  },
  async cancel() {
    const stream = await client.chat({ ...asked, stream: true });
    for await (const { message } of stream) if (message.content) break;
    stream.abort();
    return { left: true };
  },
};

console.log(JSON.stringify(await CASES[name]()));
