"""Addresses of caches: what they mean, and what is said at once where a cache cannot lie there."""

import re
import socket
import time
from pathlib import Path

import pytest

from kdtune.cache.bucket import Bucket
from kdtune.cache.store import Folder, store_at
from kdtune.cli import main
from kdtune.errors import CacheError, StorageError
from kdtune.storage import below, names_below, remote
from tests.object_store import S3, ObjectStore, a_cache

# --- what cannot be used


def test_a_store_that_cannot_be_used_is_told_at_once(s3: S3) -> None:
    began = time.monotonic()
    options = s3.address().partition("?")[2]
    refused = {
        f"s3://no-such-bucket/caches?{options}": "there is no bucket 'no-such-bucket'. Create it",
        f"s3://{s3.name}/caches?{options.replace(s3.store.host, '127.0.0.1:9')}": "(?i)could not connect.*network",
        f"s3://{s3.name}/caches?{options}&colour=red": "'colour'",
        f"s3://?{options}": "names no bucket",
        "what://bucket/caches": "s3://.*gs://.*Correct cache.storage",
        "hdfs://host/caches": "folder.*Correct cache.storage",
    }
    for address, what in refused.items():
        with pytest.raises(CacheError, match=what) as error:
            store_at(address)
        assert address in str(error.value)
    assert time.monotonic() - began < 15


def test_wrong_credentials_are_told(s3: S3, object_store: ObjectStore) -> None:
    object_store.request("POST", "moto-api/reset-auth", b"0")
    try:
        with pytest.raises(CacheError, match=r"ACCESS_DENIED.*credentials of|ACCESS_DENIED.*AWS_ACCESS_KEY_ID"):
            Bucket(s3.address())
    finally:
        object_store.request("POST", "moto-api/reset-auth", b"inf")
    Bucket(s3.address())


def test_a_machine_that_never_answers_is_not_waited_for(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_S", 1.0)
    monkeypatch.setattr(remote, "TRIES", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        began = time.monotonic()
        with pytest.raises(CacheError, match="curlCode: 28"):
            Bucket(s3.address().replace(s3.store.host, f"127.0.0.1:{silent.getsockname()[1]}"))
        assert time.monotonic() - began < 10


def test_a_region_is_not_needed_where_the_endpoint_is_given(s3: S3) -> None:
    store = Bucket(s3.address().replace("&region=us-east-1", ""))
    store.write("x", b"1")
    assert store.read("x") == b"1"


@pytest.mark.parametrize("secret", ["s3://key:topsecret@{}", "s3://key:top/secret@{}", "s3://key:top%2Fsecret@{}"])
def test_a_secret_in_an_address_is_refused_unseen_and_kept_nowhere(
    s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str], secret: str
) -> None:
    address = secret.format(s3.address().removeprefix("s3://"))
    with pytest.raises(CacheError) as error:
        store_at(address)
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--set", f"storage={tmp_path}", "--set", f"cache.storage={address}"])
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    for text in (str(error.value), printed.err + printed.out):
        assert not re.search("top.{0,3}secret", text)
        assert "AWS_SECRET_ACCESS_KEY" in text
    assert not list(tmp_path.iterdir())


# --- addresses


def test_names_go_into_the_path_and_options_stay() -> None:
    assert below("s3://bucket/caches/?region=x&scheme=http", "key") == "s3://bucket/caches/key?region=x&scheme=http"
    assert below("s3://bucket?region=x", "key") == "s3://bucket/key?region=x"
    assert below("gs://bucket", "key") == "gs://bucket/key"


def test_a_file_address_is_a_folder(tmp_path: Path) -> None:
    address = f"file://{tmp_path}/a%20folder"
    store = store_at(address)
    assert isinstance(store, Folder)
    assert store.folder == tmp_path / "a folder"
    cache = a_cache(below(address, "key"), tmp_path)
    cache.ensure(0)
    assert (tmp_path / "a folder" / "key" / "00000.arrow").exists()
    assert names_below(address) == ["key"]
    with pytest.raises(StorageError, match="file:///folder"):
        store_at("file://folder")
