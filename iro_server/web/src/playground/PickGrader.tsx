// Says so where the grader that picks the best of n is not the one that the rewards are by.

import type { Grader } from "../api";
import { getJob } from "../api";
import { graderTitle } from "../format";
import { usePolled } from "../hooks";
import { sameJson } from "../new/json";

interface Props {
  job: string; // of the model that answers
  grader: Grader; // of the rewards
}

export function PickGrader({ job, grader }: Props) {
  const { value } = usePolled((signal) => getJob(job, signal), null, job); // says nothing of a job that is gone
  const picking = value?.method.reinforcement.grader;
  if (!picking || sameJson(picking, grader)) return null;
  return (
    <p class="faint small text">
      Picked by another grader than the rewards are by: {graderTitle(picking)} of {job}.
    </p>
  );
}
