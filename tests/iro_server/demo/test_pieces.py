import ast
import re

import numpy as np
import pytest

from iro_server.cli.demo.data import MissingPackage, imdb_splits, package_dir, prompt_rows
from iro_server.cli.demo.judges import embed, minilm_head, minilm_judge, vader_judge
from iro_server.cli.demo.sentiment import fit_classifier, grader_source, sentiment_grader_source
from iro_server.graders.base import Sample
from iro_server.graders.parsing import parse_grader


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("IRO_HOME", str(tmp_path))
    return tmp_path


def test_the_splits_share_no_review_and_are_balanced():
    splits = imdb_splits()
    parts = [splits.grader, splits.judge, splits.prompts]
    assert len({text for part in parts for text in part.texts}) == sum(len(part.texts) for part in parts) > 24_000
    for part in parts:
        assert len(part.texts) == len(part.labels)
        assert np.mean(part.labels) == pytest.approx(0.5, abs=0.03)
        assert not any("<br" in text for text in part.texts)


def test_prompts_are_openings_no_two_alike_and_held_out_ones_stay_held_out():
    train, held_out = prompt_rows(500, 32)
    assert (len(train), len(held_out)) == (500, 32)
    assert len({row["prompt"] for row in train + held_out}) == 532
    openings = {" ".join(text.split()[:8]) for text in imdb_splits().prompts.texts}
    assert all(row["prompt"] in openings for row in train + held_out)
    assert prompt_rows(10, 32)[1] == held_out
    with pytest.raises(ValueError, match="prompts asked for"):
        prompt_rows(100_000, 1)


def test_a_missing_package_is_named_with_what_to_install():
    with pytest.raises(MissingPackage, match="nonexistent_reviews is not installed: pip install reviews"):
        package_dir("nonexistent_reviews", "reviews")


def test_the_graders_source_computes_the_classifiers_logit():
    splits = imdb_splits()
    vectorizer, classifier = fit_classifier(splits.grader.part(0, 3000))
    texts = [*splits.prompts.texts[:300], "", "zzzqqq", "Great great GREAT film, naïve café!"]
    expected = classifier.decision_function(vectorizer.transform(texts))
    with parse_grader({"type": "python", "source": grader_source(vectorizer, classifier, "s")}) as grader:
        grades = grader.grade_many([(Sample(text), {}) for text in texts])
    assert [grade.reward for grade in grades] == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.slow(23)
def test_the_demos_grader_is_fitted_once_small_and_as_accurate_as_it_says(home):
    source = sentiment_grader_source()
    assert len(source) < 2_000_000
    reviews = imdb_splits().prompts.part(0, 2000)
    with parse_grader({"type": "python", "source": source}) as grader:
        logits = np.array([grade.reward for grade in grader.grade_many([(Sample(t), {}) for t in reviews.texts])])
    said = re.search(r"([\d.]+)% right on [\d,]+ held-out", ast.get_docstring(ast.parse(source)))
    assert float(said[1]) / 100 > 0.88
    assert np.mean((logits > 0) == reviews.labels) == pytest.approx(float(said[1]) / 100, abs=0.02)
    written = (home / "demo" / "sentiment_grader.py").stat().st_mtime_ns
    assert sentiment_grader_source() == source
    assert (home / "demo" / "sentiment_grader.py").stat().st_mtime_ns == written


@pytest.mark.slow(20)
def test_judges_tell_praise_from_blame():
    pytest.importorskip("vaderSentiment")
    texts = ["A wonderful, moving film. I loved every minute.", "Dreadful, boring and badly acted. I hated it."]
    for judge in (vader_judge, minilm_judge):
        praise, blame = judge(texts)
        assert praise > 0 > blame
    assert 0.7 < minilm_head().accuracy < 0.95


def test_embeddings_do_not_depend_on_the_batch():
    texts = ["short", "a text of quite another length, " * 10, "a third"]
    together = embed(texts)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert together == pytest.approx(np.concatenate([embed([text]) for text in texts]), abs=1e-5)
