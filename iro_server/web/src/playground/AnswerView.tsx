import { count, number } from "../format";
import { Problem } from "../parts";
import type { Answer, Token } from "./answer";

const LEVELS = [0.5, 0.1, 0.02]; // probabilities: a token below one more of them is coloured more strongly
const COLOURED = 4000; // tokens; more are shown without colours

export function AnswerView({
  answer,
  label,
  coloured,
  best,
}: {
  answer: Answer;
  label: string;
  coloured: boolean;
  best: boolean;
}) {
  const { text, state, tokens, error, graderError } = answer;
  const split = coloured && tokens.length > 0 && tokens.length <= COLOURED;
  return (
    <>
      {error && <Problem error={error} />}
      <div class="answer text" tabIndex={0} role="region" aria-label={label} aria-busy={state === "streaming"}>
        {split ? tokens.map((token) => <TokenView token={token} />) : text}
        {state === "streaming" && !text && <span class="faint">waiting for the first tokens </span>}
        {state === "streaming" && <span class="caret" aria-hidden="true" />}
        {state === "stopped" && <span class="faint"> (stopped)</span>}
        {state === "done" && !text && <span class="faint">(an empty answer)</span>}
      </div>
      <p class="reward">
        {answer.reward !== null && (
          <>
            reward <b class={best ? "good" : undefined}>{number(answer.reward)}</b>
            {best && <span class="hidden"> the highest here</span>}
          </>
        )}
        {graderError && <span class="bad text">not graded: {graderError}</span>}
      </p>
      <p class="faint small">{cost(answer)}</p>
    </>
  );
}

function TokenView({ token: { text, probability } }: { token: Token }) {
  const level = LEVELS.filter((limit) => probability < limit).length;
  return (
    <span
      class={level ? `unlikely-${level}` : undefined}
      title={`probability ${probability.toPrecision(2)} under the frozen model`}
    >
      {text}
    </span>
  );
}

function cost({ usage, seconds, cut }: Answer): string {
  if (!usage) return "";
  const parts = [
    `${count(usage.completion_tokens)} tokens${cut ? ", cut at the maximum" : ""}`,
    `${count(usage.base_tokens)} drawn`,
  ];
  if (usage.kl !== undefined) parts.push(`moved by ${number(usage.kl, 1)} nats`);
  return [...parts, `${seconds.toFixed(1)} s`].join(" · ");
}
