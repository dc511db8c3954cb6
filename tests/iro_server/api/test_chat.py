from __future__ import annotations

import math

import openai
import pytest
import torch

from iro_server.api.app import create_app
from iro_server.api.errors import api_error
from iro_server.api.registry import ModelMismatch
from iro_server.engines.sample import truncate
from tests.iro_server.api.byte_engine import SCRIPT, ByteEngine
from tests.iro_server.api.serving import conforms, ended, serving, settings_for, start_job, wait_for
from tests.iro_server.jobs.fake_job import MEASURED

HI = [{"role": "user", "content": "hi"}]


def chat(client, **options):
    return client.chat.completions.create(**({"model": "bytes", "messages": HI} | options))


def test_a_completion_has_openais_shape_and_counts_every_token(client):
    answer = conforms(chat(client, temperature=0, logprobs=True, top_logprobs=1))
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (SCRIPT, "stop")
    assert answer.usage.completion_tokens == len(SCRIPT.encode()) + 1  # the end token
    assert answer.usage.prompt_tokens == len("user: hi\nassistant: ")
    assert (answer.usage.base_tokens, answer.usage.value_tokens) == (answer.usage.completion_tokens, 0)
    tokens = choice.logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    assert tokens[0].token == "h" and tokens[0].bytes == [104] and tokens[0].top_logprobs[0].token == "h"


def test_content_may_come_in_text_parts(client):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    answer = chat(client, messages=[{"role": "user", "content": parts}], temperature=0)
    assert answer.usage.prompt_tokens == len("user: hi\nassistant: ")


def test_a_seed_repeats_a_completion_and_choices_differ(client):
    first, again = (chat(client, seed=7, n=3, max_tokens=20) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    assert texts[1] == chat(client, seed=8, max_tokens=20).choices[0].message.content


def test_a_top_p_of_0_keeps_the_likeliest_token_alone(served):
    chat(served.client, top_p=0, max_tokens=1)
    assert truncate(torch.tensor([[1.0, 1.1]]), served.engine.sampling).isfinite().tolist() == [[False, True]]


def test_top_k_reaches_the_engine(served):
    chat(served.client, extra_body={"top_k": 40}, max_tokens=1)
    assert served.engine.sampling.top_k == 40


@pytest.mark.slow(6)
def test_a_model_samples_as_its_job_did_unless_told_otherwise(served):
    job = ended(served.client, start_job(served.client, temperature=0.7, max_tokens=5))
    model = served.client.models.retrieve(job.fine_tuned_model)
    assert (model.iro["temperature"], model.iro["max_tokens"]) == (0.7, 5)
    answer = chat(served.client, model=model.id)
    assert (served.engine.sampling.temperature, answer.usage.completion_tokens) == (0.7, 5)
    answer = chat(served.client, model=model.id, temperature=1.3, max_tokens=6)
    assert (served.engine.sampling.temperature, answer.usage.completion_tokens) == (1.3, 6)


def test_a_model_answers_as_long_as_its_job_measured(served):
    """A checkpoint does so too while the job still runs."""
    job = ended(served.client, start_job(served.client, max_tokens="auto"))
    checkpoint = served.client.fine_tuning.jobs.checkpoints.list(job.id).data[0].fine_tuned_model_checkpoint
    assert served.client.models.retrieve(job.fine_tuned_model).iro["max_tokens"] == MEASURED
    for model in (job.fine_tuned_model, checkpoint):
        answer = chat(served.client, model=model)
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", MEASURED)


SCRIPT_TOKENS = len(SCRIPT.encode()) + 1  # the end token
SEARCH = {"beam_width": 2, "num_successors": 3, "chunk_length": 4}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("search", [{}, SEARCH, SEARCH | {"selection": "smc"}])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_tokens": SCRIPT_TOKENS}, "stop"),
        ({"max_tokens": SCRIPT_TOKENS - 1}, "length"),  # all but the end token: the whole text, and it was cut
        ({"max_tokens": 8}, "length"),
        ({"max_tokens": 8, "stop": "!"}, "length"),
        ({"max_tokens": 8, "stop": ["z", "o"]}, "stop"),
    ],
)
def test_a_cut_answer_says_length(client, job, stream, search, options, reason):
    for model in ("bytes", job.fine_tuned_model):
        answer = chat(client, model=model, seed=2, stream=stream, extra_body={"search": search}, **options)
        last = list(answer)[-1] if stream else answer
        assert last.choices[0].finish_reason == reason


