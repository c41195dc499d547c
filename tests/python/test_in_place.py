"""Restore writes into the memory that is there, needs no second copy of the state,
and reports what does not match."""

from __future__ import annotations

import copy
import os
import pathlib
import re
import threading
from typing import Any

import pytest
import torch
from support import assert_same, bits, raises_clearly, restored
from torch import nn
from torchsnapshot import Snapshot, StateDict

MB = 1 << 20


def own_memory() -> int:
    """Bytes of memory in use that the kernel can't drop: pages of mapped files don't count."""
    status = pathlib.Path("/proc/self/status").read_text()
    return sum(int(kib) << 10 for kib in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE))


def peak_memory(action: Any) -> int:
    """How many bytes more than before were in use while `action` ran."""
    before = own_memory()
    samples = [before]
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.002):
            samples.append(own_memory())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        action()
    finally:
        stop.set()
        thread.join()
    assert len(samples) > 3, "the action was over before it could be watched"
    return max(samples) - before


def drop_from_cache(snapshot: str) -> None:
    for path in pathlib.Path(snapshot).rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class TestSameMemory:
    def test_state_dict(self, snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(a=torch.rand(5), n=[{"b": torch.arange(4)}], z=torch.tensor(3.0))})
        target = StateDict(a=torch.zeros(5), n=[{"b": torch.zeros(4, dtype=torch.int64)}], z=torch.tensor(0.0))
        tensors = [target["a"], target["n"][0]["b"], target["z"]]
        places = [t.data_ptr() for t in tensors]
        Snapshot(snap).restore({"state": target})
        for now, before, place in zip([target["a"], target["n"][0]["b"], target["z"]], tensors, places, strict=True):
            assert now is before
            assert now.data_ptr() == place
        assert_same(target.data, restored(snap))

    def test_module(self, snap: str) -> None:
        saved, target = nn.Linear(30, 20), nn.Linear(30, 20)
        kept = dict(target.named_parameters())
        places = {n: p.data_ptr() for n, p in kept.items()}
        Snapshot.take(snap, {"m": saved}).restore({"m": target})
        assert all(p is kept[n] for n, p in target.named_parameters())
        assert {n: p.data_ptr() for n, p in target.named_parameters()} == places
        assert_same(target.state_dict(), saved.state_dict())
        assert all(p.requires_grad and p.grad_fn is None for p in target.parameters())

    def test_optimizer_moments(self, snap: str) -> None:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        expected = copy.deepcopy(optimizer.state_dict())
        Snapshot.take(snap, {"o": optimizer})
        places = {id(p): optimizer.state[p]["exp_avg"].data_ptr() for p in model.parameters()}
        optimizer.step()
        Snapshot(snap).restore({"o": optimizer})
        assert_same(optimizer.state_dict(), expected)
        assert {id(p): optimizer.state[p]["exp_avg"].data_ptr() for p in model.parameters()} == places

    def test_a_view_of_a_buffer_keeps_its_surroundings(self, snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(v=torch.arange(12.0).view(3, 4))})
        for make in (
            lambda base: base[1:4, 2:6],
            lambda base: base[::3, 1::3][:3, :4].as_strided((3, 4), (24, 2), 1),
            lambda base: base.t()[2:5, 1:5],
            lambda base: base.as_strided((3, 4), (1, 3), 7),
        ):
            base = torch.full((10, 10), -1.0)
            view = make(base)
            expected = torch.full((10, 10), -1.0)
            make(expected).copy_(torch.arange(12.0).view(3, 4))
            target = StateDict(v=view)
            Snapshot(snap).restore({"state": target})
            assert target["v"] is view
            assert_same(base, expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.uint8, torch.bfloat16, torch.float8_e5m2])
    def test_noncontiguous_targets(self, dtype: torch.dtype, snap: str) -> None:
        saved = torch.arange(120).reshape(4, 5, 6).to(torch.uint8).float().to(dtype)
        Snapshot.take(snap, {"state": StateDict(v=saved)})
        for make in (
            lambda: torch.empty(6, 5, 4, dtype=dtype).permute(2, 1, 0),
            lambda: torch.empty(4, 10, 6, dtype=dtype)[:, ::2],
            lambda: torch.empty(4, 5, 7, dtype=dtype)[:, :, 1:],
            lambda: torch.empty(5, 4, 6, dtype=dtype).transpose(0, 1),
        ):
            view = make()
            target = StateDict(v=view)
            Snapshot(snap).restore({"state": target})
            assert target["v"] is view
            assert bits(view) == bits(saved)

    def test_channels_last_module(self, snap: str) -> None:
        saved = nn.Conv2d(3, 4, 3)
        target = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        place = target.weight.data_ptr()
        Snapshot.take(snap, {"m": saved}).restore({"m": target})
        assert target.weight.data_ptr() == place
        assert target.weight.is_contiguous(memory_format=torch.channels_last)
        assert bits(target.weight) == bits(saved.weight)

    def test_large_tensor_across_many_blocks(self, snap: str) -> None:
        saved = torch.randint(0, 256, (40 * MB + 13,), dtype=torch.uint8)
        Snapshot.take(snap, {"state": StateDict(v=saved, w=saved[5:-7])})
        base = torch.zeros(2, 20 * MB + 7, dtype=torch.uint8).t().reshape(-1)
        target = StateDict(v=torch.zeros_like(saved), w=base[: saved.numel() - 12])
        Snapshot(snap).restore({"state": target})
        assert torch.equal(target["v"], saved)
        assert torch.equal(target["w"], saved[5:-7])

    def test_targets_that_share_memory(self, snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(a=torch.arange(4.0), b=torch.arange(4.0))})
        shared = torch.zeros(4)
        target = StateDict(a=shared, b=shared)
        Snapshot(snap).restore({"state": target})
        assert_same(shared, torch.arange(4.0))

    def test_a_target_whose_elements_share_memory(self, snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(v=torch.arange(6.0).view(2, 3))})
        one = torch.zeros(1)
        target = StateDict(v=one.expand(2, 3))
        Snapshot(snap).restore({"state": target})
        assert_same(target["v"], torch.arange(6.0).view(2, 3))

    def test_leaf_that_requires_grad_and_autograd_history(self, snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(v=torch.arange(3.0))})
        leaf = torch.zeros(3, requires_grad=True)
        target = StateDict(v=leaf)
        Snapshot(snap).restore({"state": target})
        assert target["v"] is leaf
        assert leaf.is_leaf
        assert leaf.requires_grad
        assert_same(leaf.detach(), torch.arange(3.0))

    def test_a_restored_fresh_tensor_is_writable_and_owns_its_memory(self, snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(a=torch.arange(3.0), b=torch.arange(3.0))})
        state = restored(snap)
        state["a"].add_(1).resize_(5)
        assert_same(state["b"], torch.arange(3.0))
        state["b"].share_memory_()


