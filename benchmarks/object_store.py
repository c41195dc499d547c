"""Take and restore on s3:// beside other clients, against the test server in memory (tests/servers/object_server.py).

Interleaved rounds on loopback: every client moves the same bytes in 16 MiB parts; ours moves a snapshot with all that
belongs to it (metadata, checksums, commit). Medians of wall time and of the client's own CPU seconds per GiB, requests,
and the peak of the client's memory beside the data. With --latency and --rate the server answers late and each
connection is slow: then parallelism decides.

Usage: PYTHONPATH=build/release/python python benchmarks/object_store.py [--gib 4] [--rounds 3]
           [--latency 0.05 --rate 100e6]
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torchsnapshot import Snapshot, StateDict

SERVER = Path(__file__).resolve().parents[1] / "tests" / "servers" / "object_server.py"
PART = 16 << 20
OBJECT = 256 << 20
KEY, SECRET = "AKIDBENCH", "bench-secret"

Work = Callable[[], None]


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


class Server:
    def __init__(self, latency: float, rate: float) -> None:
        command = [sys.executable, str(SERVER), "--access-key", KEY, "--secret-key", SECRET]
        command += ["--latency", str(latency), "--rate", str(rate)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin
        assert self._process.stdout
        self._stdin = self._process.stdin
        self.url = f"http://127.0.0.1:{self._process.stdout.readline().split()[1]}"

    def requests(self) -> int:
        """How many came since the last call."""
        with urllib.request.urlopen(f"{self.url}/_control/counts", data=b"{}") as answer:
            counts = json.load(answer)["requests"]
        urllib.request.urlopen(f"{self.url}/_control/clear", data=b"{}").close()
        return sum(count for name, count in counts.items() if not name.startswith("error"))

    def close(self) -> None:
        self._stdin.close()
        self._process.wait()


def ours(server: Server, objects: int) -> tuple[Work, Work]:
    options = {"endpoint_url": server.url, "access_key_id": KEY, "secret_access_key": SECRET}
    state = {"m": StateDict(**{f"t{i}": torch.full((OBJECT // 4,), float(i)) for i in range(objects)})}
    target = {"m": StateDict(**{f"t{i}": torch.zeros(OBJECT // 4) for i in range(objects)})}

    def take() -> None:
        Snapshot.take("s3://bucket/ours", state, storage_options=options, progress=False)

    def restore() -> None:
        Snapshot("s3://bucket/ours", storage_options=options).restore(target, progress=False)

    take()  # both ways once outside the clock: connections are made, and the result is checked
    restore()
    if not all(torch.equal(target["m"][key], state["m"][key]) for key in state["m"]):
        raise SystemExit("what was restored is not what was taken")
    return take, restore


def by_boto3(server: Server, objects: int) -> tuple[Work, Work]:
    import boto3
    from boto3.s3.transfer import TransferConfig

    client = boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )
    config = TransferConfig(multipart_chunksize=PART, multipart_threshold=PART, max_concurrency=16)
    content = bytes(OBJECT)

    def put() -> None:
        for i in range(objects):
            client.upload_fileobj(io.BytesIO(content), "bucket", f"boto3/{i}", Config=config)

    def get() -> None:
        for i in range(objects):
            client.download_fileobj("bucket", f"boto3/{i}", io.BytesIO(), Config=config)

    return put, get


def by_obstore(server: Server, objects: int) -> tuple[Work, Work]:
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        "bucket",
        endpoint=server.url,
        region="us-east-1",
        access_key_id=KEY,
        secret_access_key=SECRET,
        client_options={"allow_http": True, "timeout": "600s"},
    )
    content = bytes(OBJECT)
    pieces = [(i, start) for i in range(objects) for start in range(0, OBJECT, PART)]

    def get_piece(piece: tuple[int, int]) -> None:
        obstore.get_range(store, f"obstore/{piece[0]}", start=piece[1], length=PART)

    def put() -> None:
        for i in range(objects):
            obstore.put(store, f"obstore/{i}", content, chunk_size=PART, max_concurrency=16)

    def get() -> None:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(get_piece, pieces))

    return put, get


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=0.0)
    options = parser.parse_args()
    objects = max(1, round(options.gib * (1 << 30) / OBJECT))
    gib = objects * OBJECT / (1 << 30)
    server = Server(options.latency, options.rate)
    clients: dict[str, Any] = {"torchsnapshot": ours(server, objects)}
    for name, make in {"obstore": by_obstore, "boto3": by_boto3}.items():
        if importlib.util.find_spec(name):
            clients[name] = make(server, objects)
        else:
            print(f"{name} is not installed and left out")
    figures: dict[tuple[str, str], list[tuple[float, float, int]]] = {}
    try:
        for round_number in range(options.rounds):
            for name, works in list(clients.items())[:: 1 if round_number % 2 == 0 else -1]:
                for direction, work in zip(("up", "down"), works, strict=True):
                    server.requests()
                    start, cpu = time.monotonic(), cpu_seconds()
                    work()
                    row = (time.monotonic() - start, cpu_seconds() - cpu, 0)
                    figures.setdefault((name, direction), []).append((*row[:2], server.requests()))
    finally:
        server.close()
    print(
        f"{gib:.2f} GiB, {options.rounds} rounds, latency {options.latency} s, rate {options.rate:.0f} B/s/connection"
    )
    print(f"{'client':14} {'':5} {'GiB/s':>7} {'CPU s/GiB':>10} {'requests':>9}")
    for (name, direction), rows in figures.items():
        seconds, cpu, requests = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:14} {direction:5} {gib / seconds:7.2f} {cpu / gib:10.2f} {requests:9.0f}")
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


if __name__ == "__main__":
    main()
