"""The command on s3:// and gs://: settings and credentials from the environment, as a user has them."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import command, run, run_json
from object_stores import KEYS, TOKEN, ObjectServer, TokenServer, make_state
from torchsnapshot import Snapshot

URL = {"s3": "s3://bucket/run/1", "gs": "gs://bucket/run/1", "gs-json": "gs://bucket/run/1"}
OTHER = {kind: url.replace("/1", "/2") for kind, url in URL.items()}


@pytest.fixture(params=["s3", "gs", "gs-json"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[ObjectServer]:
    """A store that the environment tells of, as on a user's machine."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "STORAGE_EMULATOR", "CLOUDSDK", "GCE_")) or name.lower().endswith(
            "_proxy"
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with TokenServer() as tokens, ObjectServer(keys=KEYS, tokens=(TOKEN,), anonymous=kind == "gs-json") as server:
        if kind == "s3":
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["AKIDTEST"])
        elif kind == "gs-json":
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url.removeprefix("http://"))
        else:
            login = {"type": "authorized_user", "client_id": "i", "client_secret": "client-secret"}
            login |= {"refresh_token": tokens.refresh_token, "token_uri": f"{tokens.url}/token"}
            (tmp_path / "login.json").write_text(json.dumps(login))
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "login.json"))
        yield server


def settings(kind: str, server: ObjectServer) -> list[str]:
    """Google's tools know no variable for the endpoint of the XML API."""
    return ["-o", f"endpoint_url={server.url}"] if kind == "gs" else []


def options(kind: str, server: ObjectServer) -> dict[str, Any]:
    return {"part_size": "5MiB", **({"endpoint_url": server.url} if kind == "gs" else {})}


def take(kind: str, server: ObjectServer, url: str, value: float = 1.0) -> None:
    Snapshot.take(url, make_state(value), storage_options=options(kind, server))


def data_keys(server: ObjectServer) -> list[str]:
    return sorted(key for key in server.buckets["bucket"] if "/data/" in key)


def test_looking(kind: str, server: ObjectServer, tmp_path: pathlib.Path) -> None:
    url, more = URL[kind], settings(kind, server)
    take(kind, server, url)
    server.clear()
    entries = {entry["path"]: entry for entry in run_json("ls", *more, url)["entries"]}
    assert entries["0/state/big"]["bytes"] == 12 << 20
    assert entries["0/state/step"]["type"] == "int"
    objects = len(data_keys(server))
    assert server.counts.get("HeadObject", 0) <= objects
    assert "0/state/t19" in run("ls", *more, "--names", url).stdout.splitlines()
    info = run_json("info", *more, url)
    assert info["objects"] == info["objects_with_checksums"] == objects
    assert info["objects_missing"] == 0
    assert run("cat", *more, url, "state/step").stdout == "1\n"
    assert run_json("cat", *more, url, "state/t3")["mean"] == 4.0
    run("cat", *more, url, "state/big", "--npy", str(tmp_path / "big.npy"))
    assert np.array_equal(np.load(tmp_path / "big.npy"), make_state()["state"]["big"].numpy())


def test_verify(kind: str, server: ObjectServer) -> None:
    url, more = URL[kind], settings(kind, server)
    take(kind, server, url)
    report = run_json("verify", *more, url)
    assert report["intact"]
    assert report["bytes_verified"] == report["object_bytes"] > 12 << 20
    [large] = [key for key in data_keys(server) if server.buckets["bucket"][key].size >= 12 << 20]
    stored = server.buckets["bucket"][large]
    whole = bytearray(b"".join(bytes(piece) for piece in stored.pieces))
    whole[7 << 20] ^= 1
    stored.pieces = [whole]
    [finding] = run_json("verify", *more, url, status=1)["findings"]
    assert finding["kind"] == "WRONG_BYTES"
    assert finding["range"][0] <= 7 << 20 < finding["range"][1]
    stored.pieces = [whole[:-1]]
    assert {f["kind"] for f in run_json("verify", *more, url, status=1)["findings"]} >= {"WRONG_SIZE"}
    del server.buckets["bucket"][large]
    [finding] = run_json("verify", *more, "--quick", url, status=1)["findings"]
    assert finding["kind"] == "MISSING_OBJECT"


def test_diff(kind: str, server: ObjectServer, tmp_path: pathlib.Path) -> None:
    url, more = URL[kind], settings(kind, server)
    take(kind, server, url)
    take(kind, server, OTHER[kind])
    assert run_json("diff", *more, url, OTHER[kind])["differences"] == []
    take(kind, server, OTHER[kind], 2.0)
    found = {d["path"]: d for d in run_json("diff", *more, url, OTHER[kind], status=1)["differences"]}
    assert "state/big" in found or "0/state/big" in found
    if not more:  # with a folder
        Snapshot.take(str(tmp_path / "local"), make_state())
        assert run_json("diff", url, str(tmp_path / "local"))["differences"] == []


