"""Stateful, StateDict, and the adapters."""

from __future__ import annotations

import collections
import copy
import sys
import types
from typing import Any

import pytest
import torch
import torchsnapshot
from torchsnapshot import StateDict, Stateful
from torchsnapshot.stateful import AppState
from torchsnapshot.tricks.ddp import DistributedDataParallelAdapter, strip_ddp_prefix
from torchsnapshot.tricks.deepspeed import Zero3StateAdapter, patch_engine_to_use_torchsnapshot
from torchsnapshot.tricks.fsdp import FSDPOptimizerAdapter


class TestStateful:
    @pytest.mark.parametrize(
        "value",
        [torch.nn.Linear(1, 1), StateDict(), torch.optim.SGD([torch.ones(1)], lr=0.1), torch.amp.GradScaler("cpu")],
        ids=lambda value: type(value).__name__,
    )
    def test_these_are(self, value: Any) -> None:
        assert isinstance(value, Stateful)

    @pytest.mark.parametrize("value", [{}, torch.ones(1), None, types.SimpleNamespace(state_dict=dict)])
    def test_these_are_not(self, value: Any) -> None:
        assert not isinstance(value, Stateful)

    def test_app_state_can_be_subscripted(self) -> None:
        assert "StateDict" in repr(AppState[StateDict])

    def test_the_package_exports_what_it_says(self) -> None:
        assert all(hasattr(torchsnapshot, name) for name in torchsnapshot.__all__)
        assert isinstance(torchsnapshot.__version__, str)


class TestStateDict:
    def test_is_a_dict_of_its_own(self) -> None:
        state = StateDict(a=1, b=[2])
        assert state.state_dict() is state.data == {"a": 1, "b": [2]}
        state["c"] = 3
        assert list(state) == ["a", "b", "c"]
        assert StateDict({"x": 1, 2: "y"}) == {"x": 1, 2: "y"}
        assert isinstance(state, collections.UserDict)

    def test_load_updates(self) -> None:
        state = StateDict(a=1, kept=2)
        state.load_state_dict({"a": 10, "new": 30})
        assert state.data == {"a": 10, "kept": 2, "new": 30}
        state.load_state_dict(state.state_dict())
        assert state.data == {"a": 10, "kept": 2, "new": 30}


