// Anthropic's own client: `node anthropic.js URL CASE PROMPT`, as openai.js.
import Anthropic from "@anthropic-ai/sdk";
import { PLACE } from "./place.js";

const [url, name, prompt] = process.argv.slice(2);
const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const asked = { model: "default", max_tokens: 1000, messages: [{ role: "user", content: prompt }] };
const tools = [{ name: "weather", input_schema: PLACE }];

const textOf = ({ content }) => content.map((block) => block.text ?? "").join("");

const CASES = {
  async plain() {
    const message = await client.messages.create(asked);
    return { text: textOf(message), tokens: message.usage.output_tokens };
  },
  async streamed() {
    const message = await client.messages.stream(asked).finalMessage();
    return { text: textOf(message), tokens: message.usage.output_tokens };
  },
  async reasoning() {
    const { content } = await client.messages.stream({ ...asked, thinking: { type: "adaptive" } }).finalMessage();
    return { text: textOf({ content }), reasoning: content[0].thinking };
  },
  async tools() {
    const { content } = await client.messages.stream({ ...asked, tools }).finalMessage();
    return content.filter((block) => block.type === "tool_use").map((block) => [block.name, block.input]);
  },
  async schema() {
    const output_config = { format: { type: "json_schema", schema: PLACE } };
    return JSON.parse(textOf(await client.messages.create({ ...asked, output_config })));
  },
  async error() {
    const { status, error, requestID } = await client.messages.create(asked).catch((error) => error);
    return { status, code: error.error.type, named: requestID === error.request_id };
  },
  async broken() {
    const unlimited = { ...asked, max_tokens: undefined, stream: true }; // or an answer that is cut would be one
    try {
      for await (const _ of await client.messages.create(unlimited));
    } catch (error) {
      return { raised: error instanceof Anthropic.APIError };
    }
  },
  async cancel() {
    const stream = await client.messages.create({ ...asked, stream: true });
    for await (const event of stream) if (event.type === "content_block_delta") break;
    stream.controller.abort();
    return { left: true };
  },
};

console.log(JSON.stringify(await CASES[name]()));