@pytest.mark.no_sanitizer
class TestMemory:
    SIZE = 256 * MB

    @pytest.fixture
    def state(self) -> dict[str, torch.Tensor]:
        return {f"t{i}": torch.randint(0, 256, (self.SIZE // 8,), dtype=torch.uint8) for i in range(8)}

    def test_contiguous_tensors_need_64_mb_at_most(self, state: dict[str, torch.Tensor], snap: str) -> None:
        Snapshot.take(f"{snap}-warm", {"state": StateDict(t=torch.zeros(32 * MB))})
        taken = peak_memory(lambda: Snapshot.take(snap, {"state": StateDict(state)}))
        assert taken < 64 * MB, f"{taken / MB:.0f} MB more while taking {self.SIZE / MB:.0f}"
        expected = [t[:: MB // 4].clone() for t in state.values()]
        for drop in (drop_from_cache, lambda _: None):
            drop(snap)
            for tensor in state.values():
                tensor.zero_()
            came_back = peak_memory(lambda: Snapshot(snap).restore({"state": StateDict(state)}))
            assert all(torch.equal(t[:: MB // 4], e) for t, e in zip(state.values(), expected, strict=True))
            assert came_back < 64 * MB, f"{came_back / MB:.0f} MB more while restoring {self.SIZE / MB:.0f}"

    def test_restore_into_a_module(self, snap: str) -> None:
        model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(12)))  # 200 MB
        size = sum(p.numel() * 4 for p in model.parameters())
        Snapshot.take(snap, {"m": model})
        drop_from_cache(snap)
        used = peak_memory(lambda: Snapshot(snap).restore({"m": model}))
        assert used < 64 * MB, f"{used / MB:.0f} MB more while restoring {size / MB:.0f}"

    def test_what_has_to_be_staged_stays_within_the_budget(
        self, state: dict[str, torch.Tensor], snap: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        budget = 32 * MB
        monkeypatch.setenv("TORCHSNAPSHOT_PER_RANK_MEMORY_BUDGET_BYTES", str(budget))
        strided = {n: t.view(-1, 4)[:, :3] for n, t in state.items()}  # no contiguous bytes to write
        Snapshot.take(f"{snap}-warm", {"state": StateDict(t=torch.zeros(32 * MB))})
        used = peak_memory(lambda: Snapshot.take(snap, {"state": StateDict(strided)}))
        assert used < budget + 16 * MB, f"{used / MB:.0f} MB"
        assert torch.equal(Snapshot(snap).read_object("0/state/t3"), strided["t3"])
        before = strided["t3"].clone()
        strided["t3"].zero_()
        for drop in (drop_from_cache, lambda _: None):
            drop(snap)
            used = peak_memory(lambda: Snapshot(snap).restore({"state": StateDict(strided)}))
            assert used < budget + 16 * MB, f"{used / MB:.0f} MB"
        assert torch.equal(strided["t3"], before)


class TestMismatch:
    @pytest.mark.parametrize(
        ("saved", "target"),
        [
            (nn.Linear(4, 3), nn.Linear(4, 5)),
            (nn.Linear(4, 3), nn.Linear(3, 4)),
            (nn.Linear(4, 3), nn.Linear(4, 3).double()),
            (nn.Linear(4, 3).half(), nn.Linear(4, 3)),
            (nn.BatchNorm1d(3), nn.BatchNorm1d(4)),
        ],
        ids=["shape", "transposed shape", "dtype", "half into float", "buffers"],
    )
    @pytest.mark.parametrize("strict", [True, False])
    def test_a_module_raises_and_is_untouched(
        self, saved: nn.Module, target: nn.Module, strict: bool, snap: str
    ) -> None:
        saved, target = copy.deepcopy(saved), copy.deepcopy(target)
        before = copy.deepcopy(target.state_dict())
        Snapshot.take(snap, {"net": saved})
        with raises_clearly("net/weight|weight", kind=RuntimeError):
            Snapshot(snap).restore({"net": target}, strict=strict)
        assert_same(target.state_dict(), before)

    def test_the_message_has_the_full_path_and_both_shapes(self, snap: str) -> None:
        Snapshot.take(snap, {"net": nn.Sequential(nn.ReLU(), nn.Linear(4, 3))})
        with raises_clearly(r"net/1\.weight", "3.*4", "5.*4", kind=RuntimeError):
            Snapshot(snap).restore({"net": nn.Sequential(nn.ReLU(), nn.Linear(4, 5))})

    def test_one_bad_key_leaves_the_good_ones_alone(self, snap: str) -> None:
        Snapshot.take(snap, {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "s": StateDict(x=torch.ones(2))})
        good, bad, state = nn.Linear(2, 2), nn.Linear(2, 3), StateDict(x=torch.zeros(2))
        before = copy.deepcopy((good.state_dict(), bad.state_dict(), state.data))
        with raises_clearly(r"b/(weight|bias)", kind=RuntimeError):
            Snapshot(snap).restore({"a": good, "b": bad, "s": state})
        assert_same((good.state_dict(), bad.state_dict(), state.data), before)

    OTHERS: tuple[tuple[str, Any, Any], ...] = (
        ("shape", torch.arange(6.0), torch.zeros(5)),
        ("more dimensions", torch.arange(6.0), torch.zeros(2, 3)),
        ("0-d into 1-d", torch.tensor(2.0), torch.zeros(1)),
        ("dtype", torch.arange(6.0), torch.zeros(6, dtype=torch.float64)),
        ("same size dtype", torch.arange(6, dtype=torch.int32), torch.zeros(6)),
        ("empty", torch.empty(0), torch.zeros(3)),
        ("number", 5, torch.zeros(3)),
        ("tensor into number", torch.arange(3.0), 5),
        ("object", (1, 2), torch.zeros(3)),
        ("list", [torch.ones(1)], torch.zeros(3)),
        ("dict", {"x": torch.ones(1)}, torch.zeros(3)),
    )

    @pytest.mark.parametrize(("saved", "old"), [o[1:] for o in OTHERS], ids=[o[0] for o in OTHERS])
    def test_any_other_stateful_gets_the_saved_value(self, saved: Any, old: Any, snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(d={"v": saved}, same=torch.ones(2))})
        target = StateDict(d={"v": old}, same=torch.zeros(2))
        before = copy.deepcopy(old)
        report = Snapshot(snap).restore({"state": target})
        assert_same(target["d"]["v"], saved)
        assert_same(old, before)
        assert_same(target["same"], torch.ones(2))
        listed = report.mismatched + report.missing + report.unexpected
        assert any(path.startswith("state/d/v") for path in listed)
        assert "state/same" not in listed

    @pytest.mark.parametrize("other", [torch.zeros(5), torch.zeros(6, dtype=torch.float64), torch.zeros(2, 3)])
    def test_tensors_are_listed_as_mismatched(self, other: torch.Tensor, snap: str) -> None:
        Snapshot.take(snap, {"s/1": StateDict({"a/b": torch.arange(6.0)})})
        report = Snapshot(snap).restore({"s/1": StateDict({"a/b": other})})
        assert report.mismatched == ["s%2F1/a%2Fb"]
        assert report.missing == report.unexpected == []


class TestMissingAndUnexpected:
    def test_the_report_of_a_state_dict(self, snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(both=torch.ones(2), saved=torch.ones(2), n={"deep": 1})})
        target = StateDict(both=torch.zeros(2), target=torch.zeros(2), n={"deep": 0, "other": torch.zeros(1)})
        report = Snapshot(snap).restore({"state": target})
        assert sorted(report.missing) == ["state/n/other", "state/target"]
        assert report.unexpected == ["state/saved"]
        assert report.mismatched == []
        assert_same(target["target"], torch.zeros(2))

    def test_a_module_is_strict_by_default(self, snap: str) -> None:
        Snapshot.take(snap, {"net": nn.Linear(3, 2, bias=False)})
        with raises_clearly("bias", kind=RuntimeError):
            Snapshot(snap).restore({"net": nn.Linear(3, 2)})
        Snapshot.take(f"{snap}2", {"net": nn.Linear(3, 2)})
        with raises_clearly("bias", kind=RuntimeError):
            Snapshot(f"{snap}2").restore({"net": nn.Linear(3, 2, bias=False)})

    def test_a_module_that_is_not_strict(self, snap: str) -> None:
        saved, target = nn.Linear(3, 2, bias=False), nn.Linear(3, 2)
        bias = target.bias.detach().clone()
        Snapshot.take(snap, {"net": saved})
        report = Snapshot(snap).restore({"net": target}, strict=False)
        assert (report.missing, report.unexpected) == (["net/bias"], [])
        assert_same(target.weight, saved.weight)
        assert_same(target.bias.detach(), bias)
        Snapshot.take(f"{snap}2", {"net": target})
        report = Snapshot(f"{snap}2").restore({"net": saved}, strict=False)
        assert (report.missing, report.unexpected) == ([], ["net/bias"])

    def test_a_key_that_the_snapshot_lacks(self, snap: str) -> None:
        Snapshot.take(snap, {"model": StateDict(a=1), "optim": StateDict(b=2)})
        state, new = StateDict(a=0), StateDict(c=3, t=torch.zeros(2))
        with raises_clearly("modle", "model"):
            Snapshot(snap).restore({"optim": state, "modle": new})
        assert state.data == {"a": 0}
        report = Snapshot(snap).restore({"model": state, "modle": new}, strict=False)
        assert state.data == {"a": 1}
        assert_same(new.data, {"c": 3, "t": torch.zeros(2)})
        assert any(path.split("/")[0] == "modle" for path in report.missing)

    def test_a_lazily_made_state_is_unexpected_but_arrives(self, snap: str) -> None:
        model = nn.Linear(2, 2)
        saved, fresh = torch.optim.Adam(model.parameters()), torch.optim.Adam(model.parameters())
        model(torch.ones(1, 2)).sum().backward()
        saved.step()
        report = Snapshot.take(snap, {"o": saved}).restore({"o": fresh})
        assert "o/state/0/exp_avg" in report.unexpected
        assert_same(fresh.state_dict(), saved.state_dict())
