"""Traces, by OpenTelemetry. FastAPI makes the span of a request; the ones within it are made here. Without an endpoint
to send them to a span is OpenTelemetry's own that does nothing."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_tracer = trace.get_tracer("iro")
_w3c = TraceContextTextMapPropagator()
span = _tracer.start_as_current_span  # with span("name", attributes={...}): …


def start(endpoint: str, service: str = "iro") -> None:
    """Send this process's spans to ``endpoint``, such as http://127.0.0.1:4318/v1/traces (OTLP over HTTP), until it
    exits; what is left then goes out first.

    ValueError without the extra `tracing`.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ValueError(
            f"IRO_OTLP_ENDPOINT needs {error.name}, which is not installed: pip install 'iro-align[tracing]'"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    trace.set_tracer_provider(provider)


def here() -> str | None:
    """The span that is open, as a ``traceparent`` that another process can go on with; None outside of a trace."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier)
    return carrier.get("traceparent")


def after(traceparent: str | None) -> Context:
    """For a span's ``context``: that of a trace begun elsewhere; None: of no trace yet."""
    return _w3c.extract({"traceparent": traceparent} if traceparent else {})


def tag(name: str, value: str) -> None:
    """An attribute of the span that is open."""
    trace.get_current_span().set_attribute(name, value)
