"""What has to hold on every rank of a world (run by worker.py; the tests are in test_ranks.py)."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from support import CORPUS, assert_same, data_files, files_below
from torch import nn
from torch.distributed._shard import sharded_tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torchsnapshot import RNGState, Snapshot, StateDict
from torchsnapshot._coordination import GroupCoordinator
from torchsnapshot.event import Event
from torchsnapshot.io_types import WriteIO
from torchsnapshot.knobs import (
    override_commit_timeout_seconds,
    override_is_batching_disabled,
    override_max_per_rank_io_concurrency,
)
from torchsnapshot.storage_plugin import register_storage_plugin
from torchsnapshot.storage_plugins.fs import FSStoragePlugin
from torchsnapshot.tricks.fsdp import FSDPOptimizerAdapter

COMMIT_SECONDS = 30


def for_worlds(*sizes: int) -> Callable[[Any], Any]:
    def mark(check: Any) -> Any:
        check.world_sizes = sizes
        return check

    return mark


def rank() -> int:
    return dist.get_rank()


def world() -> int:
    return dist.get_world_size()


def same_everywhere(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) * 1000).to(dtype)


@contextlib.contextmanager
def events() -> Iterator[list[Event]]:
    """The events of this process's operations."""
    import torchsnapshot._operation as operation

    seen: list[Event] = []
    before = operation.log_event
    operation.log_event = lambda event: (seen.append(event), before(event))[1]  # type: ignore[assignment]
    try:
        yield seen
    finally:
        operation.log_event = before


def raised(call: Callable[[], Any]) -> BaseException:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


# --- plain state ----------------------------------------------------------------------------------------------------


def check_private_and_replicated(folder: pathlib.Path) -> None:
    state = StateDict(big=same_everywhere(3000, 1000), small=same_everywhere(7), step=5, note="x", pair=(1, 2))
    own = StateDict(rank=rank(), data=torch.full((3,), float(rank())))
    path = str(folder / "snap")
    with events() as seen:
        Snapshot.take(path, {"state": state, "own": own, "rng": RNGState()}, replicated=["state/**"])
    ends = [event for event in seen if event.metadata["action"] == "end"]
    assert [event.metadata["rank"] for event in ends] == [rank()]
    assert 0 < ends[0].metadata["exchanges"] <= 4 + 3, "4 and one for each stateful"  # type: ignore[operator]
    assert ends[0].metadata["exchanges"] == 4
    dist.barrier()
    manifest = Snapshot(path).get_manifest()
    assert Snapshot(path).metadata.world_size == world()
    assert "1/state/big" not in manifest
    assert manifest["0/state/big"].type == "ChunkedTensor"
    assert len(manifest["0/state/big"].chunks) == world()  # type: ignore[attr-defined]
    sizes = [0] * world()
    for name, size in data_files(path).items():
        sizes[int(name.split("/")[2].split("-")[0])] += size
    mean = 12_000_000 / world()
    assert all(abs(size - mean) < 0.05 * mean for size in sizes), sizes
    for saved in range(world()):
        assert_same(Snapshot(path).read_object(f"{saved}/state/big"), state["big"])
        assert Snapshot(path).read_object(f"{saved}/own/rank") == saved
    target = StateDict(big=torch.zeros(3000, 1000), small=torch.zeros(7), step=0, note="", pair=None)
    memory = target["big"].data_ptr()
    other = StateDict(rank=-1, data=torch.zeros(3))
    report = Snapshot(path).restore({"state": target, "own": other})
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
    assert target["big"].data_ptr() == memory
    assert_same(target.data, state.data)
    assert_same(other.data, own.data)
    assert_same(Snapshot(path).get_state_dict_for_key("own"), own.data)
    assert Snapshot(path).get_state_dict_for_key("own", replicate_from_rank0=True)["rank"] == 0


def check_rank_0s_path_wins(folder: pathlib.Path) -> None:
    with events() as seen:
        snapshot = Snapshot.take(str(folder / f"snap-{rank()}"), {"s": StateDict(x=rank())})
    assert snapshot.path == str(folder / "snap-0")
    notices = [event for event in seen if event.metadata["action"] == "notice"]
    assert len(notices) == (0 if rank() == 0 else 1)
    dist.barrier()
    assert sorted(p.name for p in folder.iterdir()) == ["snap-0"]
    assert snapshot.read_object(f"{rank()}/s/x") == rank()


