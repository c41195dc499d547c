"""Snapshots in object stores, as a user takes and restores them; the store is our test server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from object_stores import KEYS, TOKEN, ObjectServer, TokenServer, gcs_options, make_certificate, make_state, s3_options
from torchsnapshot import Snapshot, StateDict
from torchsnapshot.event_handlers import register_event_handler, unregister_event_handler
from torchsnapshot.io_types import ReadIO, WriteIO
from torchsnapshot.storage_plugin import url_to_storage_plugin
from torchsnapshot.storage_plugins.gcs import GCSStoragePlugin
from torchsnapshot.storage_plugins.s3 import S3StoragePlugin
from torchsnapshot.test_utils import check_state_dict_eq


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "STORAGE_EMULATOR", "CLOUDSDK", "GCE_")) or name.lower().endswith(
            "_proxy"
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer(keys=KEYS, tokens=(TOKEN,)) as server:
        yield server


def place(kind: str, server: ObjectServer, name: str = "run/1") -> tuple[str, dict[str, Any]]:
    if kind == "s3":
        return f"s3://bucket/{name}", s3_options(server, part_size="5MiB")
    return f"gs://bucket/{name}", gcs_options(server, part_size="5MiB", api="json" if kind == "gs-json" else "xml")


def keys(server: ObjectServer) -> list[str]:
    return sorted(server.buckets["bucket"])


@pytest.mark.parametrize("kind", ["s3", "gs", "gs-json"])
def test_take_restore_overwrite(kind: str, server: ObjectServer) -> None:
    url, options = place(kind, server)
    state = make_state()
    Snapshot.take(url, state, storage_options=options)
    first = keys(server)
    assert "run/1/.snapshot_metadata" in first
    assert server.counts["UploadPart"] >= 3
    target = {
        "state": StateDict(
            **{k: torch.zeros_like(v) if torch.is_tensor(v) else None for k, v in state["state"].items()}
        )
    }
    big = target["state"]["big"]
    Snapshot(url, storage_options=options).restore(target)
    assert check_state_dict_eq(target["state"], state["state"])
    assert target["state"]["big"] is big  # in place
    assert torch.equal(Snapshot(url, storage_options=options).read_object("0/state/t3"), state["state"]["t3"])

    again = make_state(2.0)
    pending = Snapshot.async_take(url, again, storage_options=options)
    again["state"]["big"].zero_()
    pending.wait()
    Snapshot(url, storage_options=options).restore(target)
    assert torch.equal(target["state"]["big"], make_state(2.0)["state"]["big"])
    assert set(keys(server)) & set(first) == {"run/1/.snapshot_metadata"}  # the old objects are gone
    assert not server.uploads


def test_a_failed_take_leaves_the_old_snapshot_and_nothing_else(server: ObjectServer) -> None:
    url, options = place("s3", server)
    Snapshot.take(url, make_state(), storage_options=options)
    before = keys(server)
    server.inject("status", method="PUT", query="partNumber=3", status=403, code="AccessDenied", count=1000)
    with pytest.raises(PermissionError, match=r"UploadPart s3://bucket/run/1/.*403 AccessDenied.*PutObject"):
        Snapshot.take(url, make_state(2.0), storage_options=options)
    assert keys(server) == before
    assert not server.uploads  # aborted
    server.clear()
    server.inject("status", method="PUT", path=".snapshot_metadata", status=403, code="AccessDenied", count=1000)
    with pytest.raises(PermissionError):
        Snapshot.take(url, make_state(2.0), storage_options=options)
    server.clear()
    assert keys(server) == before
    target = make_state(0.0)
    Snapshot(url, storage_options=options).restore(target)
    assert torch.equal(target["state"]["big"], make_state()["state"]["big"])


def test_through_a_storm_of_faults(server: ObjectServer) -> None:
    url, options = place("s3", server)
    for kind in ("status", "reset_upload", "lose_response", "close_after"):
        server.inject(kind, method="PUT", at=1000, count=2, path="data/")
    server.inject("error_in_200", method="POST", query="uploadId", code="InternalError")
    state = make_state()
    Snapshot.take(url, state, storage_options=options)
    for kind in ("status", "reset_download", "close_download", "close_after"):
        server.inject(kind, method="GET", at=1000, count=2, path="data/")
    target = make_state(0.0)
    Snapshot(url, storage_options=options).restore(target)
    assert torch.equal(target["state"]["big"], state["state"]["big"])
    assert sum(server.fault_counts.values()) == 17
    assert not server.uploads


def test_a_bit_that_flips_on_the_way_down_is_found(server: ObjectServer) -> None:
    url, options = place("s3", server)
    Snapshot.take(url, make_state(), storage_options=options)
    server.inject("flip", method="GET", path="data/", at=2_000, count=1000)
    with pytest.raises(RuntimeError, match="CRC-32C 0x.*expected"):
        Snapshot(url, storage_options=options).restore(make_state(0.0))


def test_errors_say_what_to_do(server: ObjectServer) -> None:
    _, options = place("s3", server)
    with pytest.raises(FileNotFoundError, match=r"NoSuchBucket.*request id REQ.*create the bucket"):
        Snapshot.take("s3://nowhere/x", make_state(), storage_options=options)
    with pytest.raises(RuntimeError, match="Failed to read .snapshot_metadata"):
        Snapshot("s3://bucket/none", storage_options=options).restore(make_state())
    with pytest.raises(ValueError, match=r"unknown storage option 'regoin'; s3:// knows .*region.*part_size|knows"):
        Snapshot("s3://bucket/x", storage_options={"regoin": "x"}).restore(make_state())
    with pytest.raises(ValueError, match="part_size.*5242880"):
        Snapshot("s3://bucket/x", storage_options={"part_size": 1000}).restore(make_state())
    with pytest.raises(PermissionError, match="no AWS credentials were found.*anonymous=true"):
        Snapshot("s3://bucket/x", storage_options={"endpoint_url": server.url}).restore(make_state())


def test_what_may_not_be_looked_at_is_not_called_incomplete(server: ObjectServer) -> None:
    """A job that takes this for "no checkpoint yet" would start from scratch and overwrite one."""
    url, options = place("s3", server)
    Snapshot.take(url, make_state(), storage_options=options)
    server.forbidden = ".snapshot_metadata"
    denied = r"reading .snapshot_metadata.*GetObject s3://bucket/run/1/.*403 AccessDenied.*permission for GetObject"
    with pytest.raises(PermissionError, match=denied):
        Snapshot(url, storage_options=options).restore(make_state())
    with pytest.raises(PermissionError, match=denied):
        Snapshot(url, storage_options=options).get_manifest()
    server.forbidden = ""
    server.inject("status", method="GET", count=100_000)
    with pytest.raises(RuntimeError, match=r"Failed to read .snapshot_metadata.*503 SlowDown.*overloaded"):
        Snapshot(url, storage_options={**options, "retry_timeout": 0.2}).restore(make_state())


def test_no_secret_in_any_output(server: ObjectServer, caplog: pytest.LogCaptureFixture) -> None:
    secrets = ["wrong-secret-1", "session-token-2", "bearer-token-3"]
    events: list[Any] = []

    class Handler:
        def handle_event(self, event: Any) -> None:
            events.append(event)

    handler = Handler()
    register_event_handler(handler)
    caplog.set_level(logging.DEBUG)
    attempts: list[tuple[str, dict[str, Any]]] = [
        ("s3://bucket/x", s3_options(server, secret_access_key=secrets[0], session_token=secrets[1])),
        ("gs://bucket/x", gcs_options(server, token=secrets[2])),
        ("s3://bucket/x", {"secret_access_key": secrets[0]}),
        ("s3://bucket/x", {"secret_access_key": [secrets[0]], "access_key_id": "a"}),
        ("s3://bucket/x", {"endpoint_url": f"http://user:{secrets[0]}@127.0.0.1/"}),
        ("s3://bucket/x", {"endpoint_url": server.url, "credentials": lambda: {"access_key": secrets[0]}}),
    ]
    texts = []
    try:
        for url, options in attempts:
            for work in (
                lambda: Snapshot.take(url, make_state(), storage_options=options),  # noqa: B023
                lambda: Snapshot(url, storage_options=options).restore(make_state()),  # noqa: B023
            ):
                with pytest.raises(Exception) as caught:  # noqa: PT011
                    work()
                texts += [str(caught.value), repr(caught.value)]
    finally:
        unregister_event_handler(handler)
    good = s3_options(server)
    Snapshot.take("s3://bucket/good", make_state(), storage_options=good)
    stored = b"".join(bytes(piece) for item in server.buckets["bucket"].values() for piece in item.pieces)
    texts += [repr(event) for event in events] + [caplog.text]
    assert events
    for secret in [*secrets, KEYS["AKIDTEST"], "AWS4-HMAC"]:
        assert not [text for text in texts if secret in text]
        assert secret.encode() not in stored


def test_credentials_from_a_callback(server: ObjectServer) -> None:
    calls = []

    def credentials() -> dict[str, str]:
        calls.append(1)
        return {"access_key_id": "AKIDTEST", "secret_access_key": KEYS["AKIDTEST"], "session_token": f"t{len(calls)}"}

    options = {"endpoint_url": server.url, "credentials": credentials}
    Snapshot.take("s3://bucket/x", make_state(), storage_options=options)
    assert len(calls) == 1
    server.expired_tokens = ["t2"]  # a handle of its own asks anew, and once more when that is refused
    Snapshot("s3://bucket/x", storage_options=options).restore(make_state(0.0))
    assert len(calls) == 3
    Snapshot.take("gs://bucket/y", make_state(), storage_options={**options, "credentials": lambda: {"token": TOKEN}})

    class OwnError(Exception):
        pass

    def failing() -> dict[str, str]:
        raise OwnError("no login")

    with pytest.raises(OwnError, match="no login"):
        Snapshot.take("s3://bucket/z", make_state(), storage_options={**options, "credentials": failing})
    for wrong in (lambda: None, lambda: {"token": 1}, lambda: {"token": "x"}):
        with pytest.raises(Exception, match="credentials callback"):
            Snapshot.take("s3://bucket/z", make_state(), storage_options={**options, "credentials": wrong})
    with pytest.raises(ValueError, match="must be a function"):
        Snapshot.take("s3://bucket/z", make_state(), storage_options={"credentials": "x"})
    with pytest.raises(ValueError, match="has no credentials"):
        Snapshot.take("memory://z", make_state(), storage_options={"credentials": failing})


def test_anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    with ObjectServer(anonymous=True) as server:
        for url in ("s3://bucket/x", "gs://bucket/y"):
            options = {"endpoint_url": server.url, "anonymous": True}
            Snapshot.take(url, make_state(), storage_options=options)
            Snapshot(url, storage_options=options).restore(make_state(0.0))


def test_environment_of_aws(server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    server.region = "eu-west-9"
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[profile work]\nregion = eu-west-9\n")
    (tmp_path / ".aws" / "credentials").write_text(
        f"[work]\naws_access_key_id = AKIDTEST\naws_secret_access_key = {KEYS['AKIDTEST']}\n"
    )
    Snapshot.take("s3://bucket/a", make_state(), storage_options={"profile": "work"})
    monkeypatch.setenv("AWS_PROFILE", "work")
    Snapshot.take("s3://bucket/b", make_state())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["AKIDTEST"])
    monkeypatch.setenv("AWS_REGION", "eu-west-9")
    Snapshot.take("s3://bucket/c", make_state())
    assert "error AuthorizationHeaderMalformed" not in server.counts
    with TokenServer() as tokens:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name)
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", tokens.url)
        Snapshot.take("s3://bucket/d", make_state())
        assert tokens.counts == {"instance": 1}


def test_service_account(server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    serialization: Any = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    rsa: Any = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    with TokenServer() as tokens:
        numbers = key.public_key().public_numbers()
        tokens.rsa_key = [numbers.n, numbers.e]
        file = tmp_path / "account.json"
        file.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "client_email": "me@project.iam.gserviceaccount.com",
                    "private_key_id": "key-1",
                    "private_key": pem,
                    "token_uri": f"{tokens.url}/token",
                }
            )
        )
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        Snapshot.take("gs://bucket/x", make_state(), storage_options={"endpoint_url": server.url})
        assert tokens.counts == {"jwt": 1}
        tokens.rsa_key = [numbers.n + 2, numbers.e]  # the server expects another key
        with pytest.raises(PermissionError, match=r"service account me@project.*400 invalid_grant"):
            Snapshot.take("gs://bucket/x", make_state(), storage_options={"endpoint_url": server.url})


def test_https_with_a_private_authority(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, certificate, key = make_certificate(tmp_path)
    with ObjectServer(keys=KEYS, tls=(certificate, key)) as server:
        options = s3_options(server)
        with pytest.raises(OSError, match=r"certificate not trusted.*ca_bundle or AWS_CA_BUNDLE"):
            Snapshot.take("s3://bucket/x", make_state(), storage_options=options)
        Snapshot.take("s3://bucket/x", make_state(), storage_options={**options, "ca_bundle": authority})
        monkeypatch.setenv("AWS_CA_BUNDLE", authority)
        target = make_state(0.0)
        Snapshot("s3://bucket/x", storage_options=options).restore(target)
        assert torch.equal(target["state"]["big"], make_state()["state"]["big"])
        assert server.connections <= 64


def test_virtual_hosted_addresses(server: ObjectServer) -> None:
    options = s3_options(server, endpoint_url=f"http://localhost:{server.port}", addressing_style="virtual")
    Snapshot.take("s3://bucket/x", make_state(), storage_options=options)
    assert server.last_headers["PutObject"]["host"] == f"bucket.localhost:{server.port}"
    assert "x/.snapshot_metadata" in keys(server)


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_plugins(kind: str, server: ObjectServer) -> None:
    url, options = place(kind, server, "some/prefix")
    plugin = url_to_storage_plugin(url, options)
    assert isinstance(plugin, S3StoragePlugin if kind == "s3" else GCSStoragePlugin)
    assert (plugin.bucket, plugin.root) == ("bucket", "some/prefix")  # type: ignore[attr-defined]

    async def run() -> None:
        await plugin.write(WriteIO(path="a/b", buf=b"0123456789"))
        await plugin.write(WriteIO(path="a/b", buf=memoryview(b"abcdefghij")))
        await asyncio.gather(*(plugin.write(WriteIO(path=f"a/{i}", buf=b"x" * i)) for i in range(20)))
        read = ReadIO(path="a/b")
        await plugin.read(read)
        assert read.buf.getvalue() == b"abcdefghij"
        read = ReadIO(path="a/b", byte_range=(2, 5))
        await plugin.read(read)
        assert read.buf.getvalue() == b"cde"
        with pytest.raises(RuntimeError, match="only 10 bytes"):
            await plugin.read(ReadIO(path="a/b", byte_range=(2, 50)))
        with pytest.raises(FileNotFoundError, match=r"bucket/some/prefix/none.*404"):
            await plugin.read(ReadIO(path="none"))
        await plugin.delete("a/b")
        assert "some/prefix/a/b" not in keys(server)
        await plugin.delete_dir("a")
        assert keys(server) == []
        await plugin.close()

    asyncio.run(run())


def test_other_schemes_through_fsspec(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("fsspec")
    state = make_state()
    url = f"file://{tmp_path}/a/snapshot"
    Snapshot.take(url, state)
    assert (tmp_path / "a" / "snapshot" / ".snapshot_metadata").exists()
    target = make_state(0.0)
    Snapshot(url).restore(target)
    assert check_state_dict_eq(target["state"], state["state"])
    assert torch.equal(Snapshot(str(tmp_path / "a" / "snapshot")).read_object("0/state/big"), state["state"]["big"])
    with pytest.raises(RuntimeError, match="no storage plugin|unknown storage scheme"):
        Snapshot.take("nosuchscheme://x", state)


@pytest.mark.no_sanitizer
def test_without_libcurl(tmp_path: pathlib.Path) -> None:
    program = (
        "import torch\nfrom torchsnapshot import Snapshot, StateDict\n"
        f"Snapshot.take({str(tmp_path / 's')!r}, {{'a': StateDict(x=1)}})\n"
        "Snapshot.take('s3://bucket/x', {'a': StateDict(x=1)})\n"
    )
    environment = {
        **os.environ,
        "TORCHSNAPSHOT_LIBCURL": "/nowhere/libcurl.so.4",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "apt-get install libcurl4" in done.stderr
    assert (tmp_path / "s" / ".snapshot_metadata").exists()