def test_rm(kind: str, server: ObjectServer) -> None:
    url, more = URL[kind], settings(kind, server)
    take(kind, server, url)
    take(kind, server, OTHER[kind])
    before = set(server.buckets["bucket"])
    mine = {key for key in before if key.startswith("run/1/")}
    assert run_json("rm", *more, "--dry-run", url)["objects"] == len(mine)
    report = run_json("rm", *more, "-y", url)
    assert report["objects"] == len(mine)
    assert report["bytes"] > 12 << 20
    assert set(server.buckets["bucket"]) == before - mine
    assert "no snapshot" in run("rm", *more, "-y", url, status=2).stderr


def test_prune(kind: str, server: ObjectServer) -> None:
    url, more = URL[kind], settings(kind, server)
    take(kind, server, url)
    committed = set(server.buckets["bucket"])
    server.age = 3 * 86400
    take(kind, server, OTHER[kind])
    server.age = 0
    bucket = server.buckets["bucket"]
    for key in [key for key in bucket if key.startswith("run/2/")]:  # as what a take to the first place left
        content = bucket.pop(key)
        if not key.endswith(".snapshot_metadata"):
            bucket[key.replace("run/2/", "run/1/")] = content
    lost = len(set(bucket) - committed)
    assert lost >= 2
    assert run_json("prune", *more, "--dry-run", url)["removed_objects"] == lost
    assert "kept take" in run("prune", *more, "--older-than", "1w", url).stdout
    report = run_json("prune", *more, url)
    assert report["removed_objects"] == lost
    assert report["removed_bytes"] > 12 << 20
    assert report["notices"] == []
    assert set(bucket) == committed
    assert run("prune", *more, "--older-than", "0", url).stdout == "no left-overs\n"
    assert run_json("verify", *more, url)["intact"]


@pytest.mark.no_sanitizer
@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_prune_after_kill_9(kind: str, server: ObjectServer) -> None:
    url, more = URL[kind], settings(kind, server)
    take(kind, server, url)
    committed = set(server.buckets["bucket"])
    program = (
        "from object_stores import make_state\nfrom torchsnapshot import Snapshot\n"
        f"Snapshot.take({url!r}, make_state(2.0), storage_options={options(kind, server)!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    server.inject("stall_upload", method="PUT", query="partNumber=3", at=1000, count=1000)
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        end = time.monotonic() + 120
        while not any(len(upload.parts) == 2 for upload in list(server.uploads.values())):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    server.clear()
    assert len(server.uploads) == 1
    assert ", 1 unfinished upload, 10.0 MiB" in run("prune", *more, "--dry-run", "--older-than", "0", url).stdout
    report = run_json("prune", *more, "--older-than", "0", url)
    assert report["removed_unfinished"] == 1
    assert report["removed_bytes"] >= 10 << 20
    assert server.uploads == {}
    assert set(server.buckets["bucket"]) == committed
    target = make_state(0.0)
    Snapshot(url, storage_options=options(kind, server)).restore(target)
    assert torch.equal(target["state"]["big"], make_state()["state"]["big"])


@pytest.mark.parametrize("kind", ["s3"])
def test_errors(kind: str, server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    take(kind, server, URL[kind])
    for name in ("ls", "info", "verify", "prune"):
        server.forbidden = ".snapshot_metadata"
        error = run_json(name, URL[kind], status=2)["error"]
        assert error["code"] == "PERMISSION_DENIED"
        assert "GetObject s3://bucket/run/1/.snapshot_metadata: 403 AccessDenied" in error["message"]
        assert "the environment" in error["message"]
        assert "permission for GetObject" in error["message"]
        server.forbidden = ""
        missing = run(name, "s3://nowhere/x", status=2).stderr
        assert "NoSuchBucket" in missing
        assert "create the bucket" in missing
    assert "Failed to read .snapshot_metadata" in run("ls", "s3://bucket/none", status=2).stderr
    assert "unknown storage option 'regoin'" in run("ls", "-o", "regoin=x", URL[kind], status=2).stderr
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    refused = run("verify", URL[kind], status=2).stderr
    assert "SignatureDoesNotMatch" in refused
    assert "hush" not in refused
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "no AWS credentials were found" in run("ls", URL[kind], status=2).stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "no connection" in run("ls", "-o", "anonymous=true", URL[kind], status=2).stderr


@pytest.mark.parametrize("kind", ["s3"])
@pytest.mark.no_sanitizer
def test_ctrl_c_ends_a_command_that_waits(kind: str, server: ObjectServer) -> None:
    take(kind, server, URL[kind])
    server.inject("stall_download", method="GET", path="/data/", at=100, count=1000)
    process = subprocess.Popen([command(), "verify", URL[kind]], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while server.fault_counts.get("stall_download", 0) == 0:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(2)
    process.communicate(timeout=60)
    assert process.returncode == 130
