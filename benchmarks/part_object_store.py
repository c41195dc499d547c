"""Take and restore on s3:// beside other clients, against the test server in memory (tests/servers/object_server.py).

Two set-ups: loopback, where the client's own work decides, and a server that answers late on connections that are slow,
where parallelism does.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import report
from client import HERE, REPOSITORY
from context import OURS, Options, Part

SERVER = REPOSITORY / "tests" / "servers" / "object_server.py"
RAW = REPOSITORY / "build" / "release" / "benchmarks" / "raw_curl"
KEY, SECRET = "AKIDBENCH", "bench-secret"
PART = 16 << 20
OBJECT = 256 << 20
GIB = 1 << 30

IN_OUR_VENV = ["boto3", "obstore"]
IN_PEERS_VENV = ["s3fs", "awscrt", "DCP, s3torchconnector"]
#: Their versions of botocore exclude that of boto3, so they have an environment of their own, with our torch in it.
PEERS_NEED = ["s3fs", "awscrt", "s3torchconnectorclient", "tenacity"]
PEERS_NEED_BARE = ["s3torchconnector"]  # it would bring another torch

#: Raw clients; the best of them is the bar.
RAW_CLIENTS = ["libcurl", "obstore"]


@dataclass
class Link:
    """What is between client and server."""

    title: str
    connections: int
    latency: float = 0.0  #: seconds before each answer
    rate: float = 0.0  #: bytes per second and connection; 0: no limit
    part: int = PART


NEAR = Link("Object store on loopback", connections=16)
FAR = Link("Object store, 50 ms away, 100 MB/s per connection", connections=4, latency=0.05, rate=100e6)


class Server:
    def __init__(self, link: Link) -> None:
        command = [sys.executable, str(SERVER), "--access-key", KEY, "--secret-key", SECRET, "--anonymous"]
        command += ["--latency", str(link.latency), "--rate", str(link.rate)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.url = f"http://127.0.0.1:{self._process.stdout.readline().split()[1]}"
        self._control("set", {"id_end": ""})  # awscrt and s3torchconnector know plain ones only

    def _control(self, what: str, content: object) -> Any:
        with urllib.request.urlopen(f"{self.url}/_control/{what}", data=json.dumps(content).encode()) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def requests(self) -> int:
        """How many came since the last call."""
        counts = self._control("counts", {})["requests"]
        self._control("clear", {})
        return sum(count for name, count in counts.items() if not name.startswith("error"))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


class Client:
    """A client program; it keeps its connections and memory from round to round."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, direction: str) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{direction}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"it ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if not answer["right"]:
            raise RuntimeError("what came down is not what went up")
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._process.communicate(timeout=60)
        self._process.kill()
        self._process.wait()


def near(options: Options) -> Part:
    return _run(options, NEAR)


def far(options: Options) -> Part:
    return _run(options, FAR)


def _run(options: Options, link: Link) -> Part:
    part = Part(link.title)
    object_bytes = min(OBJECT, options.size)
    objects = max(1, options.size // object_bytes)
    part.facts.update(
        objects=objects, object_bytes=object_bytes, part_bytes=link.part, connections=link.connections,
        latency=link.latency, rate=link.rate,
    )  # fmt: skip
    gib = objects * object_bytes / GIB
    server = Server(link)
    try:
        with contextlib.ExitStack() as stack:
            clients: dict[str, Client] = {}
            for name, program in _programs(part, link):
                numbers = [str(n) for n in (objects, object_bytes, link.part, link.connections)]
                url = f"{server.url}/bucket" if name == "libcurl" else server.url
                client = clients[name] = Client([*program, url, *numbers])
                stack.callback(client.close)
            for number in range(-1, options.rounds):  # the first one is for connections and warm memory
                for name in _order(clients, number):
                    for direction in ("up", "down"):
                        server.requests()
                        try:
                            answer = clients[name](direction)
                        except RuntimeError as error:
                            if name == OURS:
                                raise
                            part.note(f"{name} is left out: {error}")
                            del clients[name]
                            break
                        if number < 0:
                            continue
                        part.add(direction, name, answer["seconds"])
                        part.detail(f"{direction}: CPU s/GiB", name, answer["cpu"] / gib)
                        part.detail(f"{direction}: memory", name, answer["memory"])
                        part.detail(f"{direction}: requests", name, server.requests())
    finally:
        server.close()
    _print(part, gib, link)
    return part


def _order(clients: dict[str, Client], number: int) -> list[str]:
    names = list(clients)
    return names if number % 2 == 0 else names[::-1]


def _programs(part: Part, link: Link) -> Iterator[tuple[str, list[str]]]:
    script = str(HERE / "object_client.py")
    yield OURS, [sys.executable, script, OURS]
    if RAW.exists():
        yield "libcurl", [str(RAW)]
    else:
        part.note("no raw libcurl client in this build: apt-get install libcurl4-openssl-dev, and build again")
    for name in IN_OUR_VENV:
        yield name, [sys.executable, script, name]
    if link is FAR:
        return
    python = _peers_python()
    if python is None:
        part.note(f"{', '.join(IN_PEERS_VENV)} can't be installed, and are left out")
        return
    for name in IN_PEERS_VENV:
        yield name, [str(python), script, name]


def _peers_python() -> Path | None:
    """The interpreter of build/peers-venv, which is made when needed and kept."""
    venv = REPOSITORY / "build" / "peers-venv"
    python = venv / "bin" / "python"

    def works() -> bool:
        code = "import s3fs, awscrt, s3torchconnector.dcp"
        return python.exists() and not subprocess.run([python, "-c", code], capture_output=True).returncode

    if works():
        return python
    print("bench: installing other clients of object stores into build/peers-venv, once", flush=True)
    ours = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    for packages in ([*pip, *PEERS_NEED], [*pip, "--no-deps", *PEERS_NEED_BARE]):
        if subprocess.run(packages, check=False).returncode:
            return None
    [own] = venv.glob("lib/python3*/site-packages")
    (own / "zz_ours.pth").write_text(f"{ours}\n")  # torch and numpy, after what is its own
    return python if works() else None


def _print(part: Part, gib: float, link: Link) -> None:
    print(f"\n== {part.title}: {gib:.2f} GiB, {link.part >> 20} MiB parts, {link.connections} connections")
    for direction in ("up", "down"):
        series = part.series[direction]
        rows = []
        for name, seconds in series.items():
            detail = {key: part.details[f"{direction}: {key}"][name] for key in ("CPU s/GiB", "memory", "requests")}
            rows.append(
                [
                    name,
                    "" if name == OURS else report.ratio(series[OURS], seconds),
                    report.spread([gib / s for s in seconds]),
                    report.spread(detail["CPU s/GiB"]),
                    report.mib(max(detail["memory"])),
                    f"{median(detail['requests']):.0f}",
                    str(len(seconds)),
                ]
            )
        report.print_table(
            "take" if direction == "up" else "restore",
            ["", "ours is faster by", "GiB/s", "CPU s/GiB", "memory", "requests", "n"],
            rows,
        )
        raw = [median(series[name]) for name in RAW_CLIENTS if name in series]
        if raw:
            print(f"of the best raw client: {min(raw) / median(series[OURS]):.2f}")
        if link.rate:
            reached = gib * GIB / median(series[OURS])
            print(f"of {link.connections} × {link.rate / 1e6:.0f} MB/s: {reached / (link.connections * link.rate):.2f}")
    for note in part.notes:
        print(f"note: {note}")
