"""A client of an object store, in a process of its own: for each line "up" or "down" on standard input it moves the
objects, and prints {"seconds", "cpu", "memory", "right"}.

Usage: object_client.py NAME ENDPOINT OBJECTS OBJECT_BYTES PART_BYTES CONNECTIONS
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

KEY, SECRET, BUCKET = "AKIDBENCH", "bench-secret", "bucket"


@dataclass
class Job:
    endpoint: str
    objects: int
    object_bytes: int
    part: int
    connections: int

    def __post_init__(self) -> None:
        words = np.arange(self.object_bytes // 4, dtype=np.uint32) * np.uint32(2654435761)
        self.content = [words + np.uint32(i) for i in range(self.objects)]
        self.target = [np.zeros_like(words) for _ in range(self.objects)]

    def ranges(self) -> list[tuple[int, int, int]]:
        """(object, first byte, end) of every part."""
        return [
            (i, begin, min(begin + self.part, self.object_bytes))
            for i in range(self.objects)
            for begin in range(0, self.object_bytes, self.part)
        ]

    def view(self, arrays: list[Any], i: int) -> memoryview:
        return memoryview(arrays[i]).cast("B")

    def ranges_down(self, get: Callable[[int, int, int], Any]) -> None:
        """By a client's own call for a range, on as many threads as connections."""

        def one(piece: tuple[int, int, int]) -> None:
            i, begin, end = piece
            self.view(self.target, i)[begin:end] = memoryview(get(i, begin, end)).cast("B")

        with ThreadPoolExecutor(self.connections) as threads:
            list(threads.map(one, self.ranges()))


class Client(Protocol):
    def up(self) -> None: ...
    def down(self) -> None: ...


class Ours:
    def __init__(self, job: Job) -> None:
        import torch
        from torchsnapshot import Snapshot, StateDict, knobs

        self._snapshot, self._limit = Snapshot, lambda: knobs.override_max_per_rank_io_concurrency(job.connections)
        self._options = {
            "endpoint_url": job.endpoint,
            "access_key_id": KEY,
            "secret_access_key": SECRET,
            "part_size": job.part,
        }
        as_tensors = lambda arrays: StateDict(  # noqa: E731
            **{f"t{i}": torch.from_numpy(array.view(np.int32)) for i, array in enumerate(arrays)}
        )
        self._state, self._target = {"m": as_tensors(job.content)}, {"m": as_tensors(job.target)}

    def up(self) -> None:
        with self._limit():
            self._snapshot.take("s3://bucket/ours", self._state, storage_options=self._options, progress=False)

    def down(self) -> None:
        with self._limit():
            self._snapshot("s3://bucket/ours", storage_options=self._options).restore(self._target, progress=False)


class Boto3:
    def __init__(self, job: Job) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self._job = job
        self._client = boto3.client(
            "s3",
            endpoint_url=job.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            config=Config(max_pool_connections=job.connections),
        )
        self._config = TransferConfig(
            multipart_chunksize=job.part, multipart_threshold=job.part, max_concurrency=job.connections
        )

    def up(self) -> None:
        import io

        for i in range(self._job.objects):
            body = io.BytesIO(self._job.view(self._job.content, i))
            self._client.upload_fileobj(body, BUCKET, f"boto3/{i}", Config=self._config)

    def down(self) -> None:
        def get(i: int, begin: int, end: int) -> bytes:
            answer = self._client.get_object(Bucket=BUCKET, Key=f"boto3/{i}", Range=f"bytes={begin}-{end - 1}")
            return bytes(answer["Body"].read())

        self._job.ranges_down(get)


class Obstore:
    def __init__(self, job: Job) -> None:
        from obstore.store import S3Store

        self._job = job
        self._store = S3Store(
            BUCKET,
            endpoint=job.endpoint,
            region="us-east-1",
            access_key_id=KEY,
            secret_access_key=SECRET,
            client_options={"allow_http": True, "timeout": "600s"},
        )

    def up(self) -> None:
        import obstore

        for i in range(self._job.objects):
            body = bytes(self._job.view(self._job.content, i))
            obstore.put(
                self._store, f"obstore/{i}", body, chunk_size=self._job.part, max_concurrency=self._job.connections
            )

    def down(self) -> None:
        import obstore

        self._job.ranges_down(
            lambda i, begin, end: obstore.get_range(self._store, f"obstore/{i}", start=begin, length=end - begin)
        )


