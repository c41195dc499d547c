"""Object stores of the tests: servers of our own, and a state to save."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import torch
from torchsnapshot import StateDict

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from servers.object_server import ObjectServer
from servers.token_server import TokenServer

__all__ = ["KEYS", "ObjectServer", "TokenServer", "gcs_options", "make_certificate", "make_state", "s3_options"]

KEYS = {"AKIDTEST": "secret/of+the=test"}
TOKEN = "good-token"


def s3_options(server: ObjectServer, **more: Any) -> dict[str, Any]:
    return {
        "endpoint_url": server.url,
        "access_key_id": "AKIDTEST",
        "secret_access_key": KEYS["AKIDTEST"],
        "region": server.region,
        **more,
    }


def gcs_options(server: ObjectServer, **more: Any) -> dict[str, Any]:
    return {"endpoint_url": server.url, "token": TOKEN, **more}


def make_state(value: float = 1.0) -> dict[str, StateDict]:
    """A tensor of several parts, small ones, an object, primitives."""
    big = torch.arange(3 << 20, dtype=torch.float32) * value
    small = {f"t{i}": torch.full((100,), value + i) for i in range(20)}
    return {"state": StateDict(big=big, step=int(value), name="x", pickled={1, 2}, **small)}


def make_certificate(folder: pathlib.Path) -> tuple[str, str, str]:
    """A private authority, and a certificate for 127.0.0.1 that it signed: (authority, certificate, key)."""
    authority, certificate, key = (str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subject = ["-subj", "/CN=torchsnapshot test"]
    ca_key = str(folder / "ca-key.pem")
    made = {"check": True, "capture_output": True}
    subprocess.run([*request, *subject, "-keyout", ca_key, "-out", authority], **made)  # type: ignore[call-overload]
    signing = ["-CA", authority, "-CAkey", ca_key, "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*request, *subject, *signing, "-keyout", key, "-out", certificate], **made)  # type: ignore[call-overload]
    return authority, certificate, key
