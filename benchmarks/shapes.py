"""The states that are saved, and their content: known bytes, so that what comes back can be checked bit for bit.

Runs in the original's environment too: needs torch only.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

BLOCK = 16 << 20  #: bytes; the content repeats a random block, changed per tensor and block
SMALL_COUNT, SMALL_BYTES = 65_536, 4 << 10
LARGE_BYTES = 64 << 20

State = dict[str, torch.Tensor]


def make(shape: str, size: int) -> State:
    """The state of that shape with about `size` bytes, filled with its content."""
    state = {
        "few_large": _few_large,
        "llm": _llm,
        "small": _small,
        "huge": _huge,
    }[shape](size)
    fill(state)
    return state


def _few_large(size: int) -> State:
    return {f"layer_{i}": torch.empty(LARGE_BYTES // 4) for i in range(max(1, size // LARGE_BYTES))}


def _huge(size: int) -> State:
    return {"embedding": torch.empty(size // 4)}


def _small(size: int) -> State:
    """65,536 tensors of 4 KiB, or fewer if `size` is less than they need."""
    count = min(SMALL_COUNT, max(1, size // SMALL_BYTES))
    return {f"layer_{i // 64}.param_{i % 64}": torch.empty(SMALL_BYTES // 4) for i in range(count)}


def _llm(size: int) -> State:
    """A decoder of 11 blocks: 90 bf16 parameters, and fp32 moments of Adam for each: 270 tensors, 10 bytes a weight."""
    width = max(8, round((size / 10 / 184) ** 0.5 / 64) * 64)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (8 * width, width)}
    for block in range(11):
        shapes.update({f"blocks.{block}.{name}": (width, width) for name in ("q", "k", "v", "o")})
        shapes.update({f"blocks.{block}.{name}": (4 * width, width) for name in ("gate", "up")})
        shapes[f"blocks.{block}.down"] = (width, 4 * width)
        shapes[f"blocks.{block}.norm"] = (width,)
    shapes["norm"] = (width,)
    state: State = {f"model.{name}": torch.empty(dims, dtype=torch.bfloat16) for name, dims in shapes.items()}
    for moment in ("exp_avg", "exp_avg_sq"):
        state.update({f"optim.{name}.{moment}": torch.empty(dims) for name, dims in shapes.items()})
    return state


def total_bytes(state: State) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def words(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's memory as 64-bit integers."""
    return tensor.view(-1).view(torch.int64)


def _blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    yield from words(tensor).split(BLOCK // 8)


def _base() -> torch.Tensor:
    generator = torch.Generator().manual_seed(4711)
    return torch.randint(-(2**63), 2**63 - 1, (BLOCK // 8,), dtype=torch.int64, generator=generator)


def _change(tensor_number: int, block_number: int) -> int:
    return (tensor_number * 1_000_003 + block_number * 7919 + 1) * 0x9E3779B1 % 2**62


def fill(state: State) -> None:
    base = _base()
    for number, tensor in enumerate(state.values()):
        for index, block in enumerate(_blocks(tensor)):
            torch.add(base[: len(block)], _change(number, index), out=block)


def first_difference(state: State, names: list[str]) -> str | None:
    """The first tensor of `state` that is not, bit for bit, what was saved; `names` are all, in the order saved."""
    if sorted(state) != sorted(names):
        return f"names differ: {len(state)} instead of {len(names)}"
    base = _base()
    for number, name in enumerate(names):
        for index, block in enumerate(_blocks(state[name])):
            if not torch.equal(block, base[: len(block)] + _change(number, index)):
                return name
    return None


def spoil(state: State) -> None:
    """Makes sure that nothing is right by chance."""
    for tensor in state.values():
        words(tensor).zero_()


def mutate(state: State, by: int) -> None:
    """What a training step does to the tensors that an async snapshot is still being taken of."""
    for tensor in state.values():
        words(tensor).add_(by)
