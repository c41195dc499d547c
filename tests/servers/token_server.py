"""The servers that give out credentials, for tests: STS, SSO, a container's endpoint, the metadata servers of AWS and
Google, and Google's OAuth.

As a program: prints "READY PORT" and serves until its standard input closes. Each answer carries a number that counts
the requests of its kind, so that a test sees which answer was used.
"""

from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import parse_qs

if __package__:
    from .http_server import HttpServer, Request, Response, serve_until_stdin_closes
else:
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    from http_server import HttpServer, Request, Response, serve_until_stdin_closes


class TokenServer(HttpServer):
    name = "token-server"

    def __init__(self, port: int = 0) -> None:
        self.lifetime = 3600.0  # seconds until what is given out expires
        self.access_key = "AKIDTEST"  # that the answers carry
        self.secret_key = "secret/of+the=test"
        self.bearer = "good-token"
        self.web_identity = "web-identity-token"
        self.sso_token = "sso-token"
        self.container_token = "container-token"
        self.refresh_token = "refresh-token"
        self.subject_token = "subject-token"  # of workload identity federation
        self.federated = "federated-token"  # what it is exchanged for
        self.rsa_key: list[int] = []  # modulus and exponent of the service account's public key
        self.last_form: dict[str, str] = {}
        super().__init__(port)

    def error(self, status: int, code: str) -> Response:
        return Response(status, [json.dumps({"error": code}).encode()])

    def _expiry(self) -> str:
        when = datetime.now(timezone.utc) + timedelta(seconds=self.lifetime)
        return when.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _session(self, kind: str) -> str:
        self.count(kind)
        return f"{kind}-{self.counts[kind]}"

    def handle(self, request: Request) -> Response:
        path, method, headers = request.path, request.method, request.headers
        if path == "/latest/api/token" and method == "PUT":
            if "x-aws-ec2-metadata-token-ttl-seconds" not in headers:
                return Response(400)
            return Response(200, [b"metadata-session"])
        if path.startswith("/latest/meta-data/"):
            if headers.get("x-aws-ec2-metadata-token") != "metadata-session":
                return Response(401)
            if path == "/latest/meta-data/iam/security-credentials/":
                return Response(200, [b"a-role"])
            if path == "/latest/meta-data/iam/security-credentials/a-role":
                return self._aws_json("instance")
        if path == "/container":
            if headers.get("authorization") != self.container_token:
                return Response(403, [b'{"code": "AccessDenied", "message": "wrong token"}'])
            return self._aws_json("container")
        if path == "/federation/credentials":
            if headers.get("x-amz-sso_bearer_token") != self.sso_token:
                return Response(401, [b'{"message": "Session token not found or invalid"}'])
            if request.query != {"role_name": "Reader", "account_id": "123456789012"}:
                return Response(404, [b'{"message": "no such role"}'])
            expires = int((datetime.now(timezone.utc).timestamp() + self.lifetime) * 1000)
            fields = {
                "accessKeyId": self.access_key,
                "secretAccessKey": self.secret_key,
                "sessionToken": self._session("sso"),
                "expiration": expires,
            }
            return Response(200, [json.dumps({"roleCredentials": fields}).encode()])
        if path == "/computeMetadata/v1/instance/service-accounts/default/token":
            if headers.get("metadata-flavor") != "Google":
                return Response(403)
            return self._oauth("metadata")
        if path == "/token" and method == "POST":
            return self._grant(request)
        if path == "/subject":
            if headers.get("x-wanted") != "yes":
                return Response(403)
            self.count("subject")
            return Response(200, [json.dumps({"value": self.subject_token}).encode()])
        if path == "/exchange" and method == "POST":
            return self._exchange(request)
        if path == "/impersonate" and method == "POST":
            return self._impersonate(request)
        if path in ("", "/") and method == "POST":
            return self._sts(request)
        return Response(404)

    def _aws_json(self, kind: str) -> Response:
        fields = {
            "Code": "Success",
            "AccessKeyId": self.access_key,
            "SecretAccessKey": self.secret_key,
            "Token": self._session(kind),
            "Expiration": self._expiry(),
        }
        return Response(200, [json.dumps(fields).encode()])

    def _sts(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs(bytes(request.body).decode()).items()}
        self.last_form = form
        action = form.get("Action", "")
        problem = ""
        if action == "AssumeRole":
            signed = request.headers.get("authorization", "")
            if "/sts/aws4_request" not in signed or self.access_key not in signed:
                problem = "InvalidClientTokenId"
        elif action == "AssumeRoleWithWebIdentity":
            if form.get("WebIdentityToken") != self.web_identity:
                problem = "InvalidIdentityToken"
        else:
            problem = "InvalidAction"
        if problem:
            body = f"<ErrorResponse><Error><Code>{problem}</Code><Message>no</Message></Error></ErrorResponse>"
            return Response(403, [body.encode()])
        body = (
            f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result><Credentials>'
            f"<AccessKeyId>{self.access_key}</AccessKeyId><SecretAccessKey>{self.secret_key}</SecretAccessKey>"
            f"<SessionToken>{self._session(action)}</SessionToken><Expiration>{self._expiry()}</Expiration>"
            f"</Credentials></{action}Result></{action}Response>"
        )
        return Response(200, [body.encode()])

    def _oauth(self, kind: str) -> Response:
        self.count(kind)
        fields = {"access_token": self.bearer, "expires_in": self.lifetime, "token_type": "Bearer"}
        return Response(200, [json.dumps(fields).encode()])

    def _grant(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs(bytes(request.body).decode()).items()}
        self.last_form = form
        if form.get("grant_type") == "refresh_token":
            if form.get("refresh_token") == self.refresh_token and form.get("client_secret") == "client-secret":
                return self._oauth("refresh")
        elif self.rsa_key and self._is_signed(form.get("assertion", "")):
            return self._oauth("jwt")
        return Response(400, [b'{"error": "invalid_grant", "error_description": "Bad Request"}'])

    def _exchange(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs(bytes(request.body).decode()).items()}
        self.last_form = form
        kind = "urn:ietf:params:oauth:token-type:"
        wanted = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "requested_token_type": f"{kind}access_token",
            "audience": "//iam.googleapis.com/pool",
            "subject_token_type": f"{kind}jwt",
            "subject_token": self.subject_token,
        }
        if {name: form.get(name) for name in wanted} != wanted:
            return Response(400, [b'{"error": "invalid_grant", "error_description": "not that subject"}'])
        if form["scope"].endswith("/devstorage.read_write"):
            return self._oauth("exchange")
        self.count("exchange")
        return Response(200, [json.dumps({"access_token": self.federated, "expires_in": 3600}).encode()])

    def _impersonate(self, request: Request) -> Response:
        if request.headers.get("authorization") not in (f"Bearer {self.federated}", f"Bearer {self.bearer}"):
            body = {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "may not act as that account"}}
            return Response(403, [json.dumps(body).encode()])
        asked = json.loads(bytes(request.body))
        if asked["scope"] != ["https://www.googleapis.com/auth/devstorage.read_write"]:
            return Response(400)
        self.count("impersonate")
        return Response(200, [json.dumps({"accessToken": self.bearer, "expireTime": self._expiry()}).encode()])

    def _is_signed(self, token: str) -> bool:
        """RS256 by hand: the signature to the power of the exponent ends with the hash of what is signed."""
        import hashlib

        signed, _, signature = token.rpartition(".")
        padded = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
        modulus, exponent = self.rsa_key
        opened = pow(int.from_bytes(padded, "big"), exponent, modulus).to_bytes((modulus.bit_length() + 7) // 8, "big")
        wanted = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(signed.encode()).digest()
        return opened.startswith(b"\x00\x01\xff") and opened.endswith(b"\x00" + wanted)


if __name__ == "__main__":
    serve_until_stdin_closes(TokenServer())
