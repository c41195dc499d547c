"""Writes botocore.json: random requests signed by botocore, for the test of our signer. Needs botocore.

Usage: python make_cases.py > botocore.json
"""

from __future__ import annotations

import json
import random
import sys
from datetime import datetime, timedelta
from unittest import mock
from urllib.parse import quote

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

CHARACTERS = "abcXYZ019-_.~ !\"#$%&'()*+,/:;<=>?@[\\]^`{|}äß漢🔥\t"


def text(rng: random.Random, longest: int) -> str:
    return "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(1, longest)))


def make_case(rng: random.Random) -> dict[str, object]:
    path = "/" + quote(text(rng, 30).replace("//", "/x"), safe="/-_.~")
    query = [[text(rng, 8), text(rng, 12) if rng.random() < 0.8 else ""] for _ in range(rng.randint(0, 4))]
    encoded = "&".join(f"{quote(n, safe='-_.~')}={quote(v, safe='-_.~')}" for n, v in query)
    key = Credentials(
        f"AKID{rng.randint(0, 9999)}",
        text(rng, 40),
        "token/" + text(rng, 60).replace("\t", "") + "=" if rng.random() < 0.5 else None,
    )
    headers = {"Host": f"bucket{rng.randint(0, 99)}.example.com"}
    for _ in range(rng.randint(0, 3)):
        headers[f"X-Amz-Meta-{rng.choice('abcdef')}{rng.randint(0, 99)}"] = rng.choice(
            ["value", "  two   spaces ", "a,b", "1"]
        )
    if rng.random() < 0.3:
        headers["Range"] = "bytes=0-9"
    method = rng.choice(["GET", "PUT", "POST", "DELETE", "HEAD"])
    region = rng.choice(["us-east-1", "eu-central-1", "ap-south-2"])
    when = datetime(2015, 1, 1) + timedelta(seconds=rng.randint(0, 10**9))
    body = text(rng, 100).encode() if method in ("PUT", "POST") else b""
    url = f"https://{headers['Host']}{path}" + (f"?{encoded}" if encoded else "")
    request = AWSRequest(method=method, url=url, headers=headers, data=body)
    signer = botocore.auth.S3SigV4Auth(key, "s3", region)
    with (
        mock.patch.object(botocore.auth, "get_current_datetime", return_value=when),
        mock.patch.object(botocore.auth.S3SigV4Auth, "_should_sha256_sign_payload", return_value=rng.random() < 0.5),
    ):
        signer.add_auth(request)
    sent = dict(request.headers.items())
    authorization = sent.pop("Authorization")
    return {
        "method": method,
        "path": path,
        "query": query,
        "headers": [[n, v] for n, v in sent.items() if n != "X-Amz-Security-Token"],
        "key": [key.access_key, key.secret_key, key.token or ""],
        "region": region,
        "amz_date": sent["X-Amz-Date"],
        "payload": sent["X-Amz-Content-SHA256"],
        "authorization": authorization,
    }


def main() -> None:
    rng = random.Random(20240601)
    cases = [make_case(rng) for _ in range(400)]
    sys.stdout.write("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
