"""async_take with staging="lazy" and "step": the same oracle as eager, whatever training does meanwhile."""

from __future__ import annotations

import ctypes
import gc
import os
import pathlib
import threading
from typing import Any

import numpy as np
import pytest
import torch
from support import assert_same, restored, run_python
from test_async_take import SlowPlugin, many_tensors, scribble, slow  # noqa: F401
from torch import nn
from torchsnapshot import PendingTakeError, RNGState, Snapshot, StateDict, knobs

MB = 1 << 20


def large_tensors(seed: int) -> dict[str, torch.Tensor]:
    """Beside small ones some that are large enough to be copied later; views of one storage among them."""
    tensors = many_tensors(seed)
    generator = torch.Generator().manual_seed(seed)
    tensors["huge"] = torch.rand(6 * MB, generator=generator)
    tensors["param"] = nn.Parameter(torch.rand(1500, 1024, generator=generator))
    storage = torch.rand(5 * MB, generator=generator)
    tensors["first"] = storage[: 3 * MB]
    tensors["second"] = storage[2 * MB :]
    tensors["never_touched"] = torch.zeros(4 * MB)
    tensors["numpy"] = torch.from_numpy(np.arange(2 * MB, dtype=np.int64))
    return tensors


def plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.data if isinstance(value, nn.Parameter) else value for key, value in tensors.items()}