class S3fs:
    def __init__(self, job: Job) -> None:
        import s3fs

        self._job = job
        self._fs = s3fs.S3FileSystem(
            key=KEY,
            secret=SECRET,
            client_kwargs={"endpoint_url": job.endpoint, "region_name": "us-east-1"},
            config_kwargs={"max_pool_connections": job.connections},
            max_concurrency=job.connections,
            default_block_size=job.part,
            skip_instance_cache=True,
        )

    def up(self) -> None:
        for i in range(self._job.objects):
            body = bytes(self._job.view(self._job.content, i))
            self._fs.pipe_file(f"{BUCKET}/s3fs/{i}", body, chunksize=self._job.part)

    def down(self) -> None:
        pieces = self._job.ranges()
        for first in range(0, len(pieces), self._job.connections):
            some = pieces[first : first + self._job.connections]
            got = self._fs.cat_ranges(
                [f"{BUCKET}/s3fs/{i}" for i, _, _ in some], [b for _, b, _ in some], [e for _, _, e in some]
            )
            for (i, begin, end), content in zip(some, got, strict=True):
                self._job.view(self._job.target, i)[begin:end] = content


class Awscrt:
    def __init__(self, job: Job) -> None:
        from awscrt import auth, http, io, s3

        self._http, self._s3, self._job = http, s3, job
        self._host = job.endpoint.removeprefix("http://")
        credentials = auth.AwsCredentialsProvider.new_static(KEY, SECRET)
        bootstrap = io.ClientBootstrap(group := io.EventLoopGroup(0), io.DefaultHostResolver(group))
        self._client = s3.S3Client(
            bootstrap=bootstrap,
            region="us-east-1",
            tls_mode=s3.S3RequestTlsMode.DISABLED,
            part_size=job.part,
            signing_config=s3.create_default_s3_signing_config(region="us-east-1", credential_provider=credentials),
            throughput_target_gbps=25,
            memory_limit=1 << 30,
        )

    def _request(self, method: str, i: int) -> Any:
        headers = self._http.HttpHeaders([("host", self._host)])
        if method == "PUT":
            headers.add("content-length", str(self._job.object_bytes))
        return self._http.HttpRequest(method, f"/{BUCKET}/awscrt/{i}", headers)

    def up(self) -> None:
        import io

        waiting = []
        for i in range(self._job.objects):
            request = self._request("PUT", i)
            request.body_stream = io.BytesIO(self._job.view(self._job.content, i))
            waiting.append(self._client.make_request(type=self._s3.S3RequestType.PUT_OBJECT, request=request))
        for request in waiting:
            request.finished_future.result(600)

    def down(self) -> None:
        waiting = []
        for i in range(self._job.objects):
            view = self._job.view(self._job.target, i)

            def on_body(chunk: bytes, offset: int, view: memoryview = view, **_: Any) -> None:
                view[offset : offset + len(chunk)] = chunk

            waiting.append(
                self._client.make_request(
                    type=self._s3.S3RequestType.GET_OBJECT, request=self._request("GET", i), on_body=on_body
                )
            )
        for request in waiting:
            request.finished_future.result(600)


class Dcp:
    """torch.distributed.checkpoint on s3torchconnector."""

    def __init__(self, job: Job) -> None:
        import torch
        import torch.distributed.checkpoint as dcp
        from s3torchconnector import S3ClientConfig
        from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

        os.environ.update(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET)
        self._dcp, self._reader, self._writer = dcp, S3StorageReader, S3StorageWriter
        self._where = {"region": "us-east-1", "path": f"s3://{BUCKET}/dcp/"}
        self._config = S3ClientConfig(force_path_style=True, part_size=job.part)
        self._endpoint = job.endpoint
        as_tensors = lambda arrays: {  # noqa: E731
            f"t{i}": torch.from_numpy(array.view(np.int32)) for i, array in enumerate(arrays)
        }
        self._state, self._target = as_tensors(job.content), as_tensors(job.target)

    def _storage(self, kind: Any) -> Any:
        made = kind(**self._where, s3client_config=self._config)
        made.fs._client._endpoint = self._endpoint
        return made

    def up(self) -> None:
        self._dcp.save(self._state, storage_writer=self._storage(self._writer), no_dist=True)

    def down(self) -> None:
        self._dcp.load(self._target, storage_reader=self._storage(self._reader), no_dist=True)


CLIENTS: dict[str, Callable[[Job], Client]] = {
    "torchsnapshot": Ours,
    "boto3": Boto3,
    "obstore": Obstore,
    "s3fs": S3fs,
    "awscrt": Awscrt,
    "DCP, s3torchconnector": Dcp,
}


def peak_memory() -> int:
    """Of this process since reset_peak, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    name, endpoint, *numbers = sys.argv[1:]
    job = Job(endpoint, *map(int, numbers))
    client = CLIENTS[name](job)
    for line in sys.stdin:
        direction = line.strip()
        if direction == "down":
            for array in job.target:
                array.fill(0)
        gc.collect()
        reset_peak()
        memory, start, times = peak_memory(), time.perf_counter(), os.times()
        getattr(client, direction)()
        seconds, after = time.perf_counter() - start, os.times()
        print(
            json.dumps(
                {
                    "seconds": seconds,
                    "cpu": after.user + after.system - times.user - times.system,
                    "memory": peak_memory() - memory,
                    "right": direction == "up" or all(map(np.array_equal, job.content, job.target)),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
