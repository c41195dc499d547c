"""Google Cloud Storage, for programs that use a storage plugin directly. Snapshots use the engine's own backend."""

from __future__ import annotations

from typing import Any

from .._native_storage import NativeStoragePlugin


class GCSStoragePlugin(NativeStoragePlugin):
    """Objects in a bucket of Google Cloud Storage.

    `root` is ``BUCKET/PREFIX``; the options are those of ``gs://`` URLs.
    """

    def __init__(self, root: str, storage_options: dict[str, Any] | None = None) -> None:
        super().__init__(f"gs://{root}", storage_options)
        self.bucket, _, self.root = root.strip("/").partition("/")