@pytest.mark.filterwarnings("ignore")
class TestLazy:
    @pytest.mark.parametrize("budget", [None, 1, 6 << 20])
    @pytest.mark.parametrize("user_faults", [False, True])
    def test_what_was_there_at_the_call(self, snap: str, budget: int | None, user_faults: bool) -> None:
        expected, state = StateDict(large_tensors(1)), StateDict(large_tensors(1))
        with (
            knobs.override_per_rank_memory_budget_bytes(budget),
            knobs.override_lazy_user_faults(user_faults),
            knobs.override_max_chunk_size_bytes(9 << 20),
        ):
            pending = Snapshot.async_take(snap, {"state": state}, staging="lazy")
        scribble(state.data)
        stop = threading.Event()

        def hammer() -> None:
            while not stop.is_set():
                state["huge"][::1021] += 1
                state["first"][1::4099] += 1

        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        pending.wait()
        stop.set()
        for thread in threads:
            thread.join()
        assert_same(restored(snap), plain(expected.data))

    def test_tensors_that_are_freed(self, snap: str) -> None:
        state = StateDict(large_tensors(2))
        pending = Snapshot.async_take(snap, {"state": state}, staging="lazy")
        state["huge"].data = torch.zeros(3)
        state.clear()
        gc.collect()
        junk = [torch.full((3 * MB,), 5.0) for _ in range(4)]
        pending.wait()
        assert len(junk) == 4
        assert_same(restored(snap), plain(large_tensors(2)))

    def test_a_write_with_the_gil_held_while_the_storage_needs_it(
        self,
        slow: type[SlowPlugin],  # noqa: F811
    ) -> None:
        """numpy keeps the GIL while it writes; the plugin can't go on without it, and has no buffer to give back."""
        state = StateDict(x=torch.arange(3 * MB), y=torch.ones(4 * MB))
        with knobs.override_per_rank_memory_budget_bytes(1):
            pending = Snapshot.async_take("slow://place", {"state": state}, staging="lazy")
        state["x"].numpy()[:] = 0
        address, size = state["y"].data_ptr(), state["y"].nbytes
        ctypes.PyDLL(None).memset(ctypes.c_void_p(address), 0, ctypes.c_size_t(size))  # the GIL is kept
        slow.gate.set()
        target = StateDict()
        pending.wait(timeout=60).restore({"state": target})
        assert_same(dict(target), {"x": torch.arange(3 * MB), "y": torch.ones(4 * MB)})

    def test_system_calls_that_write_to_a_tensor(self, tmp_path: pathlib.Path) -> None:
        state = StateDict(large_tensors(3))
        np.full(6 * MB, 7, dtype=np.float32).tofile(tmp_path / "file")
        pending = Snapshot.async_take(str(tmp_path / "snap"), {"state": state}, staging="lazy")
        with open(tmp_path / "file", "rb", buffering=0) as file:
            assert file.readinto(state["huge"].numpy()) == 24 * MB
        assert bool((state["huge"] == 7).all())
        pending.wait()
        assert_same(restored(str(tmp_path / "snap")), plain(large_tensors(3)))

    def test_a_restore_into_what_is_pending(self, tmp_path: pathlib.Path) -> None:
        Snapshot.take(str(tmp_path / "other"), {"state": StateDict(large_tensors(5))})
        state = StateDict(large_tensors(4))
        with knobs.override_lazy_user_faults(True):
            pending = Snapshot.async_take(str(tmp_path / "snap"), {"state": state}, staging="lazy")
        Snapshot(str(tmp_path / "other")).restore({"state": state})
        assert_same(plain(state.data), plain(large_tensors(5)))
        pending.wait()
        assert_same(restored(str(tmp_path / "snap")), plain(large_tensors(4)))

    def test_memory_of_files_and_other_processes(self, tmp_path: pathlib.Path) -> None:
        torch.save({"x": torch.arange(3 * MB)}, tmp_path / "file.pt")
        state = StateDict(
            mapped=torch.load(tmp_path / "file.pt", mmap=True)["x"],
            shared=torch.arange(3 * MB).share_memory_(),
        )
        pending = Snapshot.async_take(str(tmp_path / "snap"), {"state": state}, staging="lazy")
        state["shared"].zero_()
        state["mapped"].zero_()
        pending.wait()
        expected = {"mapped": torch.arange(3 * MB), "shared": torch.arange(3 * MB)}
        assert_same(restored(str(tmp_path / "snap")), expected)

    def test_every_step(self, tmp_path: pathlib.Path) -> None:
        state = StateDict(x=torch.zeros(4 * MB))
        pending = []
        for step in range(5):
            state["x"].fill_(step)
            pending.append(Snapshot.async_take(str(tmp_path / str(step)), {"state": state}, staging="lazy"))
        state["x"].fill_(-1)
        for step, one in enumerate(pending):
            one.wait()
            assert_same(restored(str(tmp_path / str(step))), {"x": torch.full((4 * MB,), float(step))})

    def test_wait_staged(self, snap: str) -> None:
        state = StateDict(large_tensors(6))
        pending = Snapshot.async_take(snap, {"state": state}, staging="lazy")
        pending.wait_staged()
        scribble(state.data)
        pending.wait()
        pending.wait_staged()
        assert_same(restored(snap), plain(large_tensors(6)))

    @pytest.mark.no_sanitizer
    def test_programs_that_fork_and_end(self, snap: str) -> None:
        code = """
import os, sys, torch
from torchsnapshot import Snapshot, StateDict
torch.set_num_threads(1)  # OpenMP does not survive a fork
state = StateDict(x=torch.arange(3_000_000), step=7)
pending = Snapshot.async_take(sys.argv[1], dict(state=state), staging="lazy")
child = os.fork()
if child == 0:
    state["x"].zero_()
    Snapshot.async_take(sys.argv[1] + "-child", dict(state=state), staging="lazy").wait()
    os._exit(0)
state["x"].zero_()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
        done = run_python(code, snap)
        assert (done.returncode, done.stderr) == (0, "")
        assert_same(restored(snap), {"x": torch.arange(3_000_000), "step": 7})
        assert_same(restored(snap + "-child"), {"x": torch.zeros(3_000_000, dtype=torch.int64), "step": 7})


def trained(tmp_path: pathlib.Path, staging: str, steps: int = 4) -> None:
    """A training loop with parameters, buffers and optimizer state of some MB; a snapshot of each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(700, 1500), nn.BatchNorm1d(1500), nn.ReLU(), nn.Linear(1500, 700))
    optimizer = torch.optim.AdamW(model.parameters())
    app_state = {"model": model, "optimizer": optimizer, "rng": RNGState()}
    pending = []
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 700)).square().mean().backward()
        optimizer.step()
        path = str(tmp_path / f"{staging}-{step}")
        if staging == "sync":
            Snapshot.take(path, app_state)
        else:
            pending.append(Snapshot.async_take(path, app_state, staging=staging))
    for one in pending:
        one.wait()


@pytest.mark.no_sanitizer
def test_a_program_that_ends_before_the_next_step(snap: str) -> None:
    code = """
import sys, torch
from torchsnapshot import Snapshot, StateDict
parameter = torch.nn.Parameter(torch.arange(3_000_000.0))
optimizer = torch.optim.SGD([parameter], lr=1.0)
pending = Snapshot.async_take(sys.argv[1], dict(state=StateDict(x=parameter), optimizer=optimizer), staging="step")
"""
    done = run_python(code, snap)
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(restored(snap), {"x": torch.arange(3_000_000.0)})


