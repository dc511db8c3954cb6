"""The vocabulary that schemas need is read when the server starts, since reading it stops the event loop."""

from __future__ import annotations

from iro_server.api.app import prepare_grammars
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for
from tests.iro_server.api.test_response_format import chat


def test_no_request_reads_the_vocabulary(tmp_path, monkeypatch):
    engine = ByteEngine()
    prepare_grammars(engine)

    def read_again(*_: object, **__: object) -> None:
        raise AssertionError("a request reads the vocabulary")

    monkeypatch.setattr("iro_server.engines.grammars.from_tokenizer", read_again)
    with serving(settings_for(tmp_path), engine) as client:
        assert chat(client, seed=1).choices[0].finish_reason == "stop"
