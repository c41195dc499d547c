"""The test server of object stores is a real one: boto3 and obstore, which know nothing of us, work with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from servers.object_server import ObjectServer

boto3: Any = pytest.importorskip("boto3")
botocore: Any = pytest.importorskip("botocore")

KEYS = {"AKIDTEST": "secret/of+the=test"}


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer(keys=KEYS, tokens=("good-token",)) as server:
        yield server


def boto_client(server: ObjectServer, secret: str = KEYS["AKIDTEST"], **settings: Any) -> Any:
    options = {"s3": {"addressing_style": "path"}, "retries": {"max_attempts": 1}, **settings}
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name=server.region,
        aws_access_key_id="AKIDTEST",
        aws_secret_access_key=secret,
        config=botocore.config.Config(**options),
    )


def test_boto3_objects(server: ObjectServer) -> None:
    client = boto_client(server)
    for key in ("plain", "with space/ä/+%41&=?", "dots/../x", "a//b"):
        content = os.urandom(1000)
        client.put_object(Bucket="bucket", Key=key, Body=content)
        assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == content
        assert client.get_object(Bucket="bucket", Key=key, Range="bytes=10-19")["Body"].read() == content[10:20]
        assert client.head_object(Bucket="bucket", Key=key)["ContentLength"] == 1000
    with pytest.raises(client.exceptions.NoSuchKey):
        client.get_object(Bucket="bucket", Key="none")
    listed = client.list_objects_v2(Bucket="bucket", MaxKeys=2)
    keys = [entry["Key"] for entry in listed["Contents"]]
    while listed["IsTruncated"]:
        token = listed["NextContinuationToken"]
        listed = client.list_objects_v2(Bucket="bucket", MaxKeys=2, ContinuationToken=token)
        keys += [entry["Key"] for entry in listed["Contents"]]
    assert keys == sorted(["plain", "with space/ä/+%41&=?", "dots/../x", "a//b"])
    client.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": "plain"}, {"Key": "a//b"}]})
    client.delete_object(Bucket="bucket", Key="dots/../x")
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket="bucket")["Contents"]] == ["with space/ä/+%41&=?"]


def test_boto3_multipart_and_conditions(server: ObjectServer) -> None:
    client = boto_client(server)
    part = os.urandom(5 << 20)
    upload = client.create_multipart_upload(Bucket="bucket", Key="big")["UploadId"]
    tags = []
    for number, content in ((2, b"the end"), (1, part)):
        answer = client.upload_part(Bucket="bucket", Key="big", UploadId=upload, PartNumber=number, Body=content)
        tags.insert(0, {"PartNumber": number, "ETag": answer["ETag"]})
    client.complete_multipart_upload(
        Bucket="bucket", Key="big", UploadId=upload, MultipartUpload={"Parts": tags}, IfNoneMatch="*"
    )
    assert client.get_object(Bucket="bucket", Key="big")["Body"].read() == part + b"the end"
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        client.put_object(Bucket="bucket", Key="big", Body=b"x", IfNoneMatch="*")

    upload = client.create_multipart_upload(Bucket="bucket", Key="small")["UploadId"]
    tags = []
    for number in (1, 2):
        answer = client.upload_part(Bucket="bucket", Key="small", UploadId=upload, PartNumber=number, Body=b"x")
        tags.append({"PartNumber": number, "ETag": answer["ETag"]})
    with pytest.raises(botocore.exceptions.ClientError, match="EntityTooSmall"):
        client.complete_multipart_upload(Bucket="bucket", Key="small", UploadId=upload, MultipartUpload={"Parts": tags})
    client.abort_multipart_upload(Bucket="bucket", Key="small", UploadId=upload)
    assert "Uploads" not in client.list_multipart_uploads(Bucket="bucket")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"secret": "wrong"}, "SignatureDoesNotMatch"),
        ({"clock": 1000.0}, "RequestTimeTooSkewed"),
        ({"keys": {}}, "InvalidAccessKeyId"),
    ],
)
def test_strictness(server: ObjectServer, change: dict[str, Any], code: str) -> None:
    client = boto_client(server, secret=change.get("secret", KEYS["AKIDTEST"]))
    server.clock_offset = change.get("clock", 0.0)
    server.keys = change.get("keys", server.keys)
    with pytest.raises(botocore.exceptions.ClientError, match=code):
        client.put_object(Bucket="bucket", Key="x", Body=b"x")


def test_the_right_region_is_told(server: ObjectServer) -> None:
    client = boto_client(server)
    server.region = "eu-west-7"
    client.put_object(Bucket="bucket", Key="x", Body=b"x")  # boto3 takes the region from the error
    assert server.counts["error AuthorizationHeaderMalformed"] >= 1


def test_a_flipped_bit_is_refused(server: ObjectServer) -> None:
    server.inject("flip_upload", method="PUT", at=3, count=5)
    with pytest.raises(botocore.exceptions.ClientError, match="BadDigest|Sha256|SHA256|sha256"):
        boto_client(server).put_object(Bucket="bucket", Key="x", Body=b"content")


def test_obstore(server: ObjectServer) -> None:
    obstore: Any = pytest.importorskip("obstore")
    from obstore.store import S3Store

    store = S3Store(
        "bucket",
        endpoint=server.url,
        region=server.region,
        access_key_id="AKIDTEST",
        secret_access_key=KEYS["AKIDTEST"],
        client_options={"allow_http": True},
    )
    big = os.urandom(12 << 20)
    obstore.put(store, "a/big", big, use_multipart=True, chunk_size=5 << 20)
    obstore.put(store, "a/small", b"12345", mode="create")
    assert bytes(obstore.get(store, "a/big").bytes()) == big
    assert bytes(obstore.get_range(store, "a/big", start=100, end=200)) == big[100:200]
    assert sorted(entry["path"] for batch in obstore.list(store, "a") for entry in batch) == ["a/big", "a/small"]
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "a/small", b"1", mode="create")
    obstore.delete(store, ["a/big", "a/small"])
    assert [entry for batch in obstore.list(store) for entry in batch] == []
    assert server.counts["CompleteMultipartUpload"] == 1
