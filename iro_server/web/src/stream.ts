// Server-sent events of a completion, parsed as they arrive.

export interface Chunk {
  choices: { text?: string; delta?: { content?: string }; finish_reason: string | null; logprobs?: Logprobs | null }[];
  usage?: Usage | null;
  error?: { message: string };
}

/** Of a chat: `content`; of a text: the other two. */
interface Logprobs {
  content?: { token: string; logprob: number }[];
  tokens?: string[];
  token_logprobs?: number[];
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  base_tokens: number;
  value_tokens: number;
  rounds: number;
  kl?: number;
}

export type EventStream = AsyncGenerator<Chunk, void, void>;

export async function* readEvents(body: NonNullable<Response["body"]>): EventStream {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop() ?? "";
      for (const event of events) {
        if (event === "data: [DONE]") return;
        if (event.startsWith("data: ")) yield JSON.parse(event.slice(6)) as Chunk; // others are comments
      }
    }
  } finally {
    await reader.cancel();
  }
}
