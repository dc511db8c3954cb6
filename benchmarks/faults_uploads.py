"""Files that arrive, whole and in parts, while their server is killed."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Sequence

import openai

from benchmarks.faults_ledger import Phase
from benchmarks.faults_server import Server, insist

CLIENTS = 6
PARTS = 4
WORDS = ["the", "film", "was", "long", "and", "I", "saw", "it", "with", "my", "wife", "who", "liked", "all", "of"]


class Uploads:
    """Clients that upload without end, and what they were promised."""

    def __init__(self, servers: Sequence[Server], phase: Phase, seed: int) -> None:
        self.servers, self.phase, self.seed = servers, phase, seed
        self.sent: dict[str, str] = {}  # SHA-256 by file name, the moment before the file is sent
        self.promised: dict[str, str] = {}  # SHA-256 by file id
        self.verified: set[str] = set()  # ids of files that were verified since they came
        self.looking = threading.Lock()  # while it is held, clients begin no upload
        self.stopping = threading.Event()

    def run(self, client: int) -> None:
        """One client's uploads until ``stopping``: two whole ones for each in parts."""
        rng = random.Random(f"{self.seed}-{client}")
        ways = (self.in_one_request, self.in_one_request, self.in_parts)
        for number in itertools.count():
            if self.stopping.is_set():
                return
            name, content = f"{client}-{number}.jsonl", rows(rng)
            self.sent[name] = sha256(content)
            with self.looking:
                pass
            try:
                ways[number % 3](name, content)
            except openai.APIStatusError as error:
                self.phase.fault("lost", f"{name}: {error}")

    def in_one_request(self, name: str, content: bytes) -> None:
        """Send a file once. Where no answer comes, nothing was promised."""
        try:
            file = self.servers[0].client.files.create(file=(name, content), purpose="fine-tune")
        except openai.APIConnectionError:
            self.phase.note("uploads cut off")
            time.sleep(0.1)
        else:
            self.promise(file.id, name)

    def in_parts(self, name: str, content: bytes) -> None:
        """Go on with an upload over deaths of the server: each part that was acknowledged must still count."""
        size = len(content) // PARTS + 1
        pieces = [content[start : start + size] for start in range(0, len(content), size)]
        upload = insist(
            self.servers,
            lambda client: client.uploads.create(
                bytes=len(content), filename=name, mime_type="text/jsonl", purpose="fine-tune"
            ),
        )
        parts = [insist(self.servers, sender(upload.id, piece)).id for piece in pieces]
        self.phase.acknowledge("parts", len(parts))
        done = insist(self.servers, lambda client: client.uploads.complete(upload.id, part_ids=parts))
        assert done.file is not None
        self.promise(done.file.id, name)

    def promise(self, id: str, name: str) -> None:
        self.promised[id] = self.sent[name]
        self.phase.acknowledge("files")

    def check_new(self) -> None:
        """Look at what came since the last look: what was promised is there, and nothing is there in part."""
        promised = set(self.promised)
        listed = {
            file.id: file.filename for file in insist(self.servers, lambda client: list(client.files.list(limit=1000)))
        }
        for id in promised - listed.keys():
            self.phase.fault("lost", f"{id} is not listed")
        for id in listed.keys() - self.verified:
            name = listed[id]
            if name not in self.sent:
                continue  # another phase's
            if self.hash_of(id) != self.sent[name]:
                self.phase.fault("lost" if id in promised else "failed", f"{id} ({name}) holds other bytes")
            self.verified.add(id)

    def check_all(self) -> None:
        self.verified.clear()
        self.check_new()

    def hash_of(self, id: str) -> str:
        try:
            content = insist(self.servers, lambda client: client.files.content(id).read())
        except openai.APIStatusError as error:
            return str(error)
        return sha256(content)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sender(upload: str, piece: bytes) -> Callable[[openai.OpenAI], openai.types.uploads.UploadPart]:
    return lambda client: client.uploads.parts.create(upload, data=piece)


def rows(rng: random.Random) -> bytes:
    """JSONL of some hundred bytes to a megabyte or two: those over one wait on the server's disk."""
    size, lines = 10 ** rng.uniform(2.5, 6.3), []
    text = " ".join(rng.choices(WORDS, k=400))
    while size > 0:
        start = rng.randrange(len(text) // 2)
        lines.append(json.dumps({"prompt": text[start : start + rng.randrange(40, 900)], "id": rng.random()}))
        size -= len(lines[-1])
    return "".join(line + "\n" for line in lines).encode()


def kill_during_uploads(server: Server, phase: Phase, kills: int, seed: int) -> Uploads:
    """Kill the server ``kills`` times, each a while after it answers; all is checked at the end."""
    rng = random.Random(f"{seed}-uploads")
    uploads = Uploads([server], phase, seed)
    threads = [threading.Thread(target=uploads.run, args=(client,), daemon=True) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(kills):
            time.sleep(rng.uniform(0.05, 1.5))
            server.kill()
            phase.killed("server", "upload")
            server.start()
            server.wait()
            with uploads.looking:
                uploads.check_new()
    finally:
        uploads.stopping.set()
        for thread in threads:
            thread.join()
    uploads.check_all()
    return uploads
