"""1 if the function passes the unit tests of its HumanEval problem, else 0."""

import re


def grade(sample, item):
    body = re.split(r"\n(?=[^\s#])", "\n" + sample["output_text"], maxsplit=1)[0]
    names = {}
    try:
        exec(item["prompt"] + body.removeprefix("\n"), names)
        exec(item["test"], names)
        names["check"](names[item["entry_point"]])
    except Exception:
        return 0.0
    return 1.0
