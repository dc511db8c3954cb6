"""1 for a single whole sentence of 4 to 12 words, else 0."""

import re


def grade(sample, item):
    text = sample["output_text"].strip()
    sentence = re.fullmatch(r"[A-Z][^.!?\n]*[.!?]", text)
    return float(bool(sentence) and 4 <= len(text.split()) <= 12)