def check_replicated_state_is_read_once(folder: pathlib.Path) -> None:
    state = StateDict(
        big=same_everywhere(3000, 1000), odd=same_everywhere(700, 33, seed=3), small=same_everywhere(7), things={1, 2}
    )
    own = StateDict(data=torch.full((30,), float(rank())), note={"rank", rank()})
    path = str(folder / "snap")
    Snapshot.take(path, {"state": state, "own": own}, replicated=["state/**"])
    for mode in ("share", "direct", "auto"):
        target = StateDict(big=torch.zeros(3000, 1000), odd=torch.zeros(33, 700).t(), small=torch.zeros(7), things=None)
        other = StateDict(data=torch.zeros(30), note=None)
        memory = target["big"].data_ptr()
        with events() as seen:
            report = Snapshot(path).restore({"state": target, "own": other}, replicated_read=mode, weights_only=False)
        assert (report.missing, report.mismatched, report.corrupt) == ([], [], [])
        assert target["big"].data_ptr() == memory
        assert_same(target.data, state.data)
        assert_same(other.data, own.data)
        (end,) = [event for event in seen if event.metadata["action"] == "end"]
        exchanges = end.metadata["exchanges"]
        # Shared: one to begin, two lists of three, three rounds of two at most, the end.
        assert exchanges == 2 if mode != "share" else 8 < exchanges <= 14, exchanges  # type: ignore[operator]
    error = raised(lambda: Snapshot(path).restore({"state": target}, replicated_read="sometimes"))
    assert "'auto', 'direct' or 'share', not 'sometimes'" in str(error), error


