"""Servers and clients that are not ours: moto (STS, IMDS), gcp-storage-emulator (JSON API), radosgw (S3), boto3."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cli_support import run, run_json
from object_stores import KEYS, TOKEN, ObjectServer, make_state, s3_options
from torchsnapshot import Snapshot

boto3: Any = pytest.importorskip("boto3")
pytestmark = pytest.mark.no_sanitizer


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "STORAGE_EMULATOR")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not open port {port}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def round_trip(url: str, options: dict[str, Any]) -> None:
    """Take, take again over it, restore, read: the main job."""
    Snapshot.take(url, make_state(), storage_options=options)
    state = make_state(2.0)
    Snapshot.take(url, state, storage_options=options)
    target = make_state(0.0)
    Snapshot(url, storage_options=options).restore(target)
    for key, value in state["state"].items():
        restored = target["state"][key]
        assert torch.equal(restored, value) if torch.is_tensor(value) else restored == value
    assert torch.equal(Snapshot(url, storage_options=options).read_object("0/state/t7"), state["state"]["t7"])


def test_boto3_reads_what_we_write_and_the_reverse() -> None:
    with ObjectServer(keys=KEYS, tokens=(TOKEN,)) as server:
        client = boto3.client(
            "s3",
            endpoint_url=server.url,
            region_name="us-east-1",
            aws_access_key_id="AKIDTEST",
            aws_secret_access_key=KEYS["AKIDTEST"],
        )
        Snapshot.take("s3://bucket/ä b+c/1", make_state(), storage_options=s3_options(server))
        listed = client.list_objects_v2(Bucket="bucket", Prefix="ä b+c/1/")["Contents"]
        for entry in listed:  # by a foreign client to another place
            content = client.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read()
            client.put_object(Bucket="bucket", Key="copy/" + entry["Key"].removeprefix("ä b+c/1/"), Body=content)
        target = make_state(0.0)
        Snapshot("s3://bucket/copy", storage_options=s3_options(server)).restore(target)
        assert torch.equal(target["state"]["big"], make_state()["state"]["big"])


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    pytest.importorskip("moto.server")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def make_moto_bucket(moto: str, name: str) -> None:
    client = boto3.client(
        "s3", endpoint_url=moto, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    client.create_bucket(Bucket=name)


def test_moto_keys(moto: str) -> None:
    make_moto_bucket(moto, "plain")
    options = {"endpoint_url": moto, "access_key_id": "x", "secret_access_key": "y", "part_size": "5MiB"}
    round_trip("s3://plain/run", options)
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        Snapshot.take("s3://nowhere/run", make_state(), storage_options=options)


def test_moto_web_identity(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    make_moto_bucket(moto, "pod")
    (tmp_path / "token").write_text("a-token")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pod")
    round_trip("s3://pod/run", {"part_size": "5MiB"})


def test_moto_assumed_role(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    make_moto_bucket(moto, "role")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(
        "[profile base]\naws_access_key_id = x\naws_secret_access_key = y\n"
        "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = base\n"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    round_trip("s3://role/run", {"profile": "role", "part_size": "5MiB"})


def test_moto_instance(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_moto_bucket(moto, "instance")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", moto)
    round_trip("s3://instance/run", {"endpoint_url": moto, "part_size": "5MiB"})


def test_gcp_storage_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gcp_storage_emulator")
    port = free_port()
    code = "import sys; from gcp_storage_emulator.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    process = subprocess.Popen(
        [*command, "--default-bucket=bucket"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_port(port, process)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        round_trip("gs://bucket/run", {"part_size": "5MiB"})
        with pytest.raises(RuntimeError, match="Failed to read"):
            Snapshot("gs://bucket/none").restore(make_state())
    finally:
        stop(process)


@pytest.fixture(scope="module")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A Ceph of one monitor and one in-memory store with the S3 gateway, on loopback."""
    for program in ("radosgw", "ceph-mon", "ceph-osd", "radosgw-admin"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install radosgw ceph-mon ceph-osd")
    from ceph_cluster import CephCluster

    cluster = CephCluster(tmp_path_factory.mktemp("ceph"))
    try:
        cluster.__enter__()
    except RuntimeError as error:  # Ceph's own trouble, on a busy machine for example, is no judgement of ours
        pytest.skip(f"the judge is not there: {str(error)[:200]}")
    try:
        yield cluster.s3_options()
    finally:
        cluster.__exit__(None, None, None)


def client_of(radosgw: dict[str, Any]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=radosgw["endpoint_url"],
        region_name="default",
        aws_access_key_id=radosgw["access_key_id"],
        aws_secret_access_key=radosgw["secret_access_key"],
    )


def test_radosgw(radosgw: dict[str, Any]) -> None:
    client_of(radosgw).create_bucket(Bucket="bucket")
    round_trip("s3://bucket/run ä+1/x", {**radosgw, "part_size": "5MiB"})
    with pytest.raises(PermissionError, match=r"SignatureDoesNotMatch"):
        Snapshot.take("s3://bucket/y", make_state(), storage_options={**radosgw, "secret_access_key": "wrong"})


def test_the_command_on_radosgw(
    radosgw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", radosgw["endpoint_url"])
    monkeypatch.setenv("AWS_REGION", radosgw["region"])
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        f"[default]\naws_access_key_id = {radosgw['access_key_id']}\n"
        f"aws_secret_access_key = {radosgw['secret_access_key']}\n"
    )
    client = client_of(radosgw)
    client.create_bucket(Bucket="command")
    a, b = "s3://command/ä b/1", "s3://command/ä b/2"
    Snapshot.take(a, make_state(), storage_options={"part_size": "5MiB"})
    Snapshot.take(b, make_state(2.0), storage_options={"part_size": "5MiB"})
    assert {"0/state/big", "0/state/step"} <= {entry["path"] for entry in run_json("ls", a)["entries"]}
    assert run_json("info", a)["objects_missing"] == 0
    assert run("cat", b, "state/step").stdout == "2\n"
    assert run_json("verify", a)["intact"]
    assert run_json("diff", a, b, status=1)["differences"]
    # What a process that died would leave: an object, and uploads with and without parts.
    lost = "ä b/1/data/" + "a" * 32
    client.put_object(Bucket="command", Key=f"{lost}/0-0", Body=b"left over")
    for name in ("0-1", "0-2"):
        upload = client.create_multipart_upload(Bucket="command", Key=f"{lost}/{name}")["UploadId"]
    client.upload_part(Bucket="command", Key=f"{lost}/0-2", UploadId=upload, PartNumber=1, Body=bytes(5000))
    client.create_multipart_upload(Bucket="command", Key="ä b/10/data/not-ours")
    assert run_json("prune", a)["removed_unfinished"] == 0  # too young
    report = run_json("prune", "--older-than", "0", a)
    assert (report["removed_objects"], report["removed_unfinished"]) == (1, 2)
    assert report["removed_bytes"] == 5009
    left = [upload["Key"] for upload in client.list_multipart_uploads(Bucket="command").get("Uploads", [])]
    assert left == ["ä b/10/data/not-ours"]
    assert run_json("verify", a)["intact"]
    assert run_json("rm", "-y", a)["remaining"] == 0
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="command")["Contents"]]
    assert keys
    assert all(key.startswith("ä b/2/") for key in keys)
