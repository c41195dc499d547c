"""A small HTTP/1.1 server on loopback for the test servers: threads, kept-alive connections, and faults on demand.

Lean instead of general: it moves more than a GB/s, which http.server does not.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import parse_qsl, unquote, urlsplit

Buffer = bytes | bytearray | memoryview


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]  # names in lower case
    body: Buffer = b""

    def __post_init__(self) -> None:
        parts = urlsplit(self.target if self.target.startswith("/") else "/" + self.target)
        self.raw_path = parts.path
        self.path = unquote(parts.path)
        self.raw_query = parts.query
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))


@dataclass
class Response:
    status: int = 200
    body: list[Buffer] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    head_length: int | None = None  # Content-Length of the answer to a HEAD

    @property
    def length(self) -> int:
        return sum(len(piece) for piece in self.body)


class DisconnectError(Exception):
    """Ends the connection: with a reset, or else in good order."""

    def __init__(self, reset: bool) -> None:
        self.reset = reset


@dataclass
class Fault:
    """What happens to the next `count` requests that match. A fault of one kind:

    status: answer `status` with `code` instead of doing anything (`headers` beside it)
    error_in_200: do nothing and answer 200 with an error document
    reset_upload, stall_upload: after `at` bytes of the request's body
    reset_download, close_download, stall_download: after `at` bytes of the response's body
    lose_response: do it, and reset the connection instead of answering
    flip: one bit at byte `at` of the response's body is wrong
    flip_upload: one bit at byte `at` of the request's body is wrong
    slow: `rate` bytes per second in both directions
    close_after: answer, and close the connection without having announced it
    """

    kind: str
    count: int = 1
    skip: int = 0  # so many matching requests pass first
    method: str = ""
    path: str = ""  # part of the decoded path
    query: str = ""  # part of the raw query
    at: int = 0
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 3600
    rate: float = 1e6
    headers: dict[str, str] = field(default_factory=dict)

    def matches(self, request: Request) -> bool:
        return (
            self.count > 0
            and self.method in ("", request.method)
            and self.path in request.path
            and self.query in request.raw_query
        )


class Connection:
    """One socket, read through a buffer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""

    def read_head(self) -> bytes | None:
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            data = self.sock.recv(65536)
            if not data or len(self.buffer) > 1 << 20:
                return None
            self.buffer += data
        head, self.buffer = self.buffer[:end], self.buffer[end + 4 :]
        return head

    def read_line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            data = self.sock.recv(65536)
            if not data:
                raise DisconnectError(reset=False)
            self.buffer += data
        line, self.buffer = self.buffer[:end], self.buffer[end + 2 :]
        return line

    def read_exact(self, out: memoryview, pause: Callable[[int], None] | None = None) -> None:
        got = min(len(out), len(self.buffer))
        out[:got] = self.buffer[:got]
        self.buffer = self.buffer[got:]
        step = 64 << 10 if pause else len(out)
        while got < len(out):
            count = self.sock.recv_into(out[got : got + step])
            if not count:
                raise DisconnectError(reset=False)
            got += count
            if pause:
                pause(count)


