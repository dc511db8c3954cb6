"""What an operator sees of a job that a real worker process runs: spans in an OTLP receiver, and /metrics."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from iro_server.engines.ports import free_port
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import ended, serving, settings_for
from tests.iro_server.api.test_metrics import samples

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra `tracing`")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.iro_server.api.tracer import provider

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GRADER = {
    "type": "string_check",
    "name": "has-one",
    "input": "{{sample.output_text}}",
    "reference": "1",
    "operation": "like",
}
STAGES = {"sampling", "grading", "fitting", "validation"}


@contextmanager
def receiver() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP endpoint, and the resource spans that it is sent."""
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
        server.shutdown()


def start(client: Any, **headers: str) -> str:
    rows = "".join(json.dumps({"prompt": f"{n:06b}"}) + "\n" for n in range(20))
    file = client.files.create(file=("rows.jsonl", rows.encode()), purpose="fine-tune").id
    iro = {"iterations": 2, "max_tokens": 6, "rollouts_per_prompt": 4, "validation_prompts": 4}
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "iro": iro}}
    asked = {"model": "bytes", "training_file": file, "method": method, "seed": 1}
    return client.fine_tuning.jobs.create(**asked, extra_headers=headers).id


@dataclass
class Observed:
    """A job that has succeeded: what /metrics said while it ran and once it had, and what its worker sent."""

    id: str
    during: list[dict[tuple, float]]
    after: dict[tuple, float]
    service: set[str]
    spans: list[Any]

    def named(self, *names: str) -> list[Any]:
        return [span for span in self.spans if span.name in names]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    provider()  # a server that traces sets one, and then goes on with its callers' traces
    with receiver() as (endpoint, received):
        settings = settings_for(
            tmp_path_factory.mktemp("data"), align_entry="tests.training.iro.toy_job:JOB", otlp_endpoint=endpoint
        )
        with serving(settings, ByteEngine()) as client:
            id, during = start(client, traceparent=f"00-{TRACE}-{CALLER}-01"), []
            while client.fine_tuning.jobs.retrieve(id).status in ("validating_files", "queued", "running"):
                during.append(samples(client))
                time.sleep(0.2)
            assert ended(client, id).status == "succeeded", client.fine_tuning.jobs.list_events(id)
            after = samples(client)
        # The server has waited for its worker, which sends what is left before it exits.
        services = {
            attribute.value.string_value
            for each in received
            for attribute in each.resource.attributes
            if attribute.key == "service.name"
        }
        spans = [span for each in received for scope in each.scope_spans for span in scope.spans]
    return Observed(id, during, after, services, spans)


@pytest.mark.slow(27)
def test_a_job_is_one_span_of_the_trace_that_created_it_with_a_span_for_each_step(observed: Observed) -> None:
    assert observed.service == {"iro-worker"}
    (job,) = observed.named("job")
    assert {span.trace_id.hex() for span in observed.spans} == {TRACE}
    assert job.parent_span_id.hex() not in ("", CALLER)  # the server's own span of the request
    assert {a.key: a.value.string_value for a in job.attributes}["iro.job_id"] == observed.id
    steps = observed.named("step", *STAGES)
    assert {span.name for span in steps} == STAGES | {"step"}
    assert {span.parent_span_id for span in steps} == {job.span_id}
    assert all(
        job.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano <= job.end_time_unix_nano
        for span in observed.spans
    )
    names = {attribute.value.string_value for span in steps for attribute in span.attributes}
    assert {"1-train-0-rollouts", "1-train-0-rewards", "1-fit", "2-fit", "0-valid-0", "2-report"} <= names
    assert {span.parent_span_id for span in observed.named("grade")} == {job.span_id}  # beside the steps that sample
    assert not observed.named("prefill", "round", "extend", "score")  # of each search: too many for one trace


@pytest.mark.slow(24)
def test_metrics_tell_what_a_running_job_does_and_how_long_its_grader_takes(observed: Observed) -> None:
    told = {key for scrape in observed.during for key in scrape if key[0] == "iro_job_stage"}
    stages = {dict(key[1:])["stage"] for key in told}
    assert {"sampling", "validation"} <= stages <= STAGES
    assert all(sum(key[0] == "iro_job_stage" for key in scrape) <= 1 for scrape in observed.during)
    assert not any(key[0] == "iro_job_stage" for key in observed.after)
    labels = (("job", observed.id), ("type", "string_check"))
    calls = [
        scrape.get(("iro_job_grading_seconds_count", *labels), 0.0) for scrape in [*observed.during, observed.after]
    ]
    assert calls == sorted(calls) and 0 < calls[-2] <= calls[-1] == len(observed.named("grade"))
    took = sum(span.end_time_unix_nano - span.start_time_unix_nano for span in observed.named("grade")) / 1e9
    assert observed.after[("iro_job_grading_seconds_sum", *labels)] == pytest.approx(took, rel=0.5, abs=0.01)


@pytest.mark.slow(15)
def test_a_job_succeeds_though_nobody_takes_its_spans(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/v1/traces"
    settings = settings_for(tmp_path, align_entry="tests.training.iro.toy_job:JOB", otlp_endpoint=nowhere)
    with serving(settings, ByteEngine()) as client:
        assert ended(client, start(client)).status == "succeeded"
