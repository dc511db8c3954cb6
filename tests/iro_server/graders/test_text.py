import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.gleu_score import sentence_gleu
from rapidfuzz import fuzz
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu import sentence_bleu

from iro_server.graders.base import GraderError, Sample
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.parsing import parse_grader
from iro_server.graders.text import METRICS
from iro_server.graders.words import StemmedWords


def check(operation, text, reference):
    spec = {"type": "string_check", "name": "c", "operation": operation}
    grader = parse_grader({**spec, "input": "{{ sample.output_text }}", "reference": "{{ item.ref }}"})
    return grader.grade(Sample(text), {"ref": reference}).reward


def similarity(metric, text, reference):
    spec = {"type": "text_similarity", "name": "s", "evaluation_metric": metric}
    grader = parse_grader({**spec, "input": "{{ sample.output_text }}", "reference": "{{ item.ref }}"})
    return grader.grade(Sample(text), {"ref": reference}).reward


@pytest.mark.parametrize(
    ("operation", "text", "reference", "reward"),
    [
        ("eq", "Paris", "Paris", 1),
        ("eq", "Paris", "paris", 0),
        ("ne", "Paris", "Lyon", 1),
        ("ne", "Paris", "Paris", 0),
        ("like", "It is Paris.", "Paris", 1),
        ("like", "It is Paris.", "paris", 0),
        ("ilike", "It is Paris.", "PARIS", 1),
        ("ilike", "It is Paris.", "Lyon", 0),
    ],
)
def test_string_check(operation, text, reference, reward):
    assert check(operation, text, reference) == reward


@pytest.mark.parametrize("metric", METRICS)
def test_same_text_is_most_similar_and_unrelated_least(metric):
    text = "the quick brown fox jumps over the lazy dog"
    assert similarity(metric, text, text) == pytest.approx(1, abs=0.01)
    assert similarity(metric, "zzzz", text) < 0.1
    half = similarity(metric, "the quick brown fox jumps under a busy cat", text)
    assert similarity(metric, "zzzz", text) < half < similarity(metric, text, text)


@given(st.sampled_from(sorted(METRICS)), st.text(), st.text())
def test_any_two_texts_have_a_similarity_between_0_and_1(metric, text, reference):
    assert 0 <= METRICS[metric](text, reference) <= 1


def test_known_values():
    assert similarity("fuzzy_match", "abcd", "abcx") == pytest.approx(0.75)  # 1 - 2 edits / 8 characters
    assert similarity("rouge_1", "a b c", "a b d e") == pytest.approx(2 * 2 / (3 + 4))
    assert similarity("rouge_2", "a b c", "a b d") == pytest.approx(0.5)
    assert similarity("rouge_l", "a x b", "a b") == pytest.approx(0.8)
    assert similarity("gleu", "a b", "a b c") == pytest.approx(3 / 6)  # 2 words and 1 pair of 6 n-grams
    assert similarity("bleu", "the cat sat on", "the cat sat on the mat") == pytest.approx(math.exp(1 - 6 / 4))


def test_meteor_matches_stems_but_not_synonyms():
    assert similarity("meteor", "cats running", "cat runs") > 0.9
    assert similarity("meteor", "film", "movie") == 0


def test_a_missing_field_is_a_grade_with_an_error_that_names_it():
    grader = parse_grader({"type": "string_check", "operation": "eq", "input": "{{ item.label }}", "reference": "x"})
    grades = grader.grade_many([(Sample(""), {}), (Sample(""), {"label": "x"})])
    assert math.isnan(grades[0].reward)
    assert "item has no field 'label'" in grades[0].error and grades[0].flag == "invalid_variable_error"
    assert grades[1].reward == 1 and grades[1].error is None


@pytest.mark.parametrize(
    ("text", "given_json", "reward"),
    [('{"x": "yes"}', None, 1), ("not json", {"x": "yes"}, 1), ('{"x": "no"}', None, 0)],
)
def test_output_json_is_given_or_parsed_from_the_text(text, given_json, reward):
    spec = {"type": "string_check", "operation": "eq", "input": "{{ sample.output_json.x }}", "reference": "yes"}
    assert parse_grader(spec).grade(Sample(text, given_json), {}).reward == reward


