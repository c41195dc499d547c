"""Settings by environment variable.

Each setting has a ``get_*`` or ``is_*`` function that reads the variable now, and an ``override_*`` context
manager that sets it for a while (for this process and the ones it starts; not meant for several threads at
once). A value that can't be understood raises :class:`~torchsnapshot.InvalidArgumentError` with the name of
the variable.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

from .errors import InvalidArgumentError

MAX_CHUNK_SIZE_ENV_VAR = "TORCHSNAPSHOT_MAX_CHUNK_SIZE_BYTES_OVERRIDE"
MAX_SHARD_SIZE_ENV_VAR = "TORCHSNAPSHOT_MAX_SHARD_SIZE_BYTES_OVERRIDE"
SLAB_SIZE_THRESHOLD_ENV_VAR = "TORCHSNAPSHOT_SLAB_SIZE_THRESHOLD_BYTES_OVERRIDE"
MAX_PER_RANK_IO_CONCURRENCY_ENV_VAR = "TORCHSNAPSHOT_MAX_PER_RANK_IO_CONCURRENCY_OVERRIDE"
DISABLE_BATCHING_ENV_VAR = "TORCHSNAPSHOT_DISABLE_BATCHING"
PER_RANK_MEMORY_BUDGET_ENV_VAR = "TORCHSNAPSHOT_PER_RANK_MEMORY_BUDGET_BYTES"
SHARDED_TENSOR_ELASTICITY_ROOT_ONLY_ENV_VAR = "TORCHSNAPSHOT_ENABLE_SHARDED_TENSOR_ELASTICITY_ROOT_ONLY"
DISABLE_CHECKSUMS_ENV_VAR = "TORCHSNAPSHOT_DISABLE_CHECKSUMS"
EXIT_TIMEOUT_ENV_VAR = "TORCHSNAPSHOT_EXIT_TIMEOUT_SECONDS"
LAZY_USER_FAULTS_ENV_VAR = "TORCHSNAPSHOT_LAZY_USER_FAULTS"
COMMIT_TIMEOUT_ENV_VAR = "TORCHSNAPSHOT_COMMIT_TIMEOUT_SECONDS"
PROGRESS_ENV_VAR = "TORCHSNAPSHOT_PROGRESS"

_DEFAULT_MAX_CHUNK_SIZE_BYTES = 512 << 20
_DEFAULT_MAX_SHARD_SIZE_BYTES = 512 << 20
_DEFAULT_SLAB_SIZE_THRESHOLD_BYTES = 128 << 20
_DEFAULT_MAX_PER_RANK_IO_CONCURRENCY = 16
_DEFAULT_COMMIT_TIMEOUT_SECONDS = 1800

_MAX_INT64 = (1 << 63) - 1
_MAX_IO_CONCURRENCY = 1 << 16
_MAX_TIMEOUT_SECONDS = 1 << 31
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})


def get_max_chunk_size_bytes() -> int:
    """A dense tensor above this is stored in chunks (512 MiB)."""
    return _int_from_env(MAX_CHUNK_SIZE_ENV_VAR, _DEFAULT_MAX_CHUNK_SIZE_BYTES, minimum=1)


def get_max_shard_size_bytes() -> int:
    """A shard above this is stored in pieces (512 MiB)."""
    return _int_from_env(MAX_SHARD_SIZE_ENV_VAR, _DEFAULT_MAX_SHARD_SIZE_BYTES, minimum=1)


def get_slab_size_threshold_bytes() -> int:
    """Tensors below this share objects of about this size (128 MiB); 0: none do."""
    return _int_from_env(SLAB_SIZE_THRESHOLD_ENV_VAR, _DEFAULT_SLAB_SIZE_THRESHOLD_BYTES, minimum=0)


def get_max_per_rank_io_concurrency() -> int:
    """Reads or writes in flight at once (16)."""
    return _int_from_env(
        MAX_PER_RANK_IO_CONCURRENCY_ENV_VAR,
        _DEFAULT_MAX_PER_RANK_IO_CONCURRENCY,
        minimum=1,
        maximum=_MAX_IO_CONCURRENCY,
    )


def get_per_rank_memory_budget_bytes() -> int | None:
    """Bytes of buffers in use at once; None (not set): the engine chooses by the memory available."""
    if PER_RANK_MEMORY_BUDGET_ENV_VAR not in os.environ:
        return None
    return _int_from_env(PER_RANK_MEMORY_BUDGET_ENV_VAR, 0, minimum=1)


def is_batching_disabled() -> bool:
    """True: each tensor gets an object of its own."""
    return _bool_from_env(DISABLE_BATCHING_ENV_VAR)


def is_sharded_tensor_elasticity_enabled_at_root_only() -> bool:
    """True: a target's sharded tensors are added or left out only where all of them are at the root of their
    state dict."""
    return _bool_from_env(SHARDED_TENSOR_ELASTICITY_ROOT_ONLY_ENV_VAR)


def are_checksums_disabled() -> bool:
    """True: takes write no checksums, and nothing that is read is verified."""
    return _bool_from_env(DISABLE_CHECKSUMS_ENV_VAR)


def get_exit_timeout_seconds() -> int | None:
    """How long a program that ends waits for pending takes before it cancels them; None (not set): until they end."""
    if EXIT_TIMEOUT_ENV_VAR not in os.environ:
        return None
    return _int_from_env(EXIT_TIMEOUT_ENV_VAR, 0, minimum=0)


def are_lazy_user_faults_enabled() -> bool:
    """Whether lazy staging is used also where system calls that write to a tensor whose copy is pending would fail
    (EFAULT) instead of waiting for it."""
    return _bool_from_env(LAZY_USER_FAULTS_ENV_VAR)


def get_commit_timeout_seconds() -> int:
    """How long a rank that has written its part of a snapshot waits for the others before the take fails (1800)."""
    return _int_from_env(
        COMMIT_TIMEOUT_ENV_VAR, _DEFAULT_COMMIT_TIMEOUT_SECONDS, minimum=1, maximum=_MAX_TIMEOUT_SECONDS
    )


def is_progress_enabled() -> bool:
    """True: a long take or restore shows a progress line, if standard error is a terminal."""
    return is_progress_forced() or _bool_from_env(PROGRESS_ENV_VAR)


def is_progress_forced() -> bool:
    """True (value ``force``): the progress line is shown even where standard error is no terminal."""
    return os.environ.get(PROGRESS_ENV_VAR, "").strip().lower() == "force"


@contextmanager
def override_max_chunk_size_bytes(max_chunk_size_bytes: int) -> Generator[None, None, None]:
    """Sets :func:`get_max_chunk_size_bytes`."""
    with _override_env_var(MAX_CHUNK_SIZE_ENV_VAR, max_chunk_size_bytes):
        yield


@contextmanager
def override_max_shard_size_bytes(max_shard_size_bytes: int) -> Generator[None, None, None]:
    """Sets :func:`get_max_shard_size_bytes`."""
    with _override_env_var(MAX_SHARD_SIZE_ENV_VAR, max_shard_size_bytes):
        yield


@contextmanager
def override_slab_size_threshold_bytes(slab_size_threshold_bytes: int) -> Generator[None, None, None]:
    """Sets :func:`get_slab_size_threshold_bytes`."""
    with _override_env_var(SLAB_SIZE_THRESHOLD_ENV_VAR, slab_size_threshold_bytes):
        yield


@contextmanager
def override_max_per_rank_io_concurrency(max_per_rank_io_concurrency: int) -> Generator[None, None, None]:
    """Sets :func:`get_max_per_rank_io_concurrency`."""
    with _override_env_var(MAX_PER_RANK_IO_CONCURRENCY_ENV_VAR, max_per_rank_io_concurrency):
        yield


@contextmanager
def override_per_rank_memory_budget_bytes(per_rank_memory_budget_bytes: int | None) -> Generator[None, None, None]:
    """Sets :func:`get_per_rank_memory_budget_bytes`."""
    with _override_env_var(PER_RANK_MEMORY_BUDGET_ENV_VAR, per_rank_memory_budget_bytes):
        yield


@contextmanager
def override_is_batching_disabled(disabled: bool) -> Generator[None, None, None]:
    """Sets :func:`is_batching_disabled`."""
    with _override_env_var(DISABLE_BATCHING_ENV_VAR, disabled):
        yield


@contextmanager
def override_is_sharded_tensor_elasticity_enabled_at_root_only(enabled: bool) -> Generator[None, None, None]:
    """Sets :func:`is_sharded_tensor_elasticity_enabled_at_root_only`."""
    with _override_env_var(SHARDED_TENSOR_ELASTICITY_ROOT_ONLY_ENV_VAR, enabled):
        yield


@contextmanager
def override_checksums_disabled(disabled: bool) -> Generator[None, None, None]:
    """Sets :func:`are_checksums_disabled`."""
    with _override_env_var(DISABLE_CHECKSUMS_ENV_VAR, disabled):
        yield


@contextmanager
def override_exit_timeout_seconds(seconds: int | None) -> Generator[None, None, None]:
    """Sets :func:`get_exit_timeout_seconds`."""
    with _override_env_var(EXIT_TIMEOUT_ENV_VAR, seconds):
        yield


@contextmanager
def override_lazy_user_faults(enabled: bool) -> Generator[None, None, None]:
    """Sets :func:`are_lazy_user_faults_enabled`."""
    with _override_env_var(LAZY_USER_FAULTS_ENV_VAR, enabled):
        yield


@contextmanager
def override_commit_timeout_seconds(seconds: int | None) -> Generator[None, None, None]:
    """Sets :func:`get_commit_timeout_seconds`."""
    with _override_env_var(COMMIT_TIMEOUT_ENV_VAR, seconds):
        yield


@contextmanager
def override_progress(enabled: bool | str) -> Generator[None, None, None]:
    """Sets :func:`is_progress_enabled`; ``"force"`` also :func:`is_progress_forced`."""
    with _override_env_var(PROGRESS_ENV_VAR, enabled):
        yield


def _int_from_env(name: str, default: int, *, minimum: int, maximum: int = _MAX_INT64) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise InvalidArgumentError(f"{name}={text!r}: not a whole number") from None
    if not minimum <= value <= maximum:
        raise InvalidArgumentError(f"{name}={text!r}: must be from {minimum} to {maximum}")
    return value


def _bool_from_env(name: str) -> bool:
    text = os.environ.get(name, "").strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise InvalidArgumentError(f"{name}={os.environ[name]!r}: must be 1/true/yes/on or 0/false/no/off")


@contextmanager
def _override_env_var(name: str, value: int | str | bool | None) -> Generator[None, None, None]:
    previous = os.environ.get(name)
    _set_env_var(name, None if value is None else str(value))
    try:
        yield
    finally:
        _set_env_var(name, previous)


def _set_env_var(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
