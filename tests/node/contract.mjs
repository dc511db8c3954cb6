// What rft.mjs leaves out: pausing, cancelling, uploads in parts, webhooks, deletion, and the client's error classes.
import assert from "node:assert/strict";
import http from "node:http";
import OpenAI, { BadRequestError, InvalidWebhookSignatureError, NotFoundError } from "openai";

const client = new OpenAI({ maxRetries: 0 }); // OPENAI_BASE_URL and OPENAI_API_KEY
const MODEL = "bytes";
const row = '{"messages": [{"role": "user", "content": "say z"}]}\n';
const jobs = client.fineTuning.jobs;

async function until(look) {
  for (let tries = 0; tries < 600; tries++) {
    const seen = await look();
    if (seen) return seen;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error("waited in vain");
}

async function start(name, iterations) {
  const grader = { type: "string_check", name, input: "{{sample.output_text}}", reference: "z", operation: "eq" };
  const file = await client.files.create({ file: new File([row], "rows.jsonl"), purpose: "fine-tune" });
  const method = { type: "reinforcement", reinforcement: { grader, iro: { iterations } } };
  return jobs.create({ model: MODEL, training_file: file.id, method });
}

const received = [];
const receiver = http.createServer((request, response) => {
  let body = "";
  request.on("data", (part) => (body += part));
  request.on("end", () => {
    received.push([body, request.headers]);
    response.writeHead(204).end();
  });
});
await new Promise((resolve) => receiver.listen(0, "127.0.0.1", resolve));
const hook = await client.webhooks.create({
  name: "mine",
  url: `http://127.0.0.1:${receiver.address().port}/`,
  event_types: ["fine_tuning.job.succeeded"],
});

const [quick, slow] = await Promise.all([start("quick", 2), start("slow", 16)]);

await until(async () => (await jobs.listEvents(slow.id)).data.some((event) => event.type === "metrics"));
assert.equal((await jobs.pause(slow.id)).status, "paused");
assert.equal((await jobs.resume(slow.id)).status, "queued");
assert.equal((await jobs.cancel(slow.id)).status, "cancelled");
await assert.rejects(jobs.resume(slow.id), BadRequestError);

const done = await until(async () => {
  const job = await jobs.retrieve(quick.id);
  return job.status === "succeeded" && job;
});
const [body, headers] = await until(() => received[0]);
const event = await client.webhooks.unwrap(body, headers, hook.signing_secret);
assert.deepEqual([event.type, event.data.id], ["fine_tuning.job.succeeded", quick.id]);
await assert.rejects(client.webhooks.unwrap(body + " ", headers, hook.signing_secret), InvalidWebhookSignatureError);
await client.webhooks.delete(hook.id);
receiver.close();

const all = [];
for await (const each of jobs.listEvents(quick.id, { limit: 2 })) all.push(each.id);
assert.ok(all.length > 4 && new Set(all).size === all.length);

const pending = await client.uploads.create({
  filename: "rows.jsonl",
  purpose: "fine-tune",
  bytes: 2 * row.length,
  mime_type: "text/jsonl",
});
const part = () => client.uploads.parts.create(pending.id, { data: new File([row], "part") });
const parts = [(await part()).id, (await part()).id];
const { file } = await client.uploads.complete(pending.id, { part_ids: parts });
assert.equal(await (await client.files.content(file.id)).text(), row + row);
assert.equal((await client.files.delete(file.id)).deleted, true);

await assert.rejects(client.files.retrieve(file.id), (error) => {
  assert.ok(error instanceof NotFoundError);
  assert.deepEqual([error.status, error.code, error.param], [404, "file_not_found", "id"]);
  assert.match(error.requestID, /^req_/);
  return true;
});
const messages = [{ role: "user", content: "hi" }];
await assert.rejects(client.chat.completions.create({ model: MODEL, messages, functions: [{ name: "f" }] }), (error) => {
  assert.ok(error instanceof BadRequestError);
  assert.deepEqual([error.code, error.param], ["unsupported_parameter", "functions"]);
  return true;
});
const bad = new File(['{"messages": []}\n'], "rows.jsonl");
await assert.rejects(client.files.create({ file: bad, purpose: "fine-tune" }), /line 1/);

const chat = { model: MODEL, messages, max_tokens: 4, seed: 1 };
const line = (custom_id, body) => JSON.stringify({ custom_id, method: "POST", url: "/v1/chat/completions", body }) + "\n";
const requests = new File([line("a", chat), line("b", { ...chat, model: "other" })], "requests.jsonl");
let batch = await client.batches.create({
  input_file_id: (await client.files.create({ file: requests, purpose: "batch" })).id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
batch = await until(async () => {
  const seen = await client.batches.retrieve(batch.id);
  return seen.status === "completed" && seen;
});
assert.deepEqual(batch.request_counts, { total: 2, completed: 1, failed: 1 });
const answer = JSON.parse(await (await client.files.content(batch.output_file_id)).text());
const asked = await client.chat.completions.create(chat);
assert.deepEqual([answer.custom_id, answer.response.body.choices], ["a", asked.choices]);
assert.equal((await client.batches.list({ limit: 1 })).data[0].id, batch.id);
await assert.rejects(client.batches.cancel(batch.id), (error) => error.code === "batch_ended");

const embedded = await client.embeddings.create({ model: "all-MiniLM-L6-v2", input: ["a cat", "a kitten"] });
assert.deepEqual(embedded.data.map((each) => each.embedding.length), [384, 384]);
const [cat, kitten] = embedded.data.map((each) => each.embedding);
assert.ok(cat.reduce((sum, value, i) => sum + value * kitten[i], 0) > 0.5);

const first = await client.responses.create({ model: MODEL, input: "hi", max_output_tokens: 4, seed: 1 });
const second = await client.responses.create({ model: MODEL, input: "more", previous_response_id: first.id });
assert.equal((await client.responses.retrieve(second.id)).output_text, second.output_text);
assert.equal((await client.responses.inputItems.list(second.id)).data[0].content[0].text, "more");
const types = [];
for await (const event of await client.responses.create({ model: MODEL, input: "hi", stream: true })) types.push(event.type);
assert.deepEqual([types[0], types.at(-1).split(".")[0]], ["response.created", "response"]);
await client.responses.delete(first.id);
await assert.rejects(client.responses.retrieve(first.id), NotFoundError);

const criterion = { type: "string_check", name: "z", input: "{{sample.output_text}}", reference: "z", operation: "like" };
const evaluation = await client.evals.create({
  name: "letters",
  data_source_config: { type: "custom", item_schema: { type: "object" }, include_sample_schema: true },
  testing_criteria: [criterion],
});
const content = [{ item: { q: "a" }, sample: { output_text: "zz" } }, { item: { q: "b" }, sample: { output_text: "y" } }];
let run = await client.evals.runs.create(evaluation.id, {
  data_source: { type: "jsonl", source: { type: "file_content", content } },
});
run = await until(async () => {
  const seen = await client.evals.runs.retrieve(run.id, { eval_id: evaluation.id });
  return seen.status === "completed" && seen;
});
assert.deepEqual([run.result_counts.passed, run.result_counts.failed], [1, 1]);
const items = await client.evals.runs.outputItems.list(run.id, { eval_id: evaluation.id });
assert.deepEqual(items.data.map((item) => item.status), ["pass", "fail"]);
assert.equal((await client.evals.delete(evaluation.id)).deleted, true);

const said = await client.chat.completions.create({ model: done.fine_tuned_model, messages, max_tokens: 4 });
const again = [...messages, said.choices[0].message, ...messages];
assert.ok((await client.chat.completions.create({ model: MODEL, messages: again, max_tokens: 4 })).usage.total_tokens);

assert.equal((await client.models.delete(done.fine_tuned_model)).deleted, true);
await assert.rejects(client.chat.completions.create({ model: done.fine_tuned_model, messages }), NotFoundError);
