from __future__ import annotations

import httpx
import openai
import pytest

from tests.iro_server.api.byte_engine import SCRIPT, ByteEngine
from tests.iro_server.api.serving import conforms, serving, settings_for, wait_for


def complete(client, **options):
    return client.completions.create(**({"model": "bytes", "prompt": "So"} | options))


def test_a_text_is_continued_as_it_stands(client):
    answer = conforms(complete(client, temperature=0, logprobs=1))
    (choice,) = answer.choices
    assert choice.text == SCRIPT.encode()[:16].decode(errors="replace")  # the default max_tokens
    assert (choice.finish_reason, answer.usage.prompt_tokens) == ("length", 2)
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == 16
    assert choice.logprobs.text_offset[:2] == [0, 1]
    assert choice.logprobs.top_logprobs[0] == {"h": choice.logprobs.token_logprobs[0]}


def test_a_streams_log_probabilities_come_with_their_text(client):
    options = {"seed": 3, "logprobs": 3, "max_tokens": 20}
    (whole,) = complete(client, **options).choices
    choices = [chunk.choices[0] for chunk in complete(client, stream=True, **options)]
    parts = [choice.logprobs for choice in choices]
    for field in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert [entry for part in parts if part for entry in getattr(part, field)] == getattr(whole.logprobs, field)
    assert all(len(choice.text) <= 2 for choice in choices)  # one, or half a character and what cuts it off
    drawn = zip(whole.logprobs.tokens, whole.logprobs.token_logprobs, whole.logprobs.top_logprobs, strict=True)
    assert all(top[token] == logprob and 3 <= len(top) <= 4 for token, logprob, top in drawn)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("search", [{}, {"beam_width": 2, "num_successors": 3, "chunk_length": 4}])
@pytest.mark.parametrize(
    ("options", "reason"), [({"max_tokens": 8}, "length"), ({"max_tokens": 40, "stop": "z"}, "stop")]
)
def test_a_cut_text_says_length(client, job, stream, search, options, reason):
    for model in ("bytes", job.fine_tuned_model):
        answer = complete(client, model=model, seed=2, stream=stream, extra_body={"search": search}, **options)
        last = list(answer)[-1] if stream else answer
        assert last.choices[0].finish_reason == reason


def test_token_ids_are_a_prompt_and_prompts_come_in_lists(served):
    ids = served.engine.tokenizer("So")["input_ids"]
    for prompt in (ids, ["So"], [ids]):
        assert complete(served.client, prompt=prompt).usage.prompt_tokens == 2
    answer = complete(served.client, prompt=["a", "bc"], n=2, max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 12)


def test_each_prompt_of_a_list_has_seeds_of_its_own(client):
    listed = complete(client, prompt=["So", "So"], n=2, seed=3, max_tokens=30).choices
    alone = complete(client, n=4, seed=3, max_tokens=30).choices
    assert [choice.text for choice in listed] == [choice.text for choice in alone]
    assert len({choice.text for choice in listed}) == 4


def test_a_prompt_that_fails_ends_the_others(tmp_path):
    class SecondFails(ByteEngine):
        async def open(self, *arguments):
            if self.opened == 1:
                raise RuntimeError("no room")
            return await super().open(*arguments)

    engine = SecondFails(script="x" * 400, noise=0.0, seconds_per_token=0.1)
    with serving(settings_for(tmp_path), engine) as client:
        with pytest.raises(openai.InternalServerError):
            complete(client, prompt=["a", "b"], max_tokens=300)
        wait_for(lambda: engine.opened == 1 and engine.open_sessions == 0)


def test_a_stream_says_what_the_whole_answer_says(client):
    options = {"prompt": ["a", "b"], "n": 2, "seed": 1, "max_tokens": 40, "stop": "zzz"}
    whole = complete(client, **options)
    texts = [""] * 4
    for chunk in complete(client, stream=True, **options):
        conforms(chunk.choices and chunk.model_copy(update={"choices": []}))
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": "x" * 600}, "prompt"),
        ({"logprobs": 9}, "logprobs"),
        ({"prompt": ["a", "b", "c"], "n": 128}, "n"),
        ({"prompt": ["a"] * 300}, "prompt"),
        ({"best_of": 4}, "best_of"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
    ],
)
def test_bad_requests_name_the_parameter(client, options, param):
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, **options)
    assert refused.value.param == param


def test_a_text_far_over_the_context_is_refused(client):
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, prompt="x" * 20_000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    assert "takes over" in refused.value.message


@pytest.mark.parametrize(("rows", "param"), [(4, "n"), (256, "search")])
def test_at_temperature_0_one_row_of_the_base_model_answers_any_n_and_search(client, rows, param):
    options = {"prompt": ["a", "b"], "n": 5, "max_tokens": 4, "extra_body": {"search": {"rows": rows}}}
    answer = complete(client, temperature=0, **options)
    assert [choice.text for choice in answer.choices] == [SCRIPT.encode()[:4].decode()] * 10
    assert answer.usage.base_tokens == 2 * 4
    with pytest.raises(openai.BadRequestError) as refused:  # at another temperature all of its rows are drawn
        complete(client, temperature=1, **options)
    assert refused.value.param == param


@pytest.mark.parametrize("stream", [{}, {"stream": False}, {"stream": None}])
def test_options_of_a_stream_need_one(client, stream):
    hi = [{"role": "user", "content": "hi"}]
    for route, body in (
        ("completions", {"prompt": "So"}),
        ("chat/completions", {"messages": hi}),
        ("responses", {"input": "hi"}),
    ):
        body |= {"model": "bytes"} | stream
        with pytest.raises(openai.BadRequestError, match="stream: true") as refused:
            client.post(f"/{route}", body=body | {"stream_options": {}}, cast_to=object)
        assert refused.value.param == "stream_options"
        client.post(f"/{route}", body=body | {"stream_options": None}, cast_to=object)


@pytest.mark.parametrize("prompt", ['"a\\ud83d"', '["a", "\\ud83d"]'])
def test_a_prompt_that_is_no_unicode_is_refused(client, prompt):
    body = f'{{"model": "bytes", "prompt": {prompt}}}'
    answer = httpx.post(f"{client.base_url}completions", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
