"""A Ceph cluster as small as can be, for its S3 gateway: one monitor, one in-memory object store, radosgw."""

from __future__ import annotations

import json
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

KEY_ID = "CEPHKEY"
SECRET = "ceph/secret+key"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class CephCluster:
    """Runs in a folder; a context manager that ends what it started."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = self._parent = folder
        self.port = self._mon_port = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    def s3_options(self) -> dict[str, Any]:
        return {
            "endpoint_url": f"http://127.0.0.1:{self.port}",
            "region": "default",
            "access_key_id": KEY_ID,
            "secret_access_key": SECRET,
        }

    def __enter__(self) -> CephCluster:
        last = 2  # now and then one of its processes gives up at once
        for attempt in range(last + 1):
            try:
                self._start(attempt)
                return self
            except BaseException as error:  # noqa: PERF203
                self.close()
                if not isinstance(error, RuntimeError) or attempt == last:
                    raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        end = time.monotonic() + 15
        while time.monotonic() < end and any(process.poll() is None for process in self._processes):
            time.sleep(0.05)
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=self.folder)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
        return done.stdout

    def _spawn(self, *command: str) -> None:
        log = open(self.folder / f"{command[0]}.log", "wb")  # noqa: SIM115
        self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder))
        log.close()

    def _start(self, attempt: int) -> None:
        self.folder = self._parent / str(attempt)
        self.folder.mkdir()
        self.port, self._mon_port = _free_port(), _free_port()
        folder, conf = self.folder, str(self.folder / "ceph.conf")
        fsid = "a7f64266-0894-4f1e-a635-d0aeaca0e993"
        (folder / "mon").mkdir()
        (folder / "osd").mkdir()
        (folder / "ceph.conf").write_text(
            f"""[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{self._mon_port}
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
auth supported = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon max pg per osd = 1000
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
pid file =
ms bind msgr2 = false
osd objectstore = memstore
memstore device bytes = 2147483648
memstore page set = false
mon data avail crit = 1
mon data avail warn = 1
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{self.port}
rgw thread pool size = 32
rgw enable usage log = false
rgw enable ops log = false
rgw gc processor period = 100000
rgw dns name =
"""
        )
        self._run(
            "monmaptool",
            "--create",
            "--clobber",
            "--fsid",
            fsid,
            "--addv",
            "a",
            f"[v1:127.0.0.1:{self._mon_port}]",
            "monmap",
        )
        self._run("ceph-mon", "-c", conf, "--mkfs", "-i", "a", "--monmap", "monmap")
        self._spawn("ceph-mon", "-c", conf, "-f", "-i", "a")
        uuid = "3f6d1e7a-5b0c-4a55-9c6e-0c1c2f0a9a11"
        self._run("ceph", "-c", conf, "--connect-timeout", "60", "osd", "new", uuid)
        self._run("ceph-osd", "-c", conf, "-i", "0", "--mkfs", "--osd-uuid", uuid)
        self._spawn("ceph-osd", "-c", conf, "-f", "-i", "0")
        self._spawn("radosgw", "-c", conf, "-f", "-n", "client.rgw")
        self._wait()
        self._run(
            "radosgw-admin", "-c", conf, "-n", "client.rgw", "user", "create", "--uid=test", "--display-name=test",
            f"--access-key={KEY_ID}", f"--secret={SECRET}",
        )  # fmt: skip

    def _wait(self) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5).read()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.2)
            if any(process.poll() is not None for process in self._processes):
                break
        logs = {path.name: path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.log")}
        raise RuntimeError(f"radosgw did not start: {json.dumps(logs, indent=1)}")