class Wrapped(torch.nn.Module):
    """What DistributedDataParallel makes of a module's state dict."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))


class TestDdp:
    def test_a_wrapped_modules_state_goes_into_the_plain_one(self) -> None:
        wrapped, plain = Wrapped(model()), model()
        state = wrapped.state_dict()
        before = (list(state), copy.deepcopy(dict(state._metadata)))
        adapter = DistributedDataParallelAdapter(plain)
        result = adapter.load_state_dict(state)
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        assert adapter.module is plain
        for name, tensor in wrapped.module.state_dict().items():
            assert torch.equal(plain.state_dict()[name], tensor)
        assert (list(state), dict(state._metadata)) == before  # the caller's is as it was

    def test_a_plain_state_goes_in_too(self) -> None:
        source, target = model(), model()
        DistributedDataParallelAdapter(target).load_state_dict(source.state_dict())
        assert torch.equal(target[0].weight, source[0].weight)  # type: ignore[index]
        assert isinstance(DistributedDataParallelAdapter(target), Stateful)

    def test_its_state_has_no_prefix(self) -> None:
        plain = model()
        assert list(DistributedDataParallelAdapter(plain).state_dict()) == list(plain.state_dict())

    def test_mismatches_raise_unless_not_strict(self) -> None:
        adapter = DistributedDataParallelAdapter(model())
        with pytest.raises(RuntimeError, match="Missing key"):
            adapter.load_state_dict({"module.0.weight": torch.ones(3, 2)})
        result = adapter.load_state_dict({"module.0.weight": torch.ones(3, 2), "module.x": torch.ones(1)}, strict=False)
        assert result.unexpected_keys == ["x"]
        assert torch.equal(adapter.module[0].weight, torch.ones(3, 2))  # type: ignore[index]

    def test_only_the_first_prefix_goes(self) -> None:
        assert strip_ddp_prefix({"module.module.a": 1, "b": 2, "modular.c": 3}) == {
            "module.a": 1,
            "b": 2,
            "modular.c": 3,
        }


class TestFsdp:
    def test_translates_both_ways(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torch.distributed.fsdp import FullyShardedDataParallel

        module = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        calls: list[tuple[Any, ...]] = []

        def save(*args: Any) -> Any:
            calls.append(args)
            return {"by name": 1}

        def load(*args: Any) -> Any:
            calls.append(args)
            state = optimizer.state_dict()
            state["param_groups"][0]["lr"] = 0.5
            return state

        monkeypatch.setattr(FullyShardedDataParallel, "optim_state_dict", staticmethod(save))
        monkeypatch.setattr(FullyShardedDataParallel, "optim_state_dict_to_load", staticmethod(load))
        adapter = FSDPOptimizerAdapter(module, optimizer)  # type: ignore[arg-type]
        assert adapter.state_dict() == {"by name": 1}
        adapter.load_state_dict({"by name": 2})
        assert calls == [(module, optimizer), (module, optimizer, {"by name": 2})]
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert isinstance(adapter, Stateful)


class Persistent:
    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def partition(self, parameters: Any) -> None:
        self.calls.append(("partition", parameters))

    def all_gather(self, parameters: Any) -> None:
        self.calls.append(("all_gather", parameters))


class Stage3:
    def __init__(self, persistent: list[Persistent]) -> None:
        self.persistent_parameters = persistent
        self.loaded: list[tuple[Any, bool]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"partition": 1}

    def _rigid_load_state_dict(self, state_dict: dict[str, Any], load_optimizer_states: bool) -> None:
        self.loaded.append((state_dict, load_optimizer_states))


class TestDeepspeed:
    def test_adapter(self) -> None:
        persistent = [Persistent(), Persistent()]
        optimizer = Stage3(persistent)
        adapter = Zero3StateAdapter(optimizer, load_optimizer_states=False)
        assert isinstance(adapter, Stateful)
        assert adapter.state_dict() == {"partition": 1}
        adapter.load_state_dict({"partition": 2})
        assert optimizer.loaded == [({"partition": 2}, False)]
        assert persistent[0].calls == [("partition", persistent), ("all_gather", persistent)]
        assert persistent[1].calls == []
        Zero3StateAdapter(Stage3([])).load_state_dict({})

    def test_without_deepspeed_the_error_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "deepspeed", None)
        with pytest.raises(ImportError, match="needs the package deepspeed"):
            patch_engine_to_use_torchsnapshot(types.SimpleNamespace(optimizer=None))

    def test_patched_engine_saves_and_loads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        deepspeed = types.ModuleType("deepspeed")
        stage3 = types.ModuleType("deepspeed.runtime.zero.stage3")
        deepspeed.version = "1.2"  # type: ignore[attr-defined]
        stage3.DeepSpeedZeroOptimizer_Stage3 = Stage3  # type: ignore[attr-defined]
        for name, module in {
            "deepspeed": deepspeed,
            "deepspeed.runtime": types.ModuleType("r"),
            "deepspeed.runtime.zero": types.ModuleType("z"),
            "deepspeed.runtime.zero.stage3": stage3,
        }.items():
            monkeypatch.setitem(sys.modules, name, module)
        with pytest.raises(RuntimeError, match="not int"):
            patch_engine_to_use_torchsnapshot(types.SimpleNamespace(optimizer=3))

        taken: list[tuple[str, dict[str, Any]]] = []

        class FakeSnapshot:
            def __init__(self, path: str) -> None:
                self.path = path

            @classmethod
            def take(cls, path: str, app_state: dict[str, Any]) -> None:
                taken.append((path, app_state))

            def restore(self, app_state: dict[str, Any]) -> None:
                app_state["optimizer"].load_state_dict({"from": self.path})

        monkeypatch.setattr(torchsnapshot, "Snapshot", FakeSnapshot)
        copied: list[str] = []
        optimizer = Stage3([])
        engine = types.SimpleNamespace(
            optimizer=optimizer,
            config={"zero": 3},
            global_rank=0,
            _copy_recovery_script=copied.append,
            zero_load_from_fp32_weights=lambda: False,
        )
        patch_engine_to_use_torchsnapshot(engine)
        engine._save_zero_checkpoint("/path", "tag")
        assert taken[0][0] == "/path"
        assert taken[0][1]["optimizer"] is optimizer
        assert taken[0][1]["objects"] == {"ds_config": {"zero": 3}, "ds_version": "1.2"}
        assert copied == ["/path"]
        assert engine._load_zero_checkpoint("/path", "tag", load_optimizer_states=False) is True
        assert optimizer.loaded == [({"from": "/path"}, False)]
