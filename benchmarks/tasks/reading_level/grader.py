"""exp(-|grade - 5| / 5) of the Flesch-Kincaid grade; syllables are those that pyphen would hyphenate."""

import math
import re

import pyphen

TARGET, SCALE = 5, 5
HYPHENS = pyphen.Pyphen(lang="en_US")


def syllables(word):
    return len(HYPHENS.positions(word)) + 1


def grade(sample, item):
    words = re.findall(r"[a-zA-Z]+", sample["output_text"])
    if not words:
        return 0.0
    sentences = max(1, len(re.findall(r"[.!?]+(?=\s|$)", sample["output_text"].strip())))
    level = 0.39 * len(words) / sentences + 11.8 * sum(map(syllables, words)) / len(words) - 15.59
    return math.exp(-abs(level - TARGET) / SCALE)
