from __future__ import annotations

import hashlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iro_server.store.files import FileCorrupt, joined, verified, write_whole


def test_what_is_written_is_read_back_and_its_hash_known(tmp_path):
    size, sha256 = write_whole(tmp_path / "new" / "file", [b"ab", b"", b"c"])
    assert (size, sha256) == (3, hashlib.sha256(b"abc").hexdigest())
    with verified(tmp_path / "new" / "file", sha256) as file:
        assert file.read() == b"abc"


def test_other_bytes_are_not_read(tmp_path):
    _, sha256 = write_whole(tmp_path / "file", [b"abc"])
    (tmp_path / "file").write_bytes(b"abd")
    with pytest.raises(FileCorrupt):
        verified(tmp_path / "file", sha256)
    verified(tmp_path / "file", None).close()


def test_a_failed_write_leaves_nothing(tmp_path):
    def blocks():
        yield b"half"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "file", blocks())
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.binary(max_size=30)))
def test_joined_files_read_as_one(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("parts")
    paths = [folder / str(i) for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    with joined(paths) as file:
        assert list(file) == io.BytesIO(b"".join(contents)).readlines()
