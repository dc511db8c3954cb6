"""1 if the last number of the answer is the result, else 0."""

import re


def grade(sample, item):
    numbers = re.findall(r"-?\d+", sample["output_text"].replace(",", ""))
    return float(bool(numbers) and int(numbers[-1]) == int(item["answer"]))
