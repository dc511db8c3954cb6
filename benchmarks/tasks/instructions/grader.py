"""1 if all instructions of the item are followed, by IFEval's checkers, else 0."""

from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
from langdetect import DetectorFactory

DetectorFactory.seed = 0  # the checkers of case detect the language, at random by default


def follows(text, name, arguments):
    checker = INSTRUCTION_DICT[name](name)
    checker.build_description(**arguments)
    return bool(text.strip()) and bool(checker.check_following(text))


def grade(sample, item):
    text = sample["output_text"]
    return float(all(follows(text, each["name"], each["arguments"]) for each in item["instructions"]))
