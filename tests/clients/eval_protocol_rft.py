"""The calls of eval-protocol's quickstart for OpenAI's RFT: its grader of an evaluation, validated and run."""

import os

import requests
from eval_protocol.integrations.openai_rft import build_python_grader_from_evaluation_test


def fuzzy_eval(row, **kwargs):
    from rapidfuzz import fuzz

    return EvaluateResult(score=fuzz.WRatio(str(row.messages[-1].content), str(row.ground_truth)) / 100)  # noqa: F821


url = f"{os.environ['OPENAI_BASE_URL'].rstrip('/')}/fine_tuning/alpha/graders"
headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
grader = build_python_grader_from_evaluation_test(fuzzy_eval)
validated = requests.post(f"{url}/validate", json={"grader": grader}, headers=headers, timeout=120)
print(validated.text)
body = {"grader": grader, "item": {"reference_answer": "fuzzy wuzzy had no hair"}}
ran = requests.post(f"{url}/run", json=body | {"model_sample": "fuzzy wuzzy was a bear"}, headers=headers, timeout=120)
print(ran.text)