def test_max_tokens_ends_a_completion(client):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = chat(client, temperature=0, **{name: 4})
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 4)


def test_one_limit_of_tokens_is_set(client):
    with pytest.raises(openai.BadRequestError, match="beside max_tokens") as refused:
        chat(client, max_tokens=4, max_completion_tokens=8)
    assert refused.value.param == "max_completion_tokens"


@pytest.mark.parametrize("stop", ["wör", ["good", "wör"]])
def test_stop_strings_cut_the_text_and_its_tokens(client, stop):
    answer = chat(client, temperature=0, stop=stop, logprobs=True)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("héllo ", "stop")
    assert answer.usage.completion_tokens == len("héllo wör".encode()) == len(answer.choices[0].logprobs.content)


def test_a_search_to_the_end_ranks_the_texts_that_stop_strings_leave(client, job):
    options = {"model": job.fine_tuned_model, "stop": "l", "n": 8, "logprobs": True}
    search = {"beam_width": 1, "num_successors": 8, "chunk_length": None}
    for seed in range(6):
        answers = chat(client, seed=seed, **options, extra_body={"search": search})
        values = [sum(entry.value for entry in choice.logprobs.content) for choice in answers.choices]
        assert values[0] == pytest.approx(max(values))
        assert answers.usage.base_tokens < answers.usage.completion_tokens + 8 * 8
        assert answers.usage.value_tokens == answers.usage.completion_tokens


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 3}, {"seed": 3, "stop": "zz"}, {"seed": 3, "n": 2}])
def test_a_stream_says_what_the_whole_answer_says(client, options):
    whole = chat(client, **options)
    texts = [""] * len(whole.choices)
    reasons = [None] * len(whole.choices)
    *chunks, last = chat(client, stream=True, stream_options={"include_usage": True}, **options)
    for chunk in map(conforms, chunks):
        assert chunk.usage is None
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens


def test_a_stream_never_splits_a_character(client):
    deltas = [chunk.choices[0].delta.content or "" for chunk in chat(client, temperature=0, stream=True)]
    assert len(deltas) > 5
    assert not any("\ufffd" in delta for delta in deltas)


@pytest.mark.parametrize("options", [{"max_tokens": 9}, {"stop": ["wörld"]}, {"temperature": 0}, {"n": 2}])
@pytest.mark.parametrize("aligned", [False, True])
def test_a_streams_log_probabilities_come_with_their_text(client, job, options, aligned):
    asked = {"model": job.fine_tuned_model if aligned else "bytes", "seed": 4, "logprobs": True, "top_logprobs": 3}
    whole = chat(client, **asked, **options)
    entries = [[] for _ in whole.choices]
    for chunk in map(conforms, chat(client, stream=True, **asked, **options)):
        (choice,) = chunk.choices
        new = choice.logprobs.content if choice.logprobs else []
        assert new or choice.finish_reason or not choice.delta.content
        text = (choice.delta.content or "") + "<end>"
        assert all(entry.token in text for entry in new if "\ufffd" not in entry.token) or choice.finish_reason
        entries[choice.index] += new
    assert entries == [choice.logprobs.content for choice in whole.choices]


def test_the_likeliest_alternatives_are_told_of(client):
    content = chat(client, seed=1, logprobs=True, top_logprobs=5).choices[0].logprobs.content
    for entry in content[:-1]:
        likeliest = entry.top_logprobs
        assert len(likeliest) == 5 and {"z", entry.token} <= {alternative.token for alternative in likeliest}
        assert [a.logprob for a in likeliest] == sorted((a.logprob for a in likeliest), reverse=True)
    assert all(entry.top_logprobs == [] for entry in chat(client, logprobs=True).choices[0].logprobs.content)


def test_a_bias_of_a_token_bans_it_or_makes_it_sure(served):
    z = str(served.engine.z)
    assert "z" not in chat(served.client, seed=1, logit_bias={z: -100}).choices[0].message.content
    assert chat(served.client, seed=1, logit_bias={z: 100}, max_tokens=5).choices[0].message.content == "zzzzz"


def test_penalties_are_on_what_was_said(client):
    """Of z, said with probability one half at each byte, a strong penalty lets one pass."""
    texts = [
        chat(client, seed=1, **{name: 2}).choices[0].message.content
        for name in ("frequency_penalty", "presence_penalty")
    ]
    plain = chat(client, seed=1).choices[0].message.content.count("z")
    assert all(text.count("z") < plain for text in texts)