def test_output_json_of_a_sample_that_is_none_is_a_parse_error():
    spec = {"type": "string_check", "operation": "eq", "input": "{{ sample.output_json.x }}", "reference": "yes"}
    broken, lacking = parse_grader(spec).grade_many([(Sample("{not json"), {}), (Sample('{"y": 1}'), {})])
    assert broken.flag == "sample_parse_error" and "not JSON" in broken.error
    assert lacking.flag == "invalid_variable_error" and "no field 'x'" in lacking.error


@pytest.mark.parametrize("text", ["[" * 100_000, "NaN", "1" * 5000, '{"a": Infinity}', ""])
def test_text_that_is_no_json_is_only_text(text):
    assert Sample(text).as_dict()["output_json"] is None
    assert check("eq", text, text) == 1


def test_cosine_is_of_meaning_not_of_words():
    near = similarity("cosine", "The film was wonderful.", "I loved this movie!")
    far = similarity("cosine", "The film was wonderful.", "Interest rates rose by a quarter point.")
    assert near > 0.5 > far + 0.2
    assert similarity("cosine", "same", "same") == pytest.approx(1, abs=1e-5)
    assert similarity("cosine", "", "\ud800 and more") <= 1


def test_cosine_gives_each_pair_its_own_reward_and_fails_where_a_field_is_missing():
    spec = {"type": "text_similarity", "evaluation_metric": "cosine", "input": "{{ sample.output_text }}"}
    grader = parse_grader({**spec, "reference": "{{ item.ref }}"})
    words = ["cat", "a much longer sentence about a kitten that sleeps", "inflation"] * 20
    grades = grader.grade_many([(Sample(word), {"ref": "cat"} if i % 2 == 0 else {}) for i, word in enumerate(words)])
    assert [math.isnan(grade.reward) for grade in grades] == [i % 2 == 1 for i in range(60)]
    for i in (0, 4, 8):  # a cat, a kitten, inflation
        assert grades[i].reward == pytest.approx(similarity("cosine", words[i], "cat"), abs=1e-4)
    assert grades[0].reward > grades[4].reward > grades[8].reward


def test_cosine_of_a_text_over_the_models_context_fails_and_the_others_do_not():
    spec = {"type": "text_similarity", "evaluation_metric": "cosine", "input": "{{ sample.output_text }}"}
    grader = parse_grader({**spec, "reference": "{{ item.ref }}"})
    limit = "cat " * 510  # 512 with the special tokens
    rows = [(limit, limit), (limit + "cat", limit), ("cat", limit + "cat cat"), ("cat", "cat")]
    grades = grader.grade_many([(Sample(text), {"ref": reference}) for text, reference in rows])
    assert grades[0].reward == pytest.approx(1, abs=1e-5) and grades[3].reward == pytest.approx(1, abs=1e-5)
    assert [grade.error for grade in grades[1:3]] == [
        f"a text has {tokens} tokens, the embedding model of cosine reads 512" for tokens in (513, 514)
    ]


def test_cosine_without_its_model_says_how_to_name_one(tmp_path):
    spec = {"type": "text_similarity", "evaluation_metric": "cosine", "input": "a", "reference": "b"}
    with pytest.raises(GraderError, match="IRO_EMBEDDING_MODEL") as refused:
        parse_grader(spec, GraderEnvironment(embedding_model=tmp_path))
    assert refused.value.param == "grader.evaluation_metric"


def test_the_pass_threshold_does_not_change_the_reward():
    spec = {"type": "text_similarity", "evaluation_metric": "fuzzy_match", "input": "abcd", "reference": "abcx"}
    assert parse_grader({**spec, "pass_threshold": 0.9}).grade(Sample(""), {}).reward == pytest.approx(0.75)


ascii_words = st.text("ab ._'", max_size=60) | st.text(st.characters(max_codepoint=127), max_size=30)
words = ascii_words | st.text(max_size=30)


@given(words, words)
def test_the_fast_metrics_are_those_of_their_libraries(text, reference):
    assert METRICS["fuzzy_match"](text, reference) == pytest.approx(fuzz.ratio(text, reference) / 100, abs=1e-12)
    scorer = RougeScorer(["rougeL"], tokenizer=StemmedWords(PorterStemmer()))
    assert METRICS["rouge_l"](text, reference) == scorer.score(reference, text)["rougeL"].fmeasure


