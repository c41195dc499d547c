"""An object store in memory for tests: S3, the XML API of GCS, and its JSON API, with strict authentication.

As a program: prints "READY PORT" and serves until its standard input closes.
    python object_server.py [--port N] [--bucket NAME]... [--region R] [--access-key ID --secret-key KEY]
                            [--token BEARER] [--anonymous] [--tls CERT KEY] [--latency S] [--rate BYTES_PER_S]
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import hmac
import itertools
import json
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

if __package__:
    from .http_server import Buffer, HttpServer, Request, Response, serve_until_stdin_closes
else:
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    from http_server import Buffer, HttpServer, Request, Response, serve_until_stdin_closes

MIN_PART = 5 << 20
MAX_PARTS = 10_000
UNSIGNED = "UNSIGNED-PAYLOAD"


class ApiError(Exception):
    def __init__(
        self, status: int, code: str, message: str = "", headers: dict[str, str] | None = None, extra: str = ""
    ):
        super().__init__(code)
        self.status, self.code, self.message = status, code, message or code
        self.headers = headers or {}
        self.extra = extra


@dataclass
class StoredObject:
    pieces: list[Buffer]
    etag: str
    metadata: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    modified: float = field(default_factory=time.time)
    generation: int = 1

    @property
    def size(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    def range(self, begin: int, end: int) -> list[Buffer]:
        result: list[Buffer] = []
        at = 0
        for piece in self.pieces:
            first, last = max(begin - at, 0), min(end - at, len(piece))
            if first < last:
                result.append(memoryview(piece)[first:last])
            at += len(piece)
        return result


@dataclass
class Upload:
    bucket: str
    key: str
    metadata: dict[str, str]
    headers: dict[str, str]
    parts: dict[int, tuple[Buffer, str, float]] = field(default_factory=dict)  # content, ETag, when it came
    begun: float = field(default_factory=time.time)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: Buffer) -> int:
    crc = 0xFFFFFFFF
    for byte in bytes(data):
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


class ObjectServer(HttpServer):
    name = "object-server"

    def __init__(
        self,
        *,
        buckets: tuple[str, ...] = ("bucket",),
        region: str = "us-east-1",
        keys: dict[str, str] | None = None,
        tokens: tuple[str, ...] = (),
        anonymous: bool = False,
        port: int = 0,
        tls: tuple[str, str] | None = None,
        latency: float = 0.0,
        rate: float = 0.0,
    ) -> None:
        self.buckets: dict[str, dict[str, StoredObject]] = {name: {} for name in buckets}
        self.region = region
        self.keys = dict(keys or {})  # access key id -> secret
        self.tokens = tuple(tokens)  # bearer tokens that are good
        self.anonymous = anonymous
        self.expired_tokens: list[str] = []  # session or bearer tokens that were good once
        self.forbidden = ""  # keys with this in them are 403
        self.clock_offset = 0.0  # seconds that this server's clock is ahead
        self.ignore_conditions = False  # like some older servers
        self.ignore_ranges = False
        self.refuse_checksum_headers = False
        self.refuse_multipart = False
        self.refuse_upload_lists = False
        self.id_end = "+/="  # of upload ids; clients that don't encode what AWS never uses fail by it
        self.refuse_lists = False  # as credentials without permission to list are refused
        self.age = 0.0  # what is written is so many seconds old at once
        self.crc_limit = 256 << 10  # bodies up to this size are checked against x-amz-checksum-crc32c
        self.last_headers: dict[str, dict[str, str]] = {}  # operation -> headers of its last request
        self.uploads: dict[str, Upload] = {}
        self.sessions: dict[str, tuple[str, str, bytearray, dict[str, str]]] = {}
        self._ids = itertools.count(1)
        super().__init__(port, tls, latency, rate)

    def now(self) -> float:
        return time.time() + self.clock_offset

    # --- errors ---------------------------------------------------------------------------------------------------
    def error(self, status: int, code: str) -> Response:
        return self._error(ApiError(status, code, "injected by the test"))

    def _error(self, failure: ApiError) -> Response:
        request_id = f"REQ{next(self._ids):08X}"
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{failure.code}</Code>'
            f"<Message>{escape(failure.message)}</Message>{failure.extra}<RequestId>{request_id}</RequestId></Error>"
        )
        headers = {"Content-Type": "application/xml", "x-amz-request-id": request_id, **failure.headers}
        return Response(failure.status, [body.encode()], headers)

    # --- who asks -------------------------------------------------------------------------------------------------
    def _authenticate(self, request: Request) -> None:
        authorization = request.headers.get("authorization", "")
        if not authorization:
            if self.anonymous:
                return
            raise ApiError(403, "AccessDenied", "no signature, no token")
        if authorization.startswith("Bearer "):
            token = authorization[7:]
            if token in self.expired_tokens or token not in self.tokens:
                raise ApiError(401, "AuthenticationRequired" if token in self.expired_tokens else "InvalidToken")
            return
        if not authorization.startswith("AWS4-HMAC-SHA256 "):
            raise ApiError(400, "InvalidArgument", "an unknown kind of authorization")
        self._check_signature(request, authorization)

    def _check_signature(self, request: Request, authorization: str) -> None:
        fields = dict(part.strip().split("=", 1) for part in authorization[17:].split(","))
        access_key, day, region, service, terminator = fields["Credential"].rsplit("/", 4)
        if access_key not in self.keys:
            raise ApiError(403, "InvalidAccessKeyId", "the access key id is not known")
        if region != self.region or service != "s3" or terminator != "aws4_request":
            raise ApiError(
                400,
                "AuthorizationHeaderMalformed",
                f"the region '{region}' is wrong; expecting '{self.region}'",
                {"x-amz-bucket-region": self.region},
                f"<Region>{self.region}</Region>",
            )
        if request.headers.get("x-amz-security-token", "") in self.expired_tokens:
            raise ApiError(400, "ExpiredToken", "The provided token has expired.")
        date = request.headers.get("x-amz-date", "")
        sent = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
        if abs(sent - self.now()) > 900 or not date.startswith(day):
            raise ApiError(403, "RequestTimeTooSkewed", "The difference between the times is too large.")
        signed = fields["SignedHeaders"].split(";")
        if signed != sorted(signed) or "host" not in signed:
            raise ApiError(403, "SignatureDoesNotMatch", "host must be signed")
        for name in request.headers:
            if name.startswith("x-amz-") and name not in signed:
                raise ApiError(
                    403, "AccessDenied", f"There were headers present in the request which were not signed: {name}"
                )
        payload = request.headers.get("x-amz-content-sha256", "")
        if not payload:
            raise ApiError(400, "MissingSecurityHeader", "x-amz-content-sha256 is missing")
        query = sorted(
            (quote(k, safe="-_.~"), quote(v, safe="-_.~"))
            for k, v in parse_qsl(request.raw_query, keep_blank_values=True)
        )
        canonical = "\n".join(
            [
                request.method,
                quote(unquote(request.raw_path), safe="/-_.~"),
                "&".join(f"{k}={v}" for k, v in query),
                *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in signed),
                "",
                fields["SignedHeaders"],
                payload,
            ]
        )
        scope = f"{day}/{region}/{service}/{terminator}"
        to_sign = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = b"AWS4" + self.keys[access_key].encode()
        for step in (day, region, service, terminator):
            key = hmac.digest(key, step.encode(), "sha256")
        wanted = hmac.new(key, to_sign.encode(), "sha256").hexdigest()
        if not hmac.compare_digest(wanted, fields["Signature"]):
            raise ApiError(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided.",
                extra=f"<StringToSign>{escape(to_sign)}</StringToSign>",
            )
        if payload.startswith("STREAMING-"):
            request.body = _decode_aws_chunked(request.body)
        elif payload != UNSIGNED and payload != hashlib.sha256(request.body).hexdigest():
            raise ApiError(400, "XAmzContentSHA256Mismatch")

    # --- dispatch -------------------------------------------------------------------------------------------------
    def handle(self, request: Request) -> Response:
        is_json = request.path.startswith(("/storage/v1/", "/upload/storage/v1/"))
        try:
            self._authenticate(request)
            response = self._handle_json(request) if is_json else self._handle_xml(request)
        except ApiError as failure:
            self.count(f"error {failure.code}")
            if is_json:
                body = json.dumps({"error": {"code": failure.status, "message": failure.message}})
                return Response(failure.status, [body.encode()], {"Content-Type": "application/json"})
            return self._error(failure)
        response.headers.setdefault("x-amz-request-id", f"REQ{next(self._ids):08X}")
        return response

    def _bucket_and_key(self, request: Request) -> tuple[str, str]:
        host = request.headers.get("host", "").split(":")[0]
        if host.endswith(".localhost"):  # virtual-hosted style
            return host.removesuffix(".localhost"), request.path[1:]
        bucket, _, key = request.path[1:].partition("/")
        return bucket, key

    def _handle_xml(self, request: Request) -> Response:
        bucket, key = self._bucket_and_key(request)
        if bucket not in self.buckets:
            raise ApiError(404, "NoSuchBucket", "The specified bucket does not exist")
        if self.forbidden and self.forbidden in key:
            raise ApiError(403, "AccessDenied", "Access Denied")
        if self.refuse_checksum_headers and any(n.startswith("x-amz-checksum-") for n in request.headers):
            raise ApiError(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
        objects = self.buckets[bucket]
        query, method = request.query, request.method
        if not key:
            if method == "GET" and "location" in query:
                return _xml("LocationConstraint", self.region)
            if method == "GET" and self.refuse_lists:
                raise ApiError(403, "AccessDenied", "not authorized to perform: s3:ListBucket")
            if method == "GET" and "uploads" in query:
                return self._operation("ListMultipartUploads", request, lambda: self._list_uploads(bucket, query))
            if method == "GET":
                return self._operation("ListObjects", request, lambda: self._list(objects, bucket, query))
            if method == "POST" and "delete" in query:
                return self._delete_many(objects, request)
            if method == "HEAD":
                return Response(200, headers={"x-amz-bucket-region": self.region})
            raise ApiError(405, "MethodNotAllowed")
        if method == "POST" and "uploads" in query:
            return self._operation("CreateMultipartUpload", request, lambda: self._start(bucket, key, request))
        if method == "PUT" and "uploadId" in query:
            return self._operation("UploadPart", request, lambda: self._put_part(request))
        if method == "POST" and "uploadId" in query:
            return self._operation("CompleteMultipartUpload", request, lambda: self._complete(objects, key, request))
        if method == "GET" and "uploadId" in query:
            return self._operation("ListParts", request, lambda: self._list_parts(query))
        if method == "DELETE" and "uploadId" in query:
            return self._operation("AbortMultipartUpload", request, lambda: self._abort(query["uploadId"]))
        if method == "PUT":
            return self._operation("PutObject", request, lambda: self._put(objects, key, request))
        if method == "HEAD":
            return self._operation("HeadObject", request, lambda: self._get(objects, key, request))
        if method == "GET":
            return self._operation("GetObject", request, lambda: self._get(objects, key, request))
        if method == "DELETE":
            return self._operation("DeleteObject", request, lambda: self._delete(objects, key))
        raise ApiError(405, "MethodNotAllowed")

    def _operation(self, name: str, request: Request, work: object) -> Response:
        self.count(name)
        self.last_headers[name] = request.headers
        return work()  # type: ignore[operator,no-any-return]

    # --- objects --------------------------------------------------------------------------------------------------
    def _check_body(self, request: Request) -> None:
        body = request.body
        checks = {
            "content-md5": lambda: hashlib.md5(body).digest(),
            "x-amz-checksum-crc32": lambda: binascii.crc32(body).to_bytes(4, "big"),
            "x-amz-checksum-crc32c": lambda: crc32c(body).to_bytes(4, "big"),
        }
        for name, digest in checks.items():
            sent = request.headers.get(name)
            if not sent or (name.endswith("crc32c") and len(body) > self.crc_limit):
                continue
            if base64.b64decode(sent) != digest():
                raise ApiError(400, "BadDigest", f"The {name} you specified did not match the calculated checksum.")

    def _check_absent(self, objects: dict[str, StoredObject], key: str, request: Request) -> None:
        wanted = request.headers.get("if-none-match") == "*" or request.headers.get("x-goog-if-generation-match") == "0"
        if wanted and key in objects and not self.ignore_conditions:
            raise ApiError(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")

    def _metadata(self, request: Request) -> tuple[dict[str, str], dict[str, str]]:
        headers = request.headers
        metadata = {n: v for n, v in headers.items() if n.startswith(("x-amz-meta-", "x-goog-meta-"))}
        shown = ("x-amz-storage-class", "x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id")
        return metadata, {n: headers[n] for n in shown if n in headers}

    def _put(self, objects: dict[str, StoredObject], key: str, request: Request) -> Response:
        if source := request.headers.get("x-amz-copy-source"):
            return self._copy(objects, key, unquote(source).removeprefix("/"))
        self._check_body(request)
        metadata, headers = self._metadata(request)
        with self.lock:
            self._check_absent(objects, key, request)
            stored = StoredObject([request.body], self._etag(), metadata, headers, self._written())
            objects[key] = stored
        return Response(200, headers={"ETag": stored.etag})

    def _copy(self, objects: dict[str, StoredObject], key: str, source: str) -> Response:
        bucket, _, source_key = source.partition("/")
        found = self._find(self.buckets.get(bucket, {}), source_key)
        stored = StoredObject(found.pieces, self._etag(), found.metadata, found.headers, self._written())
        with self.lock:
            objects[key] = stored
        body = f"<ETag>{escape(stored.etag)}</ETag><LastModified>{_iso(stored.modified)}</LastModified>"
        return _xml("CopyObjectResult", body, raw=True)

    def _written(self) -> float:
        return time.time() - self.age

    def _etag(self) -> str:
        return f'"{next(self._ids):032x}"'

    def _find(self, objects: dict[str, StoredObject], key: str) -> StoredObject:
        with self.lock:
            stored = objects.get(key)
        if stored is None:
            raise ApiError(404, "NoSuchKey", "The specified key does not exist.")
        return stored

    def _get(self, objects: dict[str, StoredObject], key: str, request: Request) -> Response:
        stored = self._find(objects, key)
        if request.headers.get("if-match", stored.etag) not in (stored.etag, stored.etag.strip('"')):
            raise ApiError(412, "PreconditionFailed")
        headers = {
            "ETag": stored.etag,
            "Last-Modified": formatdate(stored.modified, usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Type": "binary/octet-stream",
            **stored.metadata,
            **stored.headers,
        }
        if request.method == "HEAD":
            return Response(200, headers=headers, head_length=stored.size)
        wanted = request.headers.get("range")
        if not wanted or self.ignore_ranges:
            return Response(200, stored.range(0, stored.size), headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        if first:
            begin, end = int(first), min(int(last) + 1 if last else stored.size, stored.size)
        else:
            begin, end = max(0, stored.size - int(last)), stored.size
        if begin >= stored.size:
            raise ApiError(416, "InvalidRange", headers={"Content-Range": f"bytes */{stored.size}"})
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{stored.size}"
        return Response(206, stored.range(begin, end), headers)

    def _delete(self, objects: dict[str, StoredObject], key: str) -> Response:
        with self.lock:
            objects.pop(key, None)
        return Response(204)

    def _delete_many(self, objects: dict[str, StoredObject], request: Request) -> Response:
        names = [e.text or "" for e in ElementTree.fromstring(bytes(request.body)).iter() if e.tag.endswith("Key")]
        for name in names:
            self._delete(objects, name)
        return _xml("DeleteResult", "".join(f"<Deleted><Key>{escape(n)}</Key></Deleted>" for n in names), raw=True)

    def _list(self, objects: dict[str, StoredObject], bucket: str, query: dict[str, str]) -> Response:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(int(query.get("max-keys", 1000)), 1000)
        is_v2 = query.get("list-type") == "2"
        after = query.get("continuation-token" if is_v2 else "marker", "") or query.get("start-after", "")
        by_url = query.get("encoding-type") == "url"
        with self.lock:
            found = sorted((k, v) for k, v in objects.items() if k.startswith(prefix))
        show = (lambda text: quote(text, safe="/-_.~")) if by_url else escape
        lines: list[str] = []
        last = ""
        truncated = False
        folders: set[str] = set()
        for key, stored in sorted(found, key=lambda item: item[0].encode("utf-8", "surrogateescape")):
            if delimiter and delimiter in key[len(prefix) :]:
                folder = prefix + key[len(prefix) :].split(delimiter)[0] + delimiter
                if folder in folders or folder <= after:
                    continue
            elif key <= after:
                continue
            else:
                folder = ""
            if len(lines) == limit:
                truncated = True
                break
            last = folder or key
            if folder:
                folders.add(folder)
                lines.append(f"<CommonPrefixes><Prefix>{show(folder)}</Prefix></CommonPrefixes>")
            else:
                lines.append(
                    f"<Contents><Key>{show(key)}</Key><LastModified>{_iso(stored.modified)}</LastModified>"
                    f"<ETag>{escape(stored.etag)}</ETag><Size>{stored.size}</Size></Contents>"
                )
        body = f"<Name>{bucket}</Name><Prefix>{show(prefix)}</Prefix><KeyCount>{len(lines)}</KeyCount>"
        body += f"<MaxKeys>{limit}</MaxKeys><IsTruncated>{str(truncated).lower()}</IsTruncated>"
        if by_url:
            body += "<EncodingType>url</EncodingType>"
        if truncated:
            name = "NextContinuationToken" if is_v2 else "NextMarker"
            body += f"<{name}>{escape(last)}</{name}>"
        return _xml("ListBucketResult", body + "".join(lines), raw=True)

    # --- multipart ------------------------------------------------------------------------------------------------
    def _start(self, bucket: str, key: str, request: Request) -> Response:
        if self.refuse_multipart:
            raise ApiError(501, "NotImplemented")
        upload_id = f"upload-{next(self._ids)}{self.id_end}"
        metadata, headers = self._metadata(request)
        with self.lock:
            self.uploads[upload_id] = Upload(bucket, key, metadata, headers, begun=self._written())
        body = f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{upload_id}</UploadId>"
        return _xml("InitiateMultipartUploadResult", body, raw=True)

    def _upload(self, upload_id: str) -> Upload:
        with self.lock:
            upload = self.uploads.get(upload_id)
        if upload is None:
            raise ApiError(404, "NoSuchUpload", "The specified upload does not exist.")
        return upload

    def _put_part(self, request: Request) -> Response:
        upload = self._upload(request.query["uploadId"])
        number = int(request.query["partNumber"])
        if not 1 <= number <= MAX_PARTS:
            raise ApiError(400, "InvalidArgument", "Part number must be an integer between 1 and 10000")
        self._check_body(request)
        etag = self._etag()
        upload.parts[number] = (request.body, etag, self._written())
        return Response(200, headers={"ETag": etag})

    def _complete(self, objects: dict[str, StoredObject], key: str, request: Request) -> Response:
        upload = self._upload(request.query["uploadId"])
        named: list[tuple[int, str]] = []
        for part in ElementTree.fromstring(bytes(request.body)):
            fields = {child.tag.rpartition("}")[2]: child.text or "" for child in part}
            named.append((int(fields["PartNumber"]), fields["ETag"]))
        if not named:
            raise ApiError(400, "MalformedXML")
        if [number for number, _ in named] != sorted({number for number, _ in named}):
            raise ApiError(400, "InvalidPartOrder")
        pieces: list[Buffer] = []
        for index, (number, etag) in enumerate(named):
            body, stored_etag, _ = upload.parts.get(number, (b"", "", 0.0))
            if stored_etag.strip('"') != etag.strip('"'):
                raise ApiError(400, "InvalidPart", "One or more of the specified parts could not be found.")
            if index < len(named) - 1 and len(body) < MIN_PART:
                raise ApiError(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
            pieces.append(body)
        with self.lock:
            self._check_absent(objects, key, request)
            if self.uploads.pop(request.query["uploadId"], None) is None:
                raise ApiError(404, "NoSuchUpload")
            etag = self._etag()[:-1] + f'-{len(named)}"'
            stored = StoredObject(pieces, etag, upload.metadata, upload.headers, self._written())
            objects[key] = stored
        return _xml(
            "CompleteMultipartUploadResult", f"<Key>{escape(key)}</Key><ETag>{escape(stored.etag)}</ETag>", raw=True
        )

    def _abort(self, upload_id: str) -> Response:
        self._upload(upload_id)
        with self.lock:
            self.uploads.pop(upload_id, None)
        return Response(204)

    def _list_uploads(self, bucket: str, query: dict[str, str]) -> Response:
        if self.refuse_upload_lists:
            raise ApiError(501, "NotImplemented")
        limit = min(int(query.get("max-uploads", 1000)), 1000)
        by_url = query.get("encoding-type") == "url"
        show = (lambda text: quote(text, safe="/-_.~")) if by_url else escape
        after = (query.get("key-marker", ""), query.get("upload-id-marker", ""))
        with self.lock:
            found = sorted(
                (upload.key, upload_id, upload.begun)
                for upload_id, upload in self.uploads.items()
                if upload.bucket == bucket
                and upload.key.startswith(query.get("prefix", ""))
                and (upload.key, upload_id) > after
            )
        truncated = len(found) > limit
        body = f"<IsTruncated>{str(truncated).lower()}</IsTruncated>"
        if by_url:
            body += "<EncodingType>url</EncodingType>"
        if truncated:
            key, upload_id, _ = found[limit - 1]
            body += f"<NextKeyMarker>{show(key)}</NextKeyMarker><NextUploadIdMarker>{upload_id}</NextUploadIdMarker>"
        for key, upload_id, begun in found[:limit]:
            body += f"<Upload><Key>{show(key)}</Key><UploadId>{upload_id}</UploadId>"
            body += f"<Initiated>{_iso(begun)}</Initiated></Upload>"
        return _xml("ListMultipartUploadsResult", body, raw=True)

    def _list_parts(self, query: dict[str, str]) -> Response:
        upload = self._upload(query["uploadId"])
        limit = min(int(query.get("max-parts", 1000)), 1000)
        after = int(query.get("part-number-marker", 0))
        parts = [(number, *upload.parts[number]) for number in sorted(upload.parts) if number > after]
        truncated = len(parts) > limit
        body = f"<Key>{escape(upload.key)}</Key><IsTruncated>{str(truncated).lower()}</IsTruncated>"
        if truncated:
            body += f"<NextPartNumberMarker>{parts[limit - 1][0]}</NextPartNumberMarker>"
        for number, content, etag, came in parts[:limit]:
            body += f"<Part><PartNumber>{number}</PartNumber><LastModified>{_iso(came)}</LastModified>"
            body += f"<ETag>{escape(etag)}</ETag><Size>{len(content)}</Size></Part>"
        return _xml("ListPartsResult", body, raw=True)

    # --- the JSON API of GCS --------------------------------------------------------------------------------------
    def _handle_json(self, request: Request) -> Response:
        query, method = request.query, request.method
        if request.path.startswith("/upload/"):
            bucket = unquote(request.raw_path.split("/")[5])
            if bucket not in self.buckets:
                raise ApiError(404, "notFound", "The specified bucket does not exist.")
            return self._upload_json(bucket, request)
        words = request.raw_path.removeprefix("/storage/v1/").split("/")
        bucket = unquote(words[1]) if len(words) > 1 else ""
        if words[0] != "b" or bucket not in self.buckets:
            raise ApiError(404, "notFound", "The specified bucket does not exist.")
        objects = self.buckets[bucket]
        if len(words) == 3 and method == "GET":
            return self._operation("ListObjects", request, lambda: self._list_json(objects, query))
        key = unquote(words[3]) if len(words) > 3 else ""
        if self.forbidden and self.forbidden in key:
            raise ApiError(403, "forbidden", "Access Denied")
        if method == "DELETE":
            self._find(objects, key)
            return self._operation("DeleteObject", request, lambda: self._delete(objects, key))
        stored = self._find(objects, key)
        if query.get("generation", str(stored.generation)) != str(stored.generation):
            raise ApiError(404, "notFound", "No such generation")
        if query.get("alt") == "media":
            return self._operation("GetObject", request, lambda: self._get(objects, key, request))
        return self._operation("HeadObject", request, lambda: _json(_describe(key, stored)))

    def _list_json(self, objects: dict[str, StoredObject], query: dict[str, str]) -> Response:
        limit = min(int(query.get("maxResults", 1000)), 1000)
        after = query.get("pageToken", "")
        with self.lock:
            keys = sorted(k for k in objects if k.startswith(query.get("prefix", "")) and k > after)
            items = [_describe(key, objects[key]) for key in keys[:limit]]
        answer: dict[str, object] = {"kind": "storage#objects"}
        if items:
            answer["items"] = items
        if len(keys) > limit:
            answer["nextPageToken"] = keys[limit - 1]
        return _json(answer)

    def _store_json(
        self, bucket: str, key: str, body: Buffer, query: dict[str, str], metadata: dict[str, str]
    ) -> Response:
        objects = self.buckets[bucket]
        with self.lock:
            if query.get("ifGenerationMatch") == "0" and key in objects and not self.ignore_conditions:
                raise ApiError(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
            generation = next(self._ids)
            objects[key] = StoredObject([body], self._etag(), metadata, modified=self._written(), generation=generation)
        return _json(_describe(key, objects[key]))

    def _upload_json(self, bucket: str, request: Request) -> Response:
        query = request.query
        if query.get("uploadType") == "media":
            return self._operation(
                "PutObject", request, lambda: self._store_json(bucket, query["name"], request.body, query, {})
            )
        if query.get("uploadType") == "multipart":
            return self._operation("PutObject", request, lambda: self._put_related(bucket, request))
        upload_id = query.get("upload_id")
        if not upload_id:
            described = json.loads(bytes(request.body) or b"{}")
            key = query.get("name") or described["name"]
            upload_id = f"session-{next(self._ids)}"
            self.sessions[upload_id] = (bucket, key, bytearray(), {**query, **described.get("metadata", {})})
            self.count("StartResumable")
            host = request.headers["host"]
            location = f"http://{host}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload_id}"
            return Response(200, headers={"Location": location})
        return self._operation("UploadPart", request, lambda: self._put_chunk(upload_id, request))

    def _put_related(self, bucket: str, request: Request) -> Response:
        boundary = request.headers["content-type"].partition("boundary=")[2].strip("'\"").encode()
        _, described, content, _ = bytes(request.body).split(b"--" + boundary)
        fields = json.loads(described.partition(b"\r\n\r\n")[2])
        body = content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        return self._store_json(bucket, fields["name"], body, request.query, fields.get("metadata", {}))

    def _put_chunk(self, upload_id: str, request: Request) -> Response:
        if upload_id not in self.sessions:
            raise ApiError(404, "notFound", "no such session")
        bucket, key, content, settings = self.sessions[upload_id]
        if request.method == "DELETE":
            del self.sessions[upload_id]
            return Response(499)
        span, _, total = request.headers.get("content-range", "bytes */*").removeprefix("bytes ").partition("/")
        if span != "*":
            begin = int(span.split("-")[0])
            if begin > len(content):
                raise ApiError(503, "backendError", "a gap")
            content[begin:] = request.body
        if total != "*" and len(content) == int(total):
            response = self._store_json(bucket, key, content, settings, {})
            del self.sessions[upload_id]
            return response
        return Response(308, headers={"Range": f"bytes=0-{len(content) - 1}"} if content else {})


def _describe(key: str, stored: StoredObject) -> dict[str, object]:
    return {
        "kind": "storage#object",
        "name": key,
        "size": str(stored.size),
        "generation": str(stored.generation),
        "etag": stored.etag,
        "updated": _iso(stored.modified),
        "metadata": stored.metadata,
    }


def _iso(when: float) -> str:
    return datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _json(content: object) -> Response:
    return Response(200, [json.dumps(content).encode()], {"Content-Type": "application/json"})


def _xml(name: str, content: str, raw: bool = False) -> Response:
    text = content if raw else escape(content)
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{text}</{name}>'
    return Response(200, [body.encode()], {"Content-Type": "application/xml"})


def _decode_aws_chunked(body: Buffer) -> bytearray:
    """The content of a body in aws-chunked encoding; signatures of chunks and trailers are not checked."""
    data = bytes(body)
    content = bytearray()
    at = 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end].split(b";")[0], 16)
        if not size:
            return content
        content += data[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bucket", action="append", default=[])
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--access-key", default="")
    parser.add_argument("--secret-key", default="")
    parser.add_argument("--token", action="append", default=[])
    parser.add_argument("--anonymous", action="store_true")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=0.0)
    options = parser.parse_args()
    server = ObjectServer(
        buckets=tuple(options.bucket or ["bucket"]),
        region=options.region,
        keys={options.access_key: options.secret_key} if options.access_key else {},
        tokens=tuple(options.token),
        anonymous=options.anonymous,
        port=options.port,
        tls=tuple(options.tls) if options.tls else None,
        latency=options.latency,
        rate=options.rate,
    )
    serve_until_stdin_closes(server)


if __name__ == "__main__":
    main()
