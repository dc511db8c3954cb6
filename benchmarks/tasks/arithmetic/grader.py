"""1 if the first number of the answer is the result, else 0."""

import re


def grade(sample, item):
    number = re.search(r"-?\d+", sample["output_text"])
    return float(number is not None and int(number[0]) == int(item["answer"]))