def test_answers_of_one_frozen_model_have_one_fingerprint(client, job):
    answers = [chat(client), chat(client, model=job.fine_tuned_model), *chat(client, stream=True)]
    assert len({answer.system_fingerprint for answer in answers}) == 1 and answers[0].system_fingerprint


def test_the_aligned_model_is_steered_and_reports_its_search(client, job):
    answer = conforms(chat(client, model=job.fine_tuned_model, seed=1))
    plain = chat(client, seed=1)
    assert answer.choices[0].message.content.count("z") > plain.choices[0].message.content.count("z")
    assert answer.usage.value_tokens == answer.usage.base_tokens > 3 * answer.usage.completion_tokens
    assert answer.usage.rounds == math.ceil(answer.usage.completion_tokens / 4)  # the job's chunk_length


def test_a_guided_stream_agrees_with_the_guided_answer(client, job):
    whole = chat(client, model=job.fine_tuned_model, seed=5)
    deltas = [c.choices[0].delta.content or "" for c in chat(client, model=job.fine_tuned_model, seed=5, stream=True)]
    assert "".join(deltas) == whole.choices[0].message.content


def test_n_best_distinct_finals_of_one_search(client, job):
    search = {"beam_width": 4, "num_successors": 4, "selection": "diversity"}
    answer = chat(client, model=job.fine_tuned_model, n=4, seed=2, extra_body={"search": search})
    counts = [choice.message.content.count("z") for choice in answer.choices]
    assert counts == sorted(counts, reverse=True)  # the value is the number of z's
    assert len({choice.message.content for choice in answer.choices}) == 4


def test_search_parameters_reach_the_search(client, job):
    def rounds(**search):
        return chat(client, model=job.fine_tuned_model, max_tokens=24, extra_body={"search": search}).usage

    assert rounds(chunk_length=8).rounds == 3
    usage = rounds(beam_width=1, num_successors=16, chunk_length=None)
    assert usage.rounds == 1 and usage.base_tokens == 16 * 24
    best_of = chat(client, extra_body={"search": {"num_successors": 8}}, n=8, max_tokens=6)
    assert best_of.usage.base_tokens == 48 and best_of.usage.value_tokens == 0


def test_betas_weigh_the_value_functions(client, job):
    search = {"betas": [1e9, 1e9], "selection": "smc", "beam_width": 16}
    model = job.fine_tuned_model
    weak = chat(client, model=model, seed=1, extra_body={"search": search}).choices[0].message.content
    strong = chat(client, model=model, seed=1, extra_body={"search": search | {"betas": [0.01, 0.01]}})
    assert strong.choices[0].message.content.count("z") > weak.count("z")


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"seed": 4}])
def test_temperature_0_is_an_aligned_models_repeatable_answer(served, job, options):
    greedy = {"model": job.fine_tuned_model, "temperature": 0} | options
    first, again = (chat(served.client, **greedy) for _ in range(2))
    text = first.choices[0].message.content
    assert text == again.choices[0].message.content
    assert text.count("z") > 0 == chat(served.client, temperature=0).choices[0].message.content.count("z")
    assert served.engine.sampling.temperature == 0  # of the base model, which stays greedy
    deltas = [chunk.choices[0].delta.content or "" for chunk in chat(served.client, stream=True, **greedy)]
    assert "".join(deltas) == text
    assert served.engine.sampling.temperature == 1.0  # the job's own


def test_temperature_0_draws_each_prompt_with_a_seed_of_its_own(served, job):
    seeds = set()
    for content in ("hi", "ho", "hi"):
        chat(served.client, model=job.fine_tuned_model, temperature=0, messages=[{"role": "user", "content": content}])
        seeds.add(served.engine.sampling.seed)
    assert len(seeds) == 2 and None not in seeds


@pytest.mark.parametrize("selection", ["diversity", "smc"])
def test_the_n_best_of_an_aligned_models_repeatable_search(client, job, selection):
    search = {"beam_width": 4, "num_successors": 4, "selection": selection}
    options = {"model": job.fine_tuned_model, "temperature": 0, "extra_body": {"search": search}}
    four, one = (chat(client, n=n, **options) for n in (4, 1))
    counts = [choice.message.content.count("z") for choice in four.choices]
    assert counts == sorted(counts, reverse=True) and counts[0] > 0  # the value is the number of z's
    assert four.choices[0].message.content == one.choices[0].message.content