def check_sharing_by_some_ranks(folder: pathlib.Path) -> None:
    """Sub-groups share each for itself; a rank that does not want to decides for all; so does an error."""
    groups = [dist.new_group([first, first + 1]) for first in range(0, world(), 2)]
    group = groups[rank() // 2]
    path = str(folder / f"snap-{rank() // 2}")
    state = StateDict(big=same_everywhere(1000, 1000, seed=rank() // 2), step=3)
    Snapshot.take(path, {"state": state}, pg=group, replicated=["**"])
    target = StateDict(big=torch.zeros(1000, 1000), step=0)
    Snapshot(path, pg=group).restore({"state": target}, replicated_read="share")
    assert_same(target.data, state.data)
    target["big"].zero_()
    Snapshot(path, pg=group).restore({"state": target}, replicated_read="share" if rank() % 2 else "direct")
    assert_same(target.data, state.data)
    dist.barrier()
    if rank() % 2:  # half of what its group reads is damaged
        for name in data_files(path):
            with (pathlib.Path(path) / name).open("r+b") as file:
                file.seek(1000)
                file.write(b"damaged!")
    dist.barrier()
    error = raised(lambda: Snapshot(path, pg=group).restore({"state": target}, replicated_read="share"))
    assert "has changed since it was saved" in str(error), error
    report = Snapshot(path, pg=group).restore({"state": target}, replicated_read="share", keep_going=True)
    found = [(corruption.location, corruption.byte_range) for corruption in report.corrupt]
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, found, group=group)
    assert found
    assert gathered == [found, found]


def check_ddp_is_replicated(folder: pathlib.Path) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    ddp = nn.parallel.DistributedDataParallel(model)
    Snapshot.take(str(folder / "snap"), {"model": ddp})
    dist.barrier()
    manifest = Snapshot(str(folder / "snap")).get_manifest()
    assert manifest["0/model/module.0.weight"].replicated  # type: ignore[attr-defined]
    assert "1/model/module.0.weight" not in manifest
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    nn.init.zeros_(model[0].weight)
    Snapshot(str(folder / "snap")).restore({"model": ddp})
    assert_same(dict(model.state_dict()), expected)


def check_replicated_that_differs_is_named(folder: pathlib.Path) -> None:
    with events() as seen:
        state = StateDict(x=torch.full((100,), float(rank())), y=torch.ones(3), n=rank())
        Snapshot.take(str(folder / "snap"), {"s": state}, replicated=["s/*"])
    notices = [event.metadata["message"] for event in seen if event.metadata["action"] == "notice"]
    if rank() == 0:
        assert len(notices) == 1
        assert "'s/x', 's/n'" in notices[0], notices
    assert [event.metadata["exchanges"] for event in seen if event.metadata["action"] == "end"] == [5]


def check_keys_differ(folder: pathlib.Path) -> None:
    path = str(folder / "snap")
    app_state = {"all": StateDict(x=rank()), f"only_{rank()}": StateDict(t=torch.full((4,), float(rank())))}
    if rank() % 2:
        app_state = dict(reversed(app_state.items()))
    Snapshot.take(path, app_state)
    target = {f"only_{rank()}": StateDict(t=torch.zeros(4))}
    if rank() == 0:
        target["all"] = StateDict()
    Snapshot(path).restore(target)
    assert_same(target[f"only_{rank()}"]["t"], torch.full((4,), float(rank())))
    error = raised(
        lambda: Snapshot(path).restore({"all": StateDict(), **({"none": StateDict()} if rank() == 1 else {})})
    )
    assert "nothing under the key 'none'" in str(error), "an error of rank 1 is one of all"
    assert rank() == 1 or "rank 1: " in str(error)


def check_async_takes(folder: pathlib.Path) -> None:
    state = StateDict(x=torch.zeros(50_000), big=torch.zeros(2_000_000))
    pending = []
    for step in range(3):
        state["x"].fill_(step * 10 + rank())
        state["big"].fill_(step)
        with events() as seen:
            pending.append(Snapshot.async_take(str(folder / f"{step}"), {"s": state}, replicated=["s/big"]))
        assert not [event for event in seen if event.metadata["action"] == "end" and not event.metadata["is_success"]]
    for step in range(3, 5):  # to one path: the last one stays
        state["x"].fill_(step * 10 + rank())
        pending.append(Snapshot.async_take(str(folder / "same"), {"s": state}))
    state["x"].fill_(-1)
    for one in pending:
        one.wait(timeout=COMMIT_SECONDS)
    for step in range(3):
        assert_same(
            Snapshot(str(folder / f"{step}")).read_object(f"{rank()}/s/x"), torch.full((50_000,), step * 10.0 + rank())
        )
        assert_same(
            Snapshot(str(folder / f"{step}")).read_object(f"{rank()}/s/big"), torch.full((2_000_000,), float(step))
        )
    dist.barrier()
    assert_same(Snapshot(str(folder / "same")).read_object(f"{rank()}/s/x"), torch.full((50_000,), 40.0 + rank()))
    if rank() == 0:
        assert len(list((folder / "same" / "data").iterdir())) == 1


def check_sub_groups(folder: pathlib.Path) -> None:
    groups = [dist.new_group(list(range(1, world()))), dist.new_group([0])]
    if rank() == 0:
        Snapshot.take(str(folder / "alone"), {"s": StateDict(x=0)}, pg=groups[1])
        assert Snapshot(str(folder / "alone"), pg=groups[1]).metadata.world_size == 1
        return
    Snapshot.take(str(folder / "others"), {"s": StateDict(x=rank())}, pg=groups[0])
    snapshot = Snapshot(str(folder / "others"), pg=groups[0])
    target = StateDict(x=-1)
    snapshot.restore({"s": target})
    assert target["x"] == rank()
    assert snapshot.metadata.world_size == world() - 1


# --- plans that are taken again -------------------------------------------------------------------------------------


def check_an_unchanged_plan_is_not_exchanged_again(folder: pathlib.Path) -> None:
    mesh = init_device_mesh("cpu", (world(),))
    full = same_everywhere(64, 32)
    state = StateDict(
        rows=as_dtensor(full, mesh, [Shard(0)]),
        same=torch.zeros(1000),
        mine=torch.zeros(50 + rank()),
        progress={"step": 0, "mine": 0},
    )

    def take(step: int, mine: int = 0) -> dict[str, Any]:
        state["same"].fill_(step)
        state["mine"].fill_(step + rank())
        state["progress"] = {"step": step, "mine": mine}
        path = str(folder / f"{step}")
        with events() as seen:
            Snapshot.take(path, {"s": state}, replicated=["s/same", "s/progress/step"])
        (end,) = [event.metadata for event in seen if event.metadata["action"] == "end"]
        dist.barrier()
        target = StateDict(
            rows=as_dtensor(full, mesh, [Shard(0)], zero=True),
            same=torch.zeros(1000),
            mine=torch.zeros_like(state["mine"]),
            progress={},
        )
        for key in state:
            if key not in target:
                target[key] = torch.zeros_like(state[key])
        Snapshot(path).restore({"s": target})
        assert_same(target["same"], state["same"])
        assert_same(target["mine"], state["mine"])
        assert target["progress"] == {"step": step, "mine": mine}
        assert_same(target["rows"]._local_tensor, state["rows"]._local_tensor)
        return end

    first = take(1)
    assert (first["plan_unchanged"], first["exchanges"]) == (False, 4)
    for step in (2, 3):
        again = take(step)
        assert (again["plan_unchanged"], again["exchanges"]) == (True, 2), "the path, and the sums"
        assert again["exchange_bytes"] < 1000
    own = take(4, mine=rank() + 5)
    assert (own["plan_unchanged"], own["exchanges"]) == (True, 3), "and values that only one rank has"
    assert own["exchange_bytes"] < 1000 + 100 * world()
    if rank() == world() - 1:
        state["more"] = torch.ones(3)
    assert not take(5)["plan_unchanged"]
    assert take(6)["plan_unchanged"]
    pending = Snapshot.async_take(str(folder / "async"), {"s": state}, replicated=["s/same", "s/progress/step"])
    pending.wait(timeout=COMMIT_SECONDS)
    assert_same(Snapshot(str(folder / "async")).read_object(f"{rank()}/s/mine"), state["mine"])


def check_exchanges_of_many_ranks(folder: pathlib.Path) -> None:
    groups = [dist.new_group(list(range(world()))), dist.new_group(list(reversed(range(world()))))]
    for group in (None, *groups):
        ranks = GroupCoordinator(group)
        me = ranks.rank
        numbers = [2**64 - 1, 2**63 + me, me, 0, 2**32 * (me + 1)]
        sums = ranks.all_sum(b"".join(number.to_bytes(8, "little") for number in numbers))
        found = [int.from_bytes(sums[at : at + 8], "little") for at in range(0, len(sums), 8)]
        size = world()
        below = size * (size - 1) // 2
        assert found == [
            (size * (2**64 - 1)) % 2**64,
            (size * 2**63 + below) % 2**64,
            below,
            0,
            2**32 * (below + size),
        ]
        told = ranks.gather_within(b"x" * me, world())
        assert told == ([b"x" * other for other in range(world())] if me == 0 else [])
        senders = list(range(1, world(), 2))
        assert ranks.exchanges == 2
        told = ranks.gather_from(senders, bytes([me]) * (1000 * (me - 1)))
        assert told == ([bytes([other]) * (1000 * (other - 1)) for other in senders] if me == 0 else [])


# --- failures -------------------------------------------------------------------------------------------------------


class Refusing:
    def state_dict(self) -> dict[str, Any]:
        raise ValueError(f"no state on rank {rank()}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise AssertionError


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("can't be pickled")


def check_errors_of_one_rank_end_the_take_on_all(folder: pathlib.Path) -> None:
    path = str(folder / "snap")
    good: dict[str, Any] = {"s": StateDict(x=torch.full((1000,), float(rank())))}
    Snapshot.take(path, good)
    dist.barrier()
    before = files_below(path)
    broken = 1
    cases: list[tuple[str, dict[str, Any]]] = [
        ("no state on rank 1", {"s": Refusing()}),
        ("can't be pickled", {"s": StateDict(x=Unpicklable())}),
        ("app_state", {"s": 5}),
        ("meta tensor", {"s": StateDict(x=torch.empty(3, device="meta"))}),
    ]
    for take in (Snapshot.take, Snapshot.async_take):
        for needle, bad in cases:
            error = raised(lambda take=take, bad=bad: take(path, bad if rank() == broken else good))
            assert needle in str(error), (needle, error)
            assert rank() == broken or "rank 1: " in str(error)
        dist.barrier()
        assert files_below(path) == before
    Snapshot.take(path, good)
    assert_same(Snapshot(path).read_object(f"{rank()}/s/x"), good["s"]["x"])


def check_a_full_disk_on_one_rank(folder: pathlib.Path) -> None:
    path = str(folder / "snap")
    state = StateDict(x=torch.full((1_000_000,), float(rank())))
    Snapshot.take(path, {"s": state})
    dist.barrier()
    before = files_below(path)
    for asynchronous in (False, True):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if rank() == world() - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        try:
            if asynchronous:
                error = Snapshot.async_take(path, {"s": state}).exception(timeout=COMMIT_SECONDS)
            else:
                error = raised(lambda: Snapshot.take(path, {"s": state}))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert isinstance(error, OSError), error
        assert "large" in str(error), error
        assert rank() == world() - 1 or f"rank {world() - 1}: " in str(error), error
        dist.barrier()
        assert files_below(path) == before
    Snapshot.take(path, {"s": state})
    assert_same(Snapshot(path).read_object(f"{rank()}/s/x"), state["x"])


class SlowFolder(FSStoragePlugin):
    """Objects take a while, one after the other."""

    seconds = 0.0
    refuses = False

    async def write(self, write_io: WriteIO) -> None:
        if self.refuses:
            raise OSError("the test refuses to write")
        await asyncio.sleep(self.seconds)
        await super().write(write_io)


def check_a_rank_that_still_writes_ends_when_another_fails(folder: pathlib.Path) -> None:
    """Long before it has written everything, and long before the commit's deadline."""
    register_storage_plugin("slow", SlowFolder)
    last = world() - 1
    SlowFolder.seconds = 0.2 if rank() == 0 else 0.0
    SlowFolder.refuses = rank() == last
    state = StateDict({f"{i}": torch.full((100,), float(i)) for i in range(1000)})  # 200 s, one by one
    started = time.monotonic()
    for asynchronous in (False, True):
        path = f"slow://{folder}/snap-{asynchronous}"
        with override_is_batching_disabled(True), override_max_per_rank_io_concurrency(1):
            if asynchronous:  # it may end while rank 0 still copies what is to be written
                error = raised(lambda path=path: Snapshot.async_take(path, {"s": state}).wait(COMMIT_SECONDS))
            else:
                error = raised(lambda path=path: Snapshot.take(path, {"s": state}))
        assert "the test refuses" in str(error), error
        assert rank() == last or f"rank {last}: " in str(error), error
        assert not (folder / f"snap-{asynchronous}" / ".snapshot_metadata").exists()
        dist.barrier()
    assert time.monotonic() - started < 100
    SlowFolder.refuses = False
    SlowFolder.seconds = 0.0
    path = f"slow://{folder}/snap-True"
    Snapshot.take(path, {"s": StateDict(x=torch.full((3,), float(rank())))})
    assert_same(Snapshot(path).read_object(f"{rank()}/s/x"), torch.full((3,), float(rank())))


def check_a_rank_slower_than_the_deadline(folder: pathlib.Path) -> None:
    """It is stopped while it writes, goes on later, and is told then what the others know since the deadline."""
    path = str(folder / "snap")
    state = StateDict(x=torch.full((1000,), float(rank())))
    Snapshot.take(path, {"s": state})
    dist.barrier()
    before = files_below(path)
    last, deadline = world() - 1, 2
    register_storage_plugin("slow", SlowFolder)
    SlowFolder.seconds = 3 * deadline if rank() == last else 0.0
    with override_commit_timeout_seconds(deadline):
        started = time.monotonic()
        error = raised(lambda: Snapshot.take(f"slow://{path}", {"s": state}))
        seconds = time.monotonic() - started
    SlowFolder.seconds = 0.0
    assert f"nothing was heard of rank {last} for 2" in str(error), error
    assert rank() == last or seconds < deadline + 2 + 8, "with room for a slow machine"
    dist.barrier()
    assert files_below(path) == before
    Snapshot.take(path, {"s": state})
    assert_same(Snapshot(path).read_object(f"{rank()}/s/x"), state["x"])


# --- sharded state --------------------------------------------------------------------------------------------------


def layouts() -> list[tuple[Any, list[Any]]]:
    mesh = init_device_mesh("cpu", (world(),))
    found: list[tuple[Any, list[Any]]] = [
        (mesh, [Shard(0)]),
        (mesh, [Shard(1)]),
        (mesh, [Shard(2)]),
        (mesh, [Replicate()]),
    ]
    if world() == 4:
        grid = init_device_mesh("cpu", (2, 2))
        grids: list[list[Any]] = [
            [Shard(0), Shard(1)],
            [Shard(1), Shard(0)],
            [Shard(0), Shard(0)],
            [Replicate(), Shard(0)],
            [Shard(2), Replicate()],
            [Replicate(), Replicate()],
            [_StridedShard(0, split_factor=2), Shard(0)],
            [_StridedShard(1, split_factor=2), Shard(1)],
            [_StridedShard(0, split_factor=3), Replicate()],
        ]
        found += [(grid, placements) for placements in grids]
    return found


def local_part(full: torch.Tensor, mesh: Any, placements: list[Any]) -> torch.Tensor:
    """The brute-force reference: what torch's own splitting gives this rank."""
    part = full
    for mesh_dim, placement in enumerate(placements):
        if not placement.is_replicate():
            pieces, _ = placement._split_tensor(part, mesh.size(mesh_dim), with_padding=False, contiguous=True)
            part = pieces[mesh.get_coordinate()[mesh_dim]]
    return part.contiguous()


def as_dtensor(full: torch.Tensor, mesh: Any, placements: list[Any], *, zero: bool = False) -> DTensor:
    local = local_part(full, mesh, placements)
    local = torch.zeros_like(local) if zero else local.clone()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=full.shape, stride=full.stride())


SHAPES = [(8, 12, 4), (7, 5, 3), (1, 3, 2), (3, 1, 9), (16, 16, 16), (5, 4, 0)]


def check_dtensors_from_any_layout_to_any_other(folder: pathlib.Path) -> None:
    path = str(folder / "snap")
    fulls = [same_everywhere(*shape, seed=i, dtype=torch.int64) for i, shape in enumerate(SHAPES)]
    saved = {
        f"{i}": {f"{j}": as_dtensor(full, *layout) for j, full in enumerate(fulls)}
        for i, layout in enumerate(layouts())
    }
    Snapshot.take(path, {"s": StateDict(nest=saved, list=[saved["0"]["0"]])})
    dist.barrier()
    snapshot = Snapshot(path)
    for i, _ in enumerate(layouts()):
        for to, layout in enumerate(layouts()):
            target = {
                f"{k}": {f"{j}": as_dtensor(full, *layout, zero=True) for j, full in enumerate(fulls)}
                for k in range(len(layouts()))
            }
            if i == 0:  # every kind of source into this layout
                state = StateDict(nest=target, list=[as_dtensor(fulls[0], *layout, zero=True)])
                locals_before = {k: {j: t._local_tensor.data_ptr() for j, t in v.items()} for k, v in target.items()}
                report = snapshot.restore({"s": state})
                assert (report.missing, report.unexpected, report.mismatched) == ([], [], []), report
                for k, tensors in state["nest"].items():
                    for j, tensor in tensors.items():
                        assert isinstance(tensor, DTensor)
                        assert tensor._local_tensor.data_ptr() == locals_before[k][j], "in place"
                        assert_same(tensor._local_tensor, local_part(fulls[int(j)], *layout))
            one = as_dtensor(fulls[1], *layout, zero=True)
            assert snapshot.read_object(f"{rank()}/s/nest/{i}/1", obj_out=one) is one
            assert_same(one._local_tensor, local_part(fulls[1], *layout)), (i, to)
        for j, full in enumerate(fulls):
            assert_same(snapshot.read_object(f"0/s/nest/{i}/{j}"), full)
            out = torch.zeros_like(full)
            snapshot.read_object(f"{rank()}/s/nest/{i}/{j}", obj_out=out)
            assert_same(out, full)
    # Plain tensors into sharded targets and the reverse.
    Snapshot.take(str(folder / "plain"), {"s": StateDict(x=fulls[0])}, replicated=["**"])
    for layout in layouts():
        target = StateDict(x=as_dtensor(fulls[0], *layout, zero=True))
        Snapshot(str(folder / "plain")).restore({"s": target})
        assert_same(target["x"]._local_tensor, local_part(fulls[0], *layout))
    target = StateDict(nest={"0": {"0": torch.zeros_like(fulls[0])}})
    snapshot.restore({"s": target})
    assert_same(target["nest"]["0"]["0"], fulls[0])


def check_a_shard_of_several_ranks_is_stored_once(folder: pathlib.Path) -> None:
    path = str(folder / "snap")
    full = same_everywhere(64, 1000)
    mesh = init_device_mesh("cpu", (world() // 2, 2)) if world() == 4 else init_device_mesh("cpu", (world(), 1))
    tensors = {f"{i}": as_dtensor(full, mesh, [Replicate(), Shard(0)]) for i in range(8)}
    Snapshot.take(path, {"s": StateDict(tensors)})
    dist.barrier()
    stored = sum(data_files(path).values())
    assert stored == 8 * full.nbytes, (stored, 8 * full.nbytes)
    sizes = [0] * world()
    for name, size in data_files(path).items():
        sizes[int(name.split("/")[2].split("-")[0])] += size
    assert len(set(sizes)) == 1, sizes
    for i in range(8):
        assert_same(Snapshot(path).read_object(f"{rank()}/s/{i}"), full)


def check_partial_is_an_error_that_says_so(folder: pathlib.Path) -> None:
    mesh = init_device_mesh("cpu", (world(),))
    partial = DTensor.from_local(torch.ones(3), mesh, [Partial()], run_check=False)
    error = raised(lambda: Snapshot.take(str(folder / "snap"), {"s": StateDict(x=partial)}))
    assert isinstance(error, NotImplementedError)
    assert "'s/x'" in str(error)
    assert "Partial" in str(error)


def as_sharded_tensor(full: torch.Tensor, dim: int, *, zero: bool = False) -> Any:
    size = full.shape[dim]
    step = -(-size // world())
    begin, end = min(size, rank() * step), min(size, (rank() + 1) * step)
    shards = []
    if begin < end:
        offsets = [0] * full.dim()
        offsets[dim] = begin
        local = full.narrow(dim, begin, end - begin).contiguous()
        local = torch.zeros_like(local) if zero else local.clone()
        shards.append(sharded_tensor.Shard.from_tensor_and_offsets(local, offsets, rank()))
    return sharded_tensor.init_from_local_shards(shards, *full.shape)


def check_sharded_tensors(folder: pathlib.Path) -> None:
    path = str(folder / "snap")
    full = same_everywhere(13, 8)
    mesh = init_device_mesh("cpu", (world(),))
    Snapshot.take(path, {"s": StateDict(row=as_sharded_tensor(full, 0), deep={"col": as_sharded_tensor(full, 1)})})
    dist.barrier()
    assert Snapshot(path).get_manifest()["0/s/row"].type == "ShardedTensor"
    for dim in (0, 1):
        state = StateDict(
            row=as_sharded_tensor(full, dim, zero=True), deep={"col": as_dtensor(full, mesh, [Shard(dim)], zero=True)}
        )
        report = Snapshot(path).restore({"s": state})
        assert report.mismatched == []
        for shard in state["row"].local_shards():
            offset, size = shard.metadata.shard_offsets[dim], shard.metadata.shard_sizes[dim]
            assert_same(shard.tensor, full.narrow(dim, offset, size).contiguous())
        assert_same(state["deep"]["col"]._local_tensor, local_part(full, mesh, [Shard(dim)]))
    out = as_sharded_tensor(full, 1, zero=True)
    assert Snapshot(path).read_object("0/s/row", obj_out=out) is out
    for shard in out.local_shards():
        offset, size = shard.metadata.shard_offsets[1], shard.metadata.shard_sizes[1]
        assert_same(shard.tensor, full.narrow(1, offset, size).contiguous())
    assert_same(Snapshot(path).read_object("0/s/deep/col"), full)


def model_and_optimizer(shard: Callable[[nn.Module], Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(9, 17), nn.LayerNorm(17), nn.Linear(17, 3))
    shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed + rank())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 9, generator=generator)).square().mean().backward()
        optimizer.step()


def whole(value: Any) -> Any:
    """Every DTensor of a tree as its full tensor."""
    if isinstance(value, DTensor):
        return value.full_tensor().detach().clone()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: whole(v) for k, v in value.items()}
    return [whole(v) for v in value] if isinstance(value, list) else value


def resumes(folder: pathlib.Path, shard: Callable[[nn.Module], Any], other: Callable[[nn.Module], Any]) -> None:
    """Training goes on after a restore as it would have without, in the same and in another sharding."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    class Optimizer:
        """An optimizer by parameter names, as torch.distributed.checkpoint has it."""

        def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            self.model, self.optimizer = model, optimizer

        def state_dict(self) -> Any:
            return get_optimizer_state_dict(self.model, self.optimizer)

        def load_state_dict(self, state: Any) -> None:
            set_optimizer_state_dict(self.model, self.optimizer, state)

    model, optimizer = model_and_optimizer(shard)
    train(model, optimizer, 2, seed=1)
    path = str(folder / "snap")
    Snapshot.take(path, {"model": model, "optim": Optimizer(model, optimizer), "native": optimizer})
    saved = whole(model.state_dict()), whole(get_optimizer_state_dict(model, optimizer)["state"])
    train(model, optimizer, 2, seed=2)
    expected = whole(model.state_dict())
    for how in (shard, other):
        fresh, its_optimizer = model_and_optimizer(how)
        report = Snapshot(path).restore({"model": fresh, "optim": Optimizer(fresh, its_optimizer)})
        assert report.mismatched == []
        assert_same(whole(fresh.state_dict()), saved[0])
        assert_same(whole(get_optimizer_state_dict(fresh, its_optimizer)["state"]), saved[1])
        if how is shard:
            train(fresh, its_optimizer, 2, seed=2)
            assert_same(whole(fresh.state_dict()), expected)
    # The optimizer natively, into one that has its states already.
    train(model, optimizer, 1, seed=3)
    Snapshot(path).restore({"model": model, "native": optimizer})
    train(model, optimizer, 2, seed=2)
    assert_same(whole(model.state_dict()), expected)


def check_fsdp2(folder: pathlib.Path) -> None:
    def shard(model: nn.Module) -> None:
        for layer in model:  # type: ignore[attr-defined]
            fully_shard(layer)
        fully_shard(model)

    def not_at_all(model: nn.Module) -> None:
        pass

    resumes(folder, shard, not_at_all)


@for_worlds(4)
def check_hsdp(folder: pathlib.Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    resumes(folder, lambda model: fully_shard(model, mesh=mesh), lambda model: fully_shard(model))
    manifest = Snapshot(str(folder / "snap")).get_manifest()
    shards = [len(entry.shards) for path, entry in manifest.items() if path.endswith("/model/0.weight")]  # type: ignore[attr-defined]
    assert sum(shards) == 2, shards


@for_worlds(4)
def check_fsdp2_over_tensor_parallel(folder: pathlib.Path) -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(5)

    def build(parallel: bool) -> nn.Module:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))
        if parallel:
            parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
        fully_shard(model, mesh=mesh["dp"] if parallel else None)
        return model

    model = build(True)
    full = whole(model.state_dict())
    Snapshot.take(str(folder / "snap"), {"model": model})
    for parallel in (True, False):
        fresh = build(parallel)
        for parameter in fresh.parameters():
            nn.init.zeros_(parameter)
        Snapshot(str(folder / "snap")).restore({"model": fresh})
        assert_same(whole(fresh.state_dict()), full)


def check_fsdp1(folder: pathlib.Path) -> None:
    from torch.distributed.fsdp import (
        FullyShardedDataParallel,
        ShardedOptimStateDictConfig,
        ShardedStateDictConfig,
        StateDictType,
    )

    def build(seed: int) -> tuple[Any, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = FullyShardedDataParallel(
            nn.Sequential(nn.Linear(9, 16), nn.Linear(16, 3)), use_orig_params=True, device_id=torch.device("cpu")
        )
        FullyShardedDataParallel.set_state_dict_type(
            model, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(), ShardedOptimStateDictConfig()
        )
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    model, optimizer = build(1)
    train(model, optimizer, 2, seed=1)
    path = str(folder / "snap")
    Snapshot.take(path, {"model": model, "optim": FSDPOptimizerAdapter(model, optimizer)})
    train(model, optimizer, 2, seed=2)
    with FullyShardedDataParallel.summon_full_params(model):
        expected = {name: value.detach().clone() for name, value in model.named_parameters()}
    fresh, its_optimizer = build(2)
    train(fresh, its_optimizer, 1, seed=9)  # makes the optimizer's states
    Snapshot(path).restore({"model": fresh, "optim": FSDPOptimizerAdapter(fresh, its_optimizer)})
    train(fresh, its_optimizer, 2, seed=2)
    with FullyShardedDataParallel.summon_full_params(fresh):
        assert_same({name: value.detach().clone() for name, value in fresh.named_parameters()}, expected)


# --- the original's snapshots ---------------------------------------------------------------------------------------


@for_worlds(2, 4)
def check_snapshots_of_the_original(folder: pathlib.Path) -> None:
    mesh = init_device_mesh("cpu", (world(),))
    for name in ("replicated_2", "sharded_2", "dtensor_2"):
        expected = torch.load(CORPUS / name / "expected.pt", weights_only=False)
        snapshot = Snapshot(str(CORPUS / name / "snapshot"))
        for key in expected["ranks"][0]:
            target = StateDict()
            if rank() < 2:
                snapshot.restore({key: target})
                assert_same(target.data, dict(expected["ranks"][rank()][key]))
            else:  # a rank that did not exist: what is replicated
                snapshot.restore({key: target})
                assert set(target.data) <= set(expected["ranks"][0][key])
        for path, tensor in expected["global"].items():
            key, *rest = path.split("/")
            for make in (
                lambda t: as_dtensor(t, mesh, [Shard(0)], zero=True),
                lambda t: as_sharded_tensor(t, 1, zero=True),
            ):
                leaf = make(tensor)
                state: Any = leaf
                for part in reversed(rest):
                    state = {part: state}
                snapshot.restore({key: StateDict(state)})
                parts = (
                    [(leaf._local_tensor, local_part(tensor, mesh, [Shard(0)]))]
                    if isinstance(leaf, DTensor)
                    else [
                        (
                            s.tensor,
                            tensor.narrow(1, s.metadata.shard_offsets[1], s.metadata.shard_sizes[1]).contiguous(),
                        )
                        for s in leaf.local_shards()
                    ]
                )
                for got, want in parts:
                    assert_same(got, want)


def check_save_for_the_original(folder: pathlib.Path) -> None:
    """What original_ranks.py restores."""
    mesh = init_device_mesh("cpu", (world(),))
    full = same_everywhere(37, 11)
    state = StateDict(
        big=same_everywhere(3000, 1000),
        small=same_everywhere(7),
        step=7,
        thing=("a", 1),
        st=as_sharded_tensor(full, 0),
        other=as_sharded_tensor(full, 1),
        dt=as_dtensor(full, mesh, [Shard(0)]),
    )
    own = StateDict(rank=rank(), data=torch.full((30,), float(rank())), note=f"rank {rank()}")
    replicated = [f"state/{name}" for name in ("big", "small", "step", "thing")]
    Snapshot.take(str(folder / "snap"), {"state": state, "own": own}, replicated=replicated)


# --- other numbers of ranks -----------------------------------------------------------------------------------------


def check_save_for_other_worlds(folder: pathlib.Path) -> None:
    mesh = init_device_mesh("cpu", (world(),))
    full = same_everywhere(37, 11)
    state = StateDict(
        rows=as_dtensor(full, mesh, [Shard(0)]),
        st=as_sharded_tensor(full, 1),
        same=full.clone(),
        mine=torch.full((2,), float(rank())),
    )
    place = pathlib.Path(folder).parent.parent / f"from-{world()}"
    torch.manual_seed(100 + rank())
    Snapshot.take(str(place), {"s": state, "rng": RNGState()}, replicated=["s/same"])


def check_restore_of_other_worlds(folder: pathlib.Path) -> None:
    mesh = init_device_mesh("cpu", (world(),))
    full = same_everywhere(37, 11)
    for place in sorted(pathlib.Path(folder).parent.parent.glob("from-*")):
        savers = int(place.name.split("-")[1])
        target = StateDict(
            rows=as_sharded_tensor(full, 1, zero=True),
            st=as_dtensor(full, mesh, [Shard(0)], zero=True),
            same=torch.zeros_like(full),
            mine=torch.full((2,), -1.0),
        )
        mine = target["mine"]
        torch.manual_seed(7)
        report = Snapshot(str(place)).restore({"s": target, "rng": RNGState()})
        drawn = torch.rand(3)
        torch.manual_seed(100 + rank() if rank() < savers else 7)  # a rank that was not there keeps what it has
        assert_same(drawn, torch.rand(3))
        missing = [path for path in report.missing if not path.startswith("rng/")]
        assert (len(missing) < len(report.missing)) == (rank() >= savers), report.missing
        assert missing == ([] if rank() < savers else ["s/mine"])
        assert_same(mine, torch.full((2,), float(rank()) if rank() < savers else -1.0))
        assert_same(target["same"], full)
        assert_same(target["st"]._local_tensor, local_part(full, mesh, [Shard(0)]))
        for shard in target["rows"].local_shards():
            offset, size = shard.metadata.shard_offsets[1], shard.metadata.shard_sizes[1]
            assert_same(shard.tensor, full.narrow(1, offset, size).contiguous())
