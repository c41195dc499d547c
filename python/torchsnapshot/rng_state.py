"""The state of the global random number generators."""

from __future__ import annotations

import random
import sys
import warnings
from typing import Any

import torch

_TORCH = "rng_state"
_CUDA = "cuda_rng_state"
_NUMPY = "numpy_rng_state"
_PYTHON = "python_rng_state"

_UINT64_BIT_GENERATORS = frozenset({"Philox", "SFC64"})


class RNGState:
    """The global random number generators, as a stateful object.

    Saved are torch's CPU generator, the CUDA generator of each device (if CUDA has been initialized),
    numpy's global generator (if numpy has been imported) and Python's ``random``. A take leaves them as
    they were, and a restore sets them as the last thing, so the numbers drawn after a restore are those that
    were drawn after the take.

    A snapshot that holds only torch's CPU generator, as older versions saved, restores that and leaves the
    others alone. Each rank has states of its own: on a rank beyond those that saved them, a restore leaves the
    generators as they are, says so, and lists the states as missing.
    """

    def state_dict(self) -> dict[str, Any]:
        """All states, as tensors, ints, floats and strings."""
        state: dict[str, Any] = {_TORCH: torch.get_rng_state()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            state[_CUDA] = [torch.cuda.get_rng_state(device) for device in range(torch.cuda.device_count())]
        if "numpy" in sys.modules:
            state[_NUMPY] = _numpy_state()
        state[_PYTHON] = _python_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets the generators that `state_dict` has a state for.

        Warns where a state can't be set here (another number of CUDA devices, no numpy, another bit generator).
        Raises KeyError if torch's CPU state is missing, ValueError or RuntimeError if a state is malformed.
        """
        torch_state = state_dict[_TORCH]
        python_state = _to_python_state(state_dict[_PYTHON]) if _PYTHON in state_dict else None

        torch.set_rng_state(_cpu_bytes(torch_state))
        if _CUDA in state_dict:
            _set_cuda_states(state_dict[_CUDA])
        if _NUMPY in state_dict:
            _set_numpy_state(state_dict[_NUMPY])
        if python_state is not None:
            random.setstate(python_state)


def _cpu_bytes(state: torch.Tensor) -> torch.Tensor:
    return state.detach().to(device="cpu", dtype=torch.uint8).contiguous()


def _set_cuda_states(states: list[torch.Tensor]) -> None:
    if not torch.cuda.is_available():
        _warn(f"the snapshot has the generator states of {len(states)} CUDA devices, but CUDA is not available here")
        return
    here = torch.cuda.device_count()
    if here != len(states):
        _warn(
            f"the snapshot has the generator states of {len(states)} CUDA devices, here are {here}: "
            f"the first {min(here, len(states))} are restored"
        )
    for device, state in enumerate(states[:here]):
        torch.cuda.set_rng_state(_cpu_bytes(state), device)


def _python_state() -> dict[str, Any]:
    version, internal, gauss_next = random.getstate()
    return {
        "version": version,
        "internal": torch.tensor(internal, dtype=torch.int64),
        "has_gauss": gauss_next is not None,
        "gauss_next": 0.0 if gauss_next is None else gauss_next,
    }


def _to_python_state(plain: dict[str, Any]) -> tuple[Any, ...]:
    gauss_next = float(plain["gauss_next"]) if plain["has_gauss"] else None
    return int(plain["version"]), tuple(plain["internal"].tolist()), gauss_next


def _numpy_state() -> dict[str, Any]:
    import numpy as np

    plain: dict[str, Any] = _to_leaves(np.random.get_state(legacy=False))
    return plain


def _set_numpy_state(plain: dict[str, Any]) -> None:
    try:
        import numpy as np
    except ImportError:
        _warn("the snapshot has the state of numpy's generator, but numpy is not installed here")
        return
    saved, here = plain["bit_generator"], np.random.get_state(legacy=False)["bit_generator"]
    if saved != here:
        _warn(f"the snapshot has the state of numpy's bit generator {saved}, here it is {here}: not restored")
        return
    np.random.set_state(_from_leaves(plain, np.uint64 if saved in _UINT64_BIT_GENERATORS else np.uint32))


def _to_leaves(value: Any) -> Any:
    """A numpy state with its arrays as int64 tensors (which every version can store) and plain scalars."""
    import numpy as np

    if isinstance(value, dict):
        return {key: _to_leaves(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        wide = value.view(np.int64) if value.dtype == np.uint64 else value.astype(np.int64)
        return torch.from_numpy(wide.copy())
    if isinstance(value, np.generic):
        return value.item()
    return value


def _from_leaves(plain: Any, array_dtype: Any) -> Any:
    import numpy as np

    if isinstance(plain, dict):
        return {key: _from_leaves(item, array_dtype) for key, item in plain.items()}
    if isinstance(plain, torch.Tensor):
        wide = plain.detach().cpu().numpy()
        return wide.view(np.uint64).copy() if array_dtype is np.uint64 else wide.astype(array_dtype)
    return plain


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
