"""S3, for programs that use a storage plugin directly. Snapshots use the engine's own backend."""

from __future__ import annotations

from typing import Any

from .._native_storage import NativeStoragePlugin


class S3StoragePlugin(NativeStoragePlugin):
    """Objects in a bucket of S3 or of a store that speaks its protocol.

    `root` is ``BUCKET/PREFIX``; the options are those of ``s3://`` URLs.
    """

    def __init__(self, root: str, storage_options: dict[str, Any] | None = None) -> None:
        super().__init__(f"s3://{root}", storage_options)
        self.bucket, _, self.root = root.strip("/").partition("/")
