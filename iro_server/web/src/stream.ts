// Server-sent events of a completion, parsed as they arrive.

export interface Chunk {
  choices: { text?: string; delta?: Delta; finish_reason: string | null; logprobs?: Logprobs | null }[];
  usage?: Usage | null;
  search?: SearchEvent;
  error?: { message: string };
}

/** Of a chat. A call comes whole or in parts, which have its `index`. */
interface Delta {
  content?: string | null;
  tool_calls?: { index: number; function?: { name?: string; arguments?: string } }[];
}

/** Of a chat: `content`; of a text: the other two. */
export interface Logprobs {
  content?: TokenLogprob[];
  tokens?: string[];
  token_logprobs?: number[];
  top_logprobs?: Record<string, number>[] | null;
}

interface TokenLogprob {
  token: string;
  logprob: number;
  top_logprobs?: { token: string; logprob: number }[];
  log_ratio?: number | null; // of an aligned model
  value?: number | null;
}

/** A row of a search. `text`: of its own chunk; `tokens` and `value`: of the path to its end. */
export interface Beam {
  id: number;
  parent: number | null;
  text: string;
  tokens: number;
  value: number | null;
  kept: boolean;
  finished: boolean;
}

export interface SearchRound {
  round: number;
  last: boolean;
  beams: Beam[];
  dropped: number[]; // beams that finished in an earlier round
}

export type SearchEvent = SearchRound | { answers: number[] };

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  base_tokens: number;
  value_tokens: number;
  rounds: number;
  kl?: number;
}

export type EventStream = AsyncGenerator<Chunk, void, void>;

/** The events' data as they arrive; returns whether the server sent all of them. */
export async function* readEvents<Data>(
  body: NonNullable<Response["body"]>,
): AsyncGenerator<Data, boolean, void> {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return false;
      const events = (rest + value).split("\n\n");
      rest = events.pop() ?? "";
      for (const event of events) {
        const data = event.split("\n").find((line) => line.startsWith("data: ")); // others are ids and comments
        if (data === "data: [DONE]") return true;
        if (data) yield JSON.parse(data.slice(6)) as Data;
      }
    }
  } finally {
    await reader.cancel();
  }
}
