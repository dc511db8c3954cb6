import { callText } from "../completion";
import { count, number } from "../format";
import { Problem } from "../parts";
import { SearchTree } from "./SearchTree";
import { TokenDetail, TokenText, useToken } from "./TokenText";
import type { Answer } from "./answer";
import type { Colouring } from "./tokens";

const COLOURED = 4000; // tokens; more are shown without colours

interface Props {
  answer: Answer;
  label: string;
  colouring: Colouring;
  best: boolean;
  grader: string; // its title
}

export function AnswerView({ answer, label, colouring, best, grader }: Props) {
  const { text, calls = [], state, tokens, error, graderError } = answer;
  const isEmpty = !text && calls.length === 0;
  const split = colouring !== "none" && tokens.length > 0 && tokens.length <= COLOURED;
  const { current, setCurrent, onKeyDown } = useToken(split ? tokens.length : 0);
  return (
    <>
      {error !== null && <Problem error={new Error(error)} />}
      <div
        class="answer text"
        hidden={error !== null && isEmpty}
        tabIndex={0}
        role="region"
        aria-label={label}
        aria-busy={state === "streaming"}
        onKeyDown={onKeyDown}
      >
        {split ? <TokenText tokens={tokens} colouring={colouring} current={current} onPoint={setCurrent} /> : text}
        {calls.map((call) => (
          <div>
            calls <code>{callText(call)}</code>
          </div>
        ))}
        {state === "streaming" && isEmpty && <span class="faint">waiting for the first tokens </span>}
        {state === "streaming" && <span class="caret" aria-hidden="true" />}
        {state === "stopped" && <span class="faint"> (stopped)</span>}
        {state === "done" && isEmpty && <span class="faint">(an empty answer)</span>}
      </div>
      {split && <TokenDetail tokens={tokens} colouring={colouring} current={current} />}
      <p class="reward">
        {answer.reward !== null && (
          <>
            reward <b class={best ? "good" : undefined}>{number(answer.reward)}</b>
            {best && <span class="hidden"> the highest here</span>}{" "}
            <span class="clip small" title={grader}>
              by {grader}
            </span>
          </>
        )}
        {graderError && <span class="bad text">not graded: {graderError}</span>}
      </p>
      <p class="faint small">{cost(answer)}</p>
      <SearchTree tree={answer.tree} label={label} />
    </>
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