class TestTraining:
    @pytest.mark.parametrize("staging", ["lazy", "step"])
    def test_gives_the_same_snapshots_as_take(self, tmp_path: pathlib.Path, staging: str) -> None:
        trained(tmp_path, "sync")
        trained(tmp_path, staging)
        for step in range(4):
            for key in ("model", "optimizer", "rng"):
                sync, other = (
                    Snapshot(str(tmp_path / f"{kind}-{step}")).get_state_dict_for_key(key) for kind in ("sync", staging)
                )
                assert_same(other, sync)


class TestStep:
    @staticmethod
    def setup_of(size: int = 3 * MB) -> tuple[nn.Parameter, torch.optim.Optimizer, dict[str, Any]]:
        parameter = nn.Parameter(torch.arange(float(size)))
        optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.9)
        parameter.grad = torch.ones(size)
        return parameter, optimizer, {"optimizer": optimizer, "state": StateDict(p=parameter, other=torch.ones(size))}

    def test_only_what_the_step_changes_is_left_for_later(self, snap: str) -> None:
        parameter, optimizer, app_state = self.setup_of()
        before = parameter.detach().clone()
        pending = Snapshot.async_take(snap, app_state, staging="step")
        app_state["state"]["other"].zero_()
        for _ in range(3):
            optimizer.step()
        pending.wait()
        assert_same(restored(snap), {"p": before, "other": torch.ones(3 * MB)})
        assert not torch.equal(parameter, before)

    def test_it_may_change_once_all_is_staged(self, snap: str) -> None:
        parameter, optimizer, app_state = self.setup_of()
        pending = Snapshot.async_take(snap, app_state, staging="step")
        pending.wait_staged()
        with torch.no_grad():
            parameter.add_(1)
        optimizer.step()
        pending.wait()
        assert_same(restored(snap)["p"], torch.arange(float(3 * MB)))

    def test_another_change_is_an_error_and_no_snapshot(self, snap: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchsnapshot import _staging

        parameter, _, app_state = self.setup_of()
        Snapshot.take(snap, {"state": StateDict(old=1)})
        changed = threading.Event()
        check = _staging._UntilStep.copied

        def late(self: Any) -> None:  # the copies are not faster than the change
            changed.wait(60)
            check(self)

        monkeypatch.setattr(_staging._UntilStep, "copied", late)
        pending = Snapshot.async_take(snap, app_state, staging="step")
        with torch.no_grad():
            parameter.add_(1)
        changed.set()
        with pytest.raises(PendingTakeError, match="'state/p' was changed in place") as raised:
            pending.wait()
        assert isinstance(raised.value.__cause__, ValueError)
        assert_same(restored(snap), {"old": 1})

    def test_a_broken_promise(self) -> None:
        """The check itself, without the race."""
        from torchsnapshot._staging import staging_of

        parameter, _, app_state = self.setup_of(10)
        staging = staging_of("step", app_state)
        assert staging is not None
        assert staging.own(torch.ones(3), "state/other") is None
        kept = staging.own(parameter, "state/p")
        assert isinstance(kept, torch.Tensor)
        assert kept.data_ptr() == parameter.data_ptr()
        with torch.no_grad():
            parameter.add_(1)
        for _ in range(2):
            with pytest.raises(ValueError, match="state/p"):
                staging.copied()

    def test_other_optimizers_and_forgotten_takes_do_no_harm(self, snap: str) -> None:
        other = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=1.0)
        _, _, app_state = self.setup_of()
        Snapshot.async_take(snap, app_state, staging="step").wait()
        del app_state
        gc.collect()
        other.step()

    def test_without_optimizers_it_is_eager(self, snap: str) -> None:
        state = StateDict(large_tensors(1))
        pending = Snapshot.async_take(snap, {"state": state}, staging="step")
        scribble(state.data)
        pending.wait()
        assert_same(restored(snap), plain(large_tensors(1)))


def test_an_unknown_mode(snap: str) -> None:
    with pytest.raises(ValueError, match="'eager', 'lazy', 'step'"):
        Snapshot.async_take(snap, {"state": StateDict(a=1)}, staging="later")
    assert not os.path.exists(snap)


@pytest.mark.skipif("TORCHSNAPSHOT_TEST_LARGE" not in os.environ, reason="1 GiB; set TORCHSNAPSHOT_TEST_LARGE")
@pytest.mark.parametrize("staging", ["eager", "lazy"])
def test_a_large_one(snap: str, staging: str) -> None:
    state = StateDict(x=torch.arange(1 << 27))
    with knobs.override_per_rank_memory_budget_bytes(256 * MB):
        pending = Snapshot.async_take(snap, {"state": state}, staging=staging)
    for _ in range(3):
        state["x"] += 1
    pending.wait()
    assert torch.equal(restored(snap)["x"], torch.arange(1 << 27))
