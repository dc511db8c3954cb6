"""The share of name, age and city that the first JSON object of the answer has right."""

import json

FIELDS = ("name", "age", "city")


def first_object(text):
    start = text.find("{")
    if start < 0:
        return {}
    try:
        record, _ = json.JSONDecoder().raw_decode(text[start:])
    except ValueError:
        return {}
    return record


def grade(sample, item):
    record = first_object(sample["output_text"])
    return sum(str(record.get(field)) == str(item[field]) for field in FIELDS) / len(FIELDS)
