// Vercel's AI SDK with its provider for what is compatible: `node ai_sdk.js URL CASE PROMPT`, as openai.js.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, jsonSchema, streamText, tool } from "ai";
import { PLACE } from "./place.js";

const [url, name, prompt] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: "llm-routerd",
  baseURL: `${url}/v1`,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const asked = { model: provider("default"), prompt, maxRetries: 0, onError() {} };
const tools = { weather: tool({ inputSchema: jsonSchema(PLACE) }) };

const CASES = {
  async plain() {
    const { text, usage } = await generateText(asked);
    return { text, tokens: usage.outputTokens };
  },
  async streamed() {
    const result = streamText(asked);
    let text = "";
    for await (const piece of result.textStream) text += piece;
    return { text, tokens: (await result.usage).outputTokens };
  },
  async reasoning() {
    const result = streamText(asked);
    return { text: await result.text, reasoning: await result.reasoningText };
  },
  async tools() {
    const calls = await streamText({ ...asked, tools }).toolCalls;
    return calls.map((call) => [call.toolName, call.input]);
  },
  async schema() {
    return (await generateText({ ...asked, output: Output.object({ schema: jsonSchema(PLACE) }) })).output;
  },
  async error() {
    const { statusCode, data } = await generateText(asked).catch((error) => error);
    return { status: statusCode, code: data.error.code };
  },
  async broken() {
    const kinds = [];
    for await (const part of streamText(asked).fullStream) kinds.push(part.type);
    return { raised: kinds.includes("error") };
  },
  async cancel() {
    const controller = new AbortController();
    for await (const piece of streamText({ ...asked, abortSignal: controller.signal }).textStream) {
      if (piece) break;
    }
    controller.abort();
    return { left: true };
  },
};

console.log(JSON.stringify(await CASES[name]()));
