// What a job may gain and cost, from two minutes of samples before it starts.

import { useState } from "preact/hooks";
import { getEstimate } from "../api";
import type { EstimateResult } from "../api";
import { count, duration, number } from "../format";
import { usePolled } from "../hooks";
import { Problem } from "../parts";

export interface StartedEstimate {
  id: string;
  outdated: boolean; // whether the form was changed since
}

const VERDICTS: Record<string, string> = {
  go: "Go",
  more_rollouts: "More prompts or samples are needed",
  constant_reward: "The reward is constant",
  flaky_grader: "The grader is not reliable",
  nothing_to_choose_from: "There is nothing to choose from",
};

export function EstimateView({ id }: { id: string }) {
  const [ended, setEnded] = useState(false);
  const read = async (signal: AbortSignal) => {
    const estimate = await getEstimate(id, signal);
    setEnded(estimate.result !== null || estimate.error !== null);
    return estimate;
  };
  const { value: estimate, error } = usePolled(read, ended ? null : 1000, id);
  if (error) return <Problem error={error} />;
  if (estimate?.error) return <Problem error={new Error(estimate.error.message)} />;
  if (!estimate?.result) return <Waiting seconds={estimate ? Date.now() / 1000 - estimate.created_at : 0} />;
  return <Result result={estimate.result} />;
}

function Waiting({ seconds }: { seconds: number }) {
  return (
    <>
      <p role="status">Sampling and grading a few answers: about two minutes …</p>
      <p class="faint small">{duration(seconds)} so far</p>
    </>
  );
}

function Result({ result }: { result: EstimateResult }) {
  const gain = result.expected_gain;
  return (
    <div role="status">
      <p>
        <strong class={result.verdict === "go" ? "good" : "bad"}>{VERDICTS[result.verdict] ?? result.verdict}</strong>.{" "}
        {result.message}
      </p>
      <dl class="facts">
        <Fact name="mean reward">{number(result.reward.mean)}</Fact>
        <Fact name="expected gain">
          {gain ? `${number(gain.mean)} [${number(gain.low)}, ${number(gain.high)}]` : "–"}
        </Fact>
        <Fact name="the job's time">{duration(result.cost.seconds)}</Fact>
        <Fact name="grader calls">{count(result.cost.grader_calls)}</Fact>
      </dl>
      {result.samples.map((sample) => (
        <blockquote class="sample">
          <p>{sample.text || "(an empty answer)"}</p>
          <footer class="faint small">
            {sample.error === null ? `reward ${number(sample.reward)}` : `not graded: ${sample.error}`}
          </footer>
        </blockquote>
      ))}
    </div>
  );
}

const Fact = ({ name, children }: { name: string; children: string }) => (
  <div>
    <dt>{name}</dt>
    <dd>{children}</dd>
  </div>
);