@given(ascii_words, ascii_words)
def test_ascii_texts_have_the_values_of_the_libraries_own_words(text, reference):
    scores = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(reference, text)
    for kind, metric in (("rouge1", "rouge_1"), ("rouge2", "rouge_2"), ("rougeL", "rouge_l")):
        assert METRICS[metric](text, reference) == scores[kind].fmeasure
    assert METRICS["bleu"](text, reference) == min(sentence_bleu(text, [reference]).score / 100, 1)
    text_words, reference_words = (wordpunct_tokenize(part.lower()) for part in (text, reference))
    assert METRICS["gleu"](text, reference) == sentence_gleu([reference_words], text_words)


@given(st.text("running cats sky's_2 "))
def test_ascii_words_are_those_of_rouge_score(text):
    assert StemmedWords(PorterStemmer()).tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


WORD_METRICS = sorted(METRICS.keys() - {"fuzzy_match", "cosine"})


@pytest.mark.parametrize("metric", WORD_METRICS)
@pytest.mark.parametrize(
    ("text", "partial"),
    [
        ("привет мир как дела сегодня вечером", "привет мир как дела сегодня утром"),
        ("今天天气很好我们去公园", "今天天气很好我们去学校"),  # no space between words
        ("きょうはとてもいい天気です", "きょうはとてもさむい日です"),
        ("वह कल शाम को घर गया था", "वह कल शाम को घर आया है"),
    ],
)
def test_words_of_any_script_are_compared(metric, text, partial):
    assert METRICS[metric](text, text) == pytest.approx(1, abs=0.01)
    assert 0.1 < METRICS[metric](partial, text) < 0.95


def test_words_with_vowel_signs_and_accents_are_whole():
    words_of = StemmedWords(PorterStemmer()).tokenize
    assert words_of("हिन्दी, na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve") == [
        "हिन्दी",
        "na\N{LATIN SMALL LETTER I WITH DIAERESIS}v",
    ]


@pytest.mark.parametrize("type", ["string_check", "text_similarity", "score_model"])
@pytest.mark.parametrize("side", ["sample", "item", "template"])
def test_a_text_over_the_limit_is_a_grade_with_an_error_that_says_so(type, side):
    long = "x" * 600
    shape = {"input": "{{ sample.output_text }}{{ item.a }}", "reference": "y"}
    if side == "template":
        shape["input"] = "{{ item.a }}" * 600
    if type == "score_model":
        shape = {
            "model": "m",
            "input": [{"role": "user", "content": shape["input"]}],
            "base_url": "http://127.0.0.1:9/",
        }
    more = {"string_check": {"operation": "eq"}, "text_similarity": {"evaluation_metric": "bleu"}}.get(type, {})
    spec = {"type": type, "name": "g"} | shape | more
    here = GraderEnvironment(max_text_bytes=500, any_endpoint=True)
    sample, item = (Sample(long if side == "sample" else ""), {"a": long if side == "item" else "x"})
    with parse_grader(spec, here) as grader:
        grade = grader.grade(sample, item)
    assert math.isnan(grade.reward) and "over the limit of 500 bytes" in grade.error


def test_messages_are_bounded_together():
    message = {"role": "user", "content": "{{ item.a }}"}
    spec = {"type": "score_model", "model": "m", "input": [message] * 3, "base_url": "http://127.0.0.1:9/"}
    with parse_grader(spec, GraderEnvironment(max_text_bytes=500, any_endpoint=True)) as grader:
        assert "over the limit" in grader.grade(Sample(""), {"a": "x" * 200}).error


def test_a_limit_in_bytes_counts_bytes():
    spec = {"type": "string_check", "operation": "eq", "input": "{{ sample.output_text }}", "reference": "é" * 250}
    with parse_grader(spec, GraderEnvironment(max_text_bytes=500)) as grader:
        assert grader.grade(Sample("é" * 250), {}).reward == 1
        assert "over the limit" in grader.grade(Sample("é" * 251), {}).error
