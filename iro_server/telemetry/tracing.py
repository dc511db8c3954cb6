"""Traces, by OpenTelemetry. FastAPI makes the span of a request; the ones within it are made here. Without an endpoint
to send them to a span is OpenTelemetry's own that does nothing."""

from __future__ import annotations

from opentelemetry import trace

_tracer = trace.get_tracer("iro")
span = _tracer.start_as_current_span  # with span("name", attributes={...}): …


def start(endpoint: str) -> None:
    """Send this process's spans to ``endpoint``, such as http://127.0.0.1:4318/v1/traces (OTLP over HTTP).

    ValueError without the extra `tracing`.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ValueError(
            f"IRO_OTLP_ENDPOINT needs {error.name}, which is not installed: pip install 'iro[tracing]'"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "iro"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    trace.set_tracer_provider(provider)


def tag(name: str, value: str) -> None:
    """An attribute of the span that is open."""
    trace.get_current_span().set_attribute(name, value)