@pytest.mark.parametrize("search", [{}, {"beam_width": 2, "num_successors": 4, "chunk_length": 5}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_greedy_row_of_the_base_model_is_drawn_once(client, search, stream):
    options = {"n": 3, "temperature": 0, "extra_body": {"search": search}}
    if stream:
        *chunks, last = chat(client, stream=True, stream_options={"include_usage": True}, **options)
        texts = [""] * 3
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            texts[choice.index] += choice.delta.content or ""
        usage = last.usage
    else:
        answer = chat(client, **options)
        texts, usage = [choice.message.content for choice in answer.choices], answer.usage
    assert texts == [SCRIPT] * 3
    assert usage.completion_tokens == 3 * usage.base_tokens


BAD = [
    ({"search": {"beam_width": -1}}, "search.beam_width"),
    ({"search": {"beam_width": "wide"}}, "search.beam_width"),
    ({"search": {"selection": "worst"}}, "search.selection"),
    ({"search": {"depth": 3}}, "search.depth"),
    ({"search": {"beam_width": 256, "num_successors": 256}}, "search"),
    ({"search": {"rows": 8, "beam_width": 300}}, "search.beam_width"),
    ({"search": {"rows": 8, "beam_width": 3}}, "search.rows"),
    ({"search": {"rows": 1, "num_successors": 4}}, "search.rows"),
    ({"search": {"rows": 8, "beam_width": 2, "num_successors": 2}}, "search.rows"),
    ({"search": {"betas": [1.0]}}, "search.betas"),
    ({"search": {"num_successors": 4}, "n": 5}, "n"),
    ({"temperature": 3}, "temperature"),
    *(({"top_p": top_p}, "top_p") for top_p in (-0.1, 1.1)),
    ({"top_k": -1}, "top_k"),
    ({"n": 0}, "n"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ""}, "stop.0"),
    ({"seed": 2**64}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "developer", "content": "hi"}]}, "messages"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": []}}}},
        "response_format",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
        "response_format",
    ),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
]


@pytest.mark.parametrize(("options", "param"), BAD)
def test_bad_requests_name_the_parameter(client, options, param):
    body = {"model": "bytes", "messages": HI} | options
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", body=body, cast_to=object)
    assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
def test_an_over_long_prompt_is_refused_before_anything_is_sent(client, stream):
    for options in ({"messages": [{"role": "user", "content": "x" * 600}]}, {"max_tokens": 500}):
        with pytest.raises(openai.BadRequestError) as refused:
            chat(client, stream=stream, **options)
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as refused:
        chat(client, model="ft:bytes:iro::none")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_value_functions_of_another_base_are_refused(served, job, tmp_path):
    other = ByteEngine()
    other.info = other.info.__class__(**(vars(other.info) | {"model_hash": "other-hash"}))
    app = create_app(served.settings, other)
    with pytest.raises(ModelMismatch, match="fitted on another base model") as refused:
        app.state.context.model(job.fine_tuned_model)
    error = api_error(refused.value)
    assert (error.status, error.code, error.param) == (400, "model_mismatch", "model")


def test_a_client_that_leaves_frees_its_search(tmp_path):
    engine = ByteEngine(script="x" * 400, noise=0.0, seconds_per_token=0.1)
    with serving(settings_for(tmp_path), engine) as client:
        with pytest.raises(openai.APITimeoutError):
            chat(client.with_options(timeout=2), max_tokens=400)
        wait_for(lambda: engine.opened == 1 and engine.open_sessions == 0)
        with chat(client, max_tokens=400, stream=True) as stream:
            next(iter(stream))
            wait_for(lambda: engine.open_sessions == 1)
        wait_for(lambda: engine.open_sessions == 0)


def test_an_engine_that_breaks_gives_a_server_error_and_goes_on(tmp_path):
    engine = ByteEngine()
    with serving(settings_for(tmp_path), engine) as client:
        script, engine.script = engine.script, None
        with pytest.raises(openai.InternalServerError):
            chat(client)
        with pytest.raises(openai.APIError, match="server had an error"):
            list(chat(client, stream=True))
        engine.script = script
        assert chat(client, temperature=0).choices[0].message.content == SCRIPT
