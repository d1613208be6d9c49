// The AI SDK with its openai-compatible provider: generateText and streamText, with a tool and with
// a structured answer. Reads and writes what the Python scripts do (outcome.py).

import { text as read } from "node:stream/consumers";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const Answer = z.object({ plant: z.enum(["fern", "rose"]) }).strict();
const WITH_TOOL = {
  tools: { look_up: tool({ description: "Looks a plant up.", inputSchema: Answer, strict: true }) },
  toolChoice: "required",
};
const WITH_SCHEMA = { output: Output.object({ schema: Answer }) };

const settings = (request) => ({
  model: createOpenAICompatible({
    name: "setback",
    baseURL: request.base_url,
    apiKey: "none",
    includeUsage: true,
    supportsStructuredOutputs: true,
  })(request.model),
  prompt: request.text,
  temperature: 0,
  maxOutputTokens: request.max_tokens ?? 120,
  maxRetries: 0,
  providerOptions: { setback: request.extra ?? {} },
});

const called = (calls) => calls.map((call) => ({ name: call.toolName, arguments: call.input }));

async function generate(request, got, more) {
  const result = await generateText({ ...settings(request), ...more });
  got.text = result.text;
  got.finish = result.finishReason;
  got.tools = called(result.toolCalls);
  got.usage = result.usage.outputTokens;
  if (more?.output) got.parsed = result.output;
}

async function stream(request, got, more) {
  let failure;
  const onError = ({ error }) => (failure = error);
  const result = streamText({ ...settings(request), ...more, onError });
  for await (const part of result.textStream) got.text += part;
  if (failure) throw failure;
  got.finish = await result.finishReason;
  got.tools = called(await result.toolCalls);
  got.usage = (await result.usage).outputTokens;
  if (more?.output) got.parsed = await result.output;
}

const CALLS = {
  plain: generate,
  stream,
  tool: (request, got) => generate(request, got, WITH_TOOL),
  tool_stream: (request, got) => stream(request, got, WITH_TOOL),
  structured: (request, got) => generate(request, got, WITH_SCHEMA),
  structured_stream: (request, got) => stream(request, got, WITH_SCHEMA),
};

async function outcome(request) {
  const got = { text: "", finish: null, refusal: null, tools: [], parsed: null };
  try {
    await CALLS[request.call](request, got);
  } catch (error) {
    got.error = {
      types: [error.name],
      message: error.message,
      status: error.statusCode ?? null,
      text: error.text ?? null,
      finish: error.finishReason ?? null,
    };
  }
  return got;
}

const outcomes = await Promise.all(JSON.parse(await read(process.stdin)).map(outcome));
process.stdout.write(JSON.stringify(outcomes));
