"""/v1/embeddings by the official client and a real embedding model."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from openai import OpenAI
from transformers import AutoTokenizer

from iro_server.graders import local_models
from iro_server.graders.local_models import bundled_embedding_model
from iro_server.store import keys
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for

MODEL = "all-MiniLM-L6-v2"
TEXTS = ["A cat sits on the mat.", "The kitten is on a rug.", "Interest rates rose by 25 basis points."]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serving(settings_for(tmp_path_factory.mktemp("data"), embedding_tokens=2000), ByteEngine()) as client:
        yield client


def refused(call) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as error:
        call()
    return error.value


def embedded(client: OpenAI, **body) -> np.ndarray:
    return np.array([row.embedding for row in client.embeddings.create(model=MODEL, **body).data])


def test_texts_of_like_meaning_are_close_and_the_vectors_are_of_unit_length(client):
    vectors = embedded(client, input=TEXTS)
    cosines = vectors @ vectors.T
    assert vectors.shape == (3, 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert cosines[0, 1] > 0.5 > 0.2 > max(cosines[0, 2], cosines[1, 2])


def test_both_encodings_and_all_shapes_of_input_give_the_same_vectors(client):
    """The client asks for base64 where nothing is said, and reads it."""
    default = embedded(client, input=TEXTS)
    np.testing.assert_allclose(default, embedded(client, input=TEXTS, encoding_format="float"), atol=1e-6)
    sent = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="base64")
    packed = np.stack([np.frombuffer(base64.b64decode(row.embedding), "<f4") for row in sent.data])
    np.testing.assert_allclose(default, packed, atol=1e-6)
    ids = AutoTokenizer.from_pretrained(bundled_embedding_model())(TEXTS)["input_ids"]
    np.testing.assert_allclose(default, embedded(client, input=ids), atol=1e-5)
    np.testing.assert_allclose(default[:1], embedded(client, input=ids[0]), atol=1e-5)
    np.testing.assert_allclose(default[2:], embedded(client, input=TEXTS[2]), atol=1e-5)
    assert sent.usage.prompt_tokens == sent.usage.total_tokens == sum(map(len, ids))
    assert [row.index for row in sent.data] == [0, 1, 2]


def test_many_inputs_keep_their_order_over_batches(client):
    texts = [f"{'very ' * (i % 5)}number {i}" for i in range(70)]
    many = embedded(client, input=texts)
    few = np.concatenate([embedded(client, input=texts[i : i + 7]) for i in range(0, 70, 7)])
    np.testing.assert_allclose(many, few, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"model": "text-embedding-3-small"}, 404, "model", "model_not_found"),
        ({"dimensions": 256}, 400, "dimensions", "unsupported_parameter"),
        ({"input": ""}, 400, "input", "invalid_value"),
        ({"input": []}, 400, "input", "invalid_value"),
        ({"input": ["a", ""]}, 400, "input", "invalid_value"),
        ({"input": "word " * 600}, 400, "input", "context_length_exceeded"),
        ({"input": "word " * 600_000}, 400, "input", "context_length_exceeded"),
        ({"input": ["word " * 400] * 6}, 400, "input", "too_many_tokens"),
        ({"input": ["a"] * 2049}, 400, "input", "invalid_value"),
        ({"input": [100_000]}, 400, "input", "invalid_value"),
        ({"encoding_format": "int8"}, 400, "encoding_format", "invalid_value"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_embedded_is_refused_by_name(client, change, status, param, code):
    error = refused(lambda: client.embeddings.create(**{"model": MODEL, "input": "a"} | change))
    assert (error.status_code, error.param.split(".")[0], error.code) == (status, param, code), error.message


def test_a_text_of_too_many_bytes_is_refused_before_it_is_tokenised(client, monkeypatch):
    monkeypatch.setattr(local_models, "token_ids", lambda *_: pytest.fail("a text was tokenised"))
    error = refused(lambda: client.embeddings.create(model=MODEL, input=["a", "word " * 60_000]))
    assert error.code == "context_length_exceeded" and "input 1" in error.message


def test_texts_beyond_the_limit_of_a_request_are_not_tokenised(client, monkeypatch):
    tokenised, token_ids = [], local_models.token_ids
    monkeypatch.setattr(local_models, "token_ids", lambda *args: tokenised.append(len(args[1])) or token_ids(*args))
    error = refused(lambda: client.embeddings.create(model=MODEL, input=["word " * 100] * 1000))
    assert error.code == "too_many_tokens" and sum(tokenised) < 100


def test_texts_are_tokenised_while_a_model_runs_and_by_many_threads():
    model = bundled_embedding_model()
    texts = [f"{'very ' * i}number {i}" for i in range(50)]
    with local_models._TURN, ThreadPoolExecutor(4) as threads:
        results = [threads.submit(local_models.token_ids, model, texts) for _ in range(20)]
        expected = AutoTokenizer.from_pretrained(model)(texts)["input_ids"]
        assert all(result.result(timeout=60) == expected for result in results)
        assert local_models.max_tokens(model) and local_models.embedding_size(model)


def test_the_model_is_retrieved_by_name_and_not_listed_among_those_that_chat(client):
    assert client.models.retrieve(MODEL).id == MODEL
    assert MODEL not in [model.id for model in client.models.list()]


def test_the_full_size_is_no_reduction(client):
    assert embedded(client, input="a", dimensions=384).shape == (1, 384)


def test_tokens_count_against_the_key(tmp_path):
    settings = settings_for(tmp_path)
    _, secret = keys.create(open_database(settings), "small", tokens_per_minute=10)
    with serving(settings, ByteEngine()) as client:
        client = client.with_options(api_key=secret)
        client.embeddings.create(model=MODEL, input="three words here")  # five tokens
        assert refused(lambda: client.embeddings.create(model=MODEL, input=TEXTS[0])).status_code == 429


def test_a_server_without_an_embedding_model_says_so(tmp_path):
    with serving(settings_for(tmp_path, embedding_model=tmp_path / "none"), ByteEngine()) as client:
        error = refused(lambda: client.embeddings.create(model="none", input="a"))
    assert error.status_code == 404 and "IRO_EMBEDDING_MODEL" in error.message