class HttpServer:
    """Serves `handle` on 127.0.0.1. A context manager; `port` 0 takes a free one."""

    name = "test-server"

    def __init__(
        self, port: int = 0, tls: tuple[str, str] | None = None, latency: float = 0.0, rate: float = 0.0
    ) -> None:
        self.faults: list[Fault] = []
        self.counts: dict[str, int] = {}
        self.fault_counts: dict[str, int] = {}
        self.lock = threading.Lock()
        self.latency = latency  # seconds before each response
        self.rate = rate  # bytes per second and connection; 0: no limit
        self.connections = 0
        self._stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._tls: ssl.SSLContext | None = None
        if tls:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*tls)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._accept, name=self.name, daemon=True)
        self._thread.start()

    def __enter__(self) -> HttpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self.lock:
            sockets = list(self._open)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def handle(self, request: Request) -> Response:
        raise NotImplementedError

    def error(self, status: int, code: str) -> Response:
        """The error document of this kind of server, for injected faults."""
        return Response(status, [code.encode()])

    # --- faults and counts, also over HTTP below /_control --------------------------------------------------------
    def inject(self, kind: str, **settings: object) -> Fault:
        fault = Fault(kind, **settings)  # type: ignore[arg-type]
        with self.lock:
            self.faults.append(fault)
        return fault

    def clear(self) -> None:
        with self.lock:
            self.faults.clear()
            self.counts.clear()
            self.fault_counts.clear()

    def count(self, name: str) -> None:
        with self.lock:
            self.counts[name] = self.counts.get(name, 0) + 1

    def set_state(self, settings: dict[str, object]) -> None:
        """Settings that a test changes while the server runs."""
        for name, value in settings.items():
            if not hasattr(self, name):
                raise ValueError(name)
            setattr(self, name, value)

    def _control(self, request: Request) -> Response:
        content = json.loads(bytes(request.body) or b"{}")
        if request.path == "/_control/inject":
            self.inject(**content)
        elif request.path == "/_control/clear":
            self.clear()
        elif request.path == "/_control/set":
            self.set_state(content)
        elif request.path == "/_control/get":
            return Response(200, [json.dumps(getattr(self, content["name"])).encode()])
        elif request.path == "/_control/counts":
            with self.lock:
                counts = {"requests": self.counts, "faults": self.fault_counts, "connections": self.connections}
                return Response(200, [json.dumps(counts).encode()])
        else:
            return Response(404)
        return Response(200)

    def _take_fault(self, request: Request) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if not fault.matches(request):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.count -= 1
                self.fault_counts[fault.kind] = self.fault_counts.get(fault.kind, 0) + 1
                return fault
        return None

    # --- connections ----------------------------------------------------------------------------------------------
    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), name=self.name, daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock = raw
        with self.lock:
            self._open.add(raw)
            self.connections += 1
        try:
            if self._tls:
                sock = self._tls.wrap_socket(raw, server_side=True)
                with self.lock:
                    self._open.discard(raw)
                    self._open.add(sock)
            connection = Connection(sock)
            while not self._stopping.is_set() and self._serve_one(connection):
                pass
        except DisconnectError as end:
            if end.reset:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (OSError, ValueError):
            pass
        finally:
            with self.lock:
                self._open.discard(raw)
                self._open.discard(sock)
            sock.close()

    def _stall(self, fault: Fault) -> None:
        self._stopping.wait(fault.seconds)
        raise DisconnectError(reset=True)

    def _serve_one(self, connection: Connection) -> bool:
        head = connection.read_head()
        if head is None:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        request = Request(method, target, headers)
        is_control = request.path.startswith("/_control/")
        fault = None if is_control else self._take_fault(request)
        self._read_body(connection, request, fault)
        if is_control:
            response = self._control(request)
        elif fault and fault.kind == "status":
            response = self.error(fault.status, fault.code)
            response.headers.update(fault.headers)
        elif fault and fault.kind == "error_in_200":
            response = self.error(fault.status, fault.code)
            response.status = 200
        else:
            if fault and fault.kind == "flip_upload" and request.body:
                body = bytearray(request.body)
                body[fault.at % len(body)] ^= 1
                request.body = body
            response = self.handle(request)
        if fault and fault.kind == "lose_response":
            raise DisconnectError(reset=True)
        if self.latency and not is_control:
            self._stopping.wait(self.latency)
        self._send(connection, request, response, fault)
        return not (fault and fault.kind == "close_after") and headers.get("connection", "").lower() != "close"

    def _pacer(self, fault: Fault | None) -> Callable[[int], None] | None:
        rate = fault.rate if fault and fault.kind == "slow" else self.rate
        if not rate:
            return None
        start = time.monotonic()
        moved = 0

        def pause(count: int) -> None:
            nonlocal moved
            moved += count
            ahead = moved / rate - (time.monotonic() - start)
            if ahead > 0:
                self._stopping.wait(ahead)

        return pause

    def _read_body(self, connection: Connection, request: Request, fault: Fault | None) -> None:
        if request.headers.get("expect", "").lower() == "100-continue":
            connection.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in request.headers.get("transfer-encoding", ""):
            body = bytearray()
            while size := int(connection.read_line().split(b";")[0], 16):
                chunk = bytearray(size)
                connection.read_exact(memoryview(chunk))
                connection.read_line()
                body += chunk
            while connection.read_line():
                pass
            request.body = body
            return
        length = int(request.headers.get("content-length", 0))
        if not length:
            return
        body = bytearray(length)
        view = memoryview(body)
        pause = self._pacer(fault)
        if fault and fault.kind in ("reset_upload", "stall_upload"):
            connection.read_exact(view[: fault.at])
            if fault.kind == "stall_upload":
                self._stall(fault)
            raise DisconnectError(reset=True)
        connection.read_exact(view, pause)
        request.body = body

    def _send(self, connection: Connection, request: Request, response: Response, fault: Fault | None) -> None:
        length = response.length if response.head_length is None else response.head_length
        lines = [f"HTTP/1.1 {response.status} -", f"Date: {formatdate(self.now(), usegmt=True)}"]
        if response.status != 204:
            lines.append(f"Content-Length: {length}")
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if request.method == "HEAD":
            connection.sock.sendall(head)
            return
        body = response.body
        if fault and fault.kind == "flip" and response.length:
            whole = bytearray(b"".join(body))
            whole[fault.at % len(whole)] ^= 1
            body = [whole]
        if fault and fault.kind in ("reset_download", "close_download", "stall_download"):
            connection.sock.sendall(head + b"".join(body)[: fault.at])
            if fault.kind == "stall_download":
                self._stall(fault)
            # A reset may overtake the bytes before it; wait until they are read.
            time.sleep(0.05)
            raise DisconnectError(reset=fault.kind == "reset_download")
        pause = self._pacer(fault)
        if length < 64 << 10:
            connection.sock.sendall(head + b"".join(body))
            return
        connection.sock.sendall(head)
        for piece in body:
            view = memoryview(piece)
            step = 64 << 10 if pause else len(view)
            for at in range(0, len(view), step):
                connection.sock.sendall(view[at : at + step])
                if pause:
                    pause(min(step, len(view) - at))

    def now(self) -> float:
        """The server's clock."""
        return time.time()


def serve_until_stdin_closes(server: HttpServer) -> None:
    """For a server program: tells its port on stdout, and ends with the process that started it."""
    with server:
        print(f"READY {server.port}", flush=True)
        sys.stdin.buffer.read()
