// OpenAI's own client: `node openai.js URL CASE PROMPT` does one thing and prints what came of it as JSON.
import OpenAI from "openai";
import { PLACE } from "./place.js";

const [url, name, prompt] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { model: "default", messages: [{ role: "user", content: prompt }] };
const tools = [{ type: "function", function: { name: "weather", parameters: PLACE } }];

const CASES = {
  async plain() {
    const { choices, usage } = await client.chat.completions.create(asked);
    return { text: choices[0].message.content, tokens: usage.completion_tokens };
  },
  async streamed() {
    const stream = client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
    const { choices, usage } = await stream.finalChatCompletion();
    return { text: choices[0].message.content, tokens: usage.completion_tokens };
  },
  async tools() {
    const { choices } = await client.chat.completions.stream({ ...asked, tools }).finalChatCompletion();
    return choices[0].message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]);
  },
  async schema() {
    const response_format = { type: "json_schema", json_schema: { name: "place", strict: true, schema: PLACE } };
    const { choices } = await client.chat.completions.parse({ ...asked, response_format });
    return choices[0].message.parsed;
  },
  async error() {
    const { status, code, requestID } = await client.chat.completions.create(asked).catch((error) => error);
    return { status, code, named: Boolean(requestID) };
  },
  async broken() {
    try {
      for await (const _ of await client.chat.completions.create({ ...asked, stream: true }));
    } catch (error) {
      return { raised: error instanceof OpenAI.APIError };
    }
  },
  async cancel() {
    const stream = await client.chat.completions.create({ ...asked, stream: true });
    for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
    stream.controller.abort();
    return { left: true };
  },
  async response() {
    const { output_text, usage } = await client.responses.create({ model: "default", input: prompt });
    return { text: output_text, tokens: usage.output_tokens };
  },
  async response_streamed() {
    const { output_text, usage } = await client.responses.stream({ model: "default", input: prompt }).finalResponse();
    return { text: output_text, tokens: usage.output_tokens };
  },
};

console.log(JSON.stringify(await CASES[name]()));
