"""Take and restore of what a training program has: modules, optimizers, schedulers, counters, random generators."""

from __future__ import annotations

import collections
import copy
import os
import pathlib
import random
from typing import Any

import numpy as np
import pytest
import torch
import torchsnapshot
from support import Box, assert_same, encoded, raw_metadata, restored, run_python
from torch import nn
from torchsnapshot import RNGState, Snapshot, StateDict


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 16), nn.LayerNorm(16),
        nn.Linear(16, 3),
    )  # fmt: skip


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(5, 1, 8, 8, generator=generator)

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


class TestModule:
    def test_every_tensor_of_a_module_comes_back(self, snap: str) -> None:
        saved, target = make_model(1), make_model(2)
        train(saved, torch.optim.SGD(saved.parameters(), lr=0.1), 2, 0)
        snapshot = Snapshot.take(snap, {"model": saved})
        report = snapshot.restore({"model": target})
        assert_same(target.state_dict(), saved.state_dict())
        assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])

    def test_a_handle_made_later_restores_the_same(self, snap: str) -> None:
        saved, target = make_model(1), make_model(2)
        Snapshot.take(snap, {"model": saved})
        Snapshot(snap).restore({"model": target})
        Snapshot(path=snap).restore(app_state={"model": target})
        assert_same(target.state_dict(), saved.state_dict())

    def test_another_process_restores_the_same(self, snap: str, tmp_path: pathlib.Path) -> None:
        saved = make_model(1)
        Snapshot.take(snap, {"model": saved})
        torch.save(saved.state_dict(), tmp_path / "expected.pt")
        code = """
import sys, torch
from test_take_restore import make_model
from support import assert_same
from torchsnapshot import Snapshot
model = make_model(3)
Snapshot(sys.argv[1]).restore({"model": model})
assert_same(model.state_dict(), torch.load(sys.argv[2]))
"""
        done = run_python(code, snap, str(tmp_path / "expected.pt"), cwd=pathlib.Path(__file__).parent)
        assert done.returncode == 0, done.stderr

    def test_extra_state_and_buffers(self, snap: str) -> None:
        class Model(nn.Module):
            def __init__(self, start: int) -> None:
                super().__init__()
                self.register_buffer("kept", torch.full((3,), float(start)))
                self.register_buffer("dropped", torch.full((2,), float(start)), persistent=False)
                self.extra: Any = {"epoch": start, "names": ["a", "b"], "pair": (start, None)}

            def get_extra_state(self) -> Any:
                return self.extra

            def set_extra_state(self, state: Any) -> None:
                self.extra = state

        saved, target = Model(5), Model(0)
        Snapshot.take(snap, {"m": saved})
        Snapshot(snap).restore({"m": target})
        assert_same(target.kept, saved.kept)
        assert_same(target.dropped, torch.zeros(2))
        assert_same(target.extra, saved.extra)

    def test_take_changes_nothing(self, snap: str) -> None:
        model = make_model(1)
        before = copy.deepcopy(model.state_dict())
        versions = {n: p._version for n, p in model.named_parameters()}
        Snapshot.take(snap, {"model": model, "d": StateDict(a=1)})
        assert_same(model.state_dict(), before)
        assert {n: p._version for n, p in model.named_parameters()} == versions
        assert all(p.requires_grad and p.grad is None for p in model.parameters())

    def test_a_restored_model_trains_on(self, snap: str) -> None:
        saved, target = make_model(1), make_model(2)
        Snapshot.take(snap, {"model": saved}).restore({"model": target})
        for model in (saved, target):
            train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 3, 7)
        assert_same(target.state_dict(), saved.state_dict())


OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "Adam-tensor-lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False, capturable=False),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "AdamW-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "Adamax": lambda p: torch.optim.Adamax(p),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "RAdam": lambda p: torch.optim.RAdam(p),
    "Adagrad": lambda p: torch.optim.Adagrad(p),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, history_size=2),
}


class TestOptimizer:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_state_comes_into_a_fresh_optimizer(self, name: str, snap: str) -> None:
        saved_model, model = make_model(1), make_model(2)
        saved = OPTIMIZERS[name](saved_model.parameters())
        train(saved_model, saved, 2, 0)
        Snapshot.take(snap, {"model": saved_model, "optim": saved})

        fresh = OPTIMIZERS[name](model.parameters())
        Snapshot(snap).restore({"model": model, "optim": fresh})
        assert_same(fresh.state_dict(), saved.state_dict())
        train(saved_model, saved, 2, 1)
        train(model, fresh, 2, 1)
        assert_same(model.state_dict(), saved_model.state_dict())

    @pytest.mark.parametrize("name", ["SGD-momentum", "AdamW", "Adagrad", "LBFGS"])
    def test_state_comes_into_a_used_optimizer(self, name: str, snap: str) -> None:
        saved_model, model = make_model(1), make_model(2)
        saved, used = OPTIMIZERS[name](saved_model.parameters()), OPTIMIZERS[name](model.parameters())
        train(saved_model, saved, 3, 0)
        train(model, used, 1, 5)
        Snapshot.take(snap, {"optim": saved, "model": saved_model}).restore({"optim": used, "model": model})
        assert_same(used.state_dict(), saved.state_dict())

    def test_a_fresh_state_comes_into_a_used_optimizer(self, snap: str) -> None:
        saved_model, model = make_model(1), make_model(2)
        saved, used = torch.optim.AdamW(saved_model.parameters()), torch.optim.AdamW(model.parameters(), lr=9.0)
        train(model, used, 1, 5)
        Snapshot.take(snap, {"optim": saved}).restore({"optim": used})
        assert_same(used.state_dict(), saved.state_dict())

    def test_sparse_adam(self, snap: str) -> None:
        def step(embedding: nn.Embedding, optimizer: torch.optim.Optimizer) -> None:
            optimizer.zero_grad()
            embedding(torch.tensor([1, 3, 3])).sum().backward()
            optimizer.step()

        models = [nn.Embedding(6, 4, sparse=True) for _ in range(2)]
        optimizers = [torch.optim.SparseAdam(m.parameters()) for m in models]
        step(models[0], optimizers[0])
        Snapshot.take(snap, {"o": optimizers[0], "m": models[0]}).restore({"o": optimizers[1], "m": models[1]})
        for pair in zip(models, optimizers, strict=True):
            step(*pair)
        assert_same(models[1].state_dict(), models[0].state_dict())

    @pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
    def test_muon(self, snap: str) -> None:
        models = [nn.Linear(6, 4, bias=False) for _ in range(2)]
        optimizers = [torch.optim.Muon(m.parameters()) for m in models]
        models[0](torch.ones(2, 6)).sum().backward()
        optimizers[0].step()
        Snapshot.take(snap, {"o": optimizers[0]}).restore({"o": optimizers[1]})
        assert_same(optimizers[1].state_dict(), optimizers[0].state_dict())

    def test_groups_and_named_parameters(self, snap: str) -> None:
        def make(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
            model = make_model(seed)
            groups = [
                {"params": list(model[0].named_parameters()), "lr": 0.1 * seed},
                {"params": list(model[4].named_parameters()), "weight_decay": 0.5},
            ]
            return model, torch.optim.AdamW(groups)

        (saved_model, saved), (model, fresh) = make(1), make(2)
        train(saved_model, saved, 1, 0)
        Snapshot.take(snap, {"m": saved_model, "o": saved}).restore({"m": model, "o": fresh})
        assert_same(fresh.state_dict(), saved.state_dict())
        assert [g["lr"] for g in fresh.param_groups] == [0.1, 1e-3]


lr = torch.optim.lr_scheduler
SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o: lr.StepLR(o, 2),
    "MultiStepLR": lambda o: lr.MultiStepLR(o, [1, 3, 3]),
    "ConstantLR": lambda o: lr.ConstantLR(o),
    "LinearLR": lambda o: lr.LinearLR(o),
    "ExponentialLR": lambda o: lr.ExponentialLR(o, 0.7),
    "PolynomialLR": lambda o: lr.PolynomialLR(o),
    "LambdaLR": lambda o: lr.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr.MultiplicativeLR(o, lambda epoch: 0.9),
    "CosineAnnealingLR": lambda o: lr.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr.CosineAnnealingWarmRestarts(o, 2),
    "OneCycleLR": lambda o: lr.OneCycleLR(o, max_lr=1.0, total_steps=20),
    "CyclicLR": lambda o: lr.CyclicLR(o, 0.1, 1.0, step_size_up=2),
    "ReduceLROnPlateau": lambda o: lr.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr.SequentialLR(o, [lr.ConstantLR(o), lr.ExponentialLR(o, 0.5)], milestones=[2]),
    "ChainedScheduler": lambda o: lr.ChainedScheduler([lr.ConstantLR(o), lr.ExponentialLR(o, 0.5)]),
}


class TestScheduler:
    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_a_restored_scheduler_goes_on_where_the_saved_one_does(self, name: str, snap: str) -> None:
        def make() -> tuple[torch.optim.Optimizer, Any]:
            optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.3, momentum=0.9)
            return optimizer, SCHEDULERS[name](optimizer)

        def advance(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
            rates = []
            for step in range(steps):
                optimizer.step()
                scheduler.step(float(step)) if name == "ReduceLROnPlateau" else scheduler.step()
                rates.append(optimizer.param_groups[0]["lr"])
            return rates

        (saved_optimizer, saved), (optimizer, fresh) = make(), make()
        advance(saved_optimizer, saved, 3)
        Snapshot.take(snap, {"sched": saved, "optim": saved_optimizer})
        Snapshot(snap).restore({"sched": fresh, "optim": optimizer})
        assert advance(optimizer, fresh, 4) == advance(saved_optimizer, saved, 4)
        assert_same(fresh.state_dict(), saved.state_dict())

    def test_grad_scaler(self, snap: str) -> None:
        saved, fresh = torch.amp.GradScaler("cpu", init_scale=8.0), torch.amp.GradScaler("cpu", init_scale=2.0)
        Snapshot.take(snap, {"scaler": saved}).restore({"scaler": fresh})
        assert fresh.state_dict() == saved.state_dict()


class TestStateDict:
    def test_made_from_keywords_or_a_dict(self) -> None:
        assert StateDict(a=1, b=2).data == StateDict({"a": 1, "b": 2}).data == {"a": 1, "b": 2}
        assert isinstance(StateDict(), collections.UserDict)
        assert isinstance(StateDict(), torchsnapshot.Stateful)

    def test_state_dict_is_the_dict_itself(self) -> None:
        state = StateDict(a=1)
        assert state.state_dict() is state.data
        state["b"] = 2
        assert state.state_dict() == {"a": 1, "b": 2}

    def test_load_updates(self) -> None:
        state = StateDict(a=1, b=2)
        state.load_state_dict({"b": 3, "c": 4})
        assert state.data == {"a": 1, "b": 3, "c": 4}

    def test_values_come_back(self, snap: str) -> None:
        state = StateDict(step=7, loss=0.25, name="run", flags=[True, False], nested={"a": {"b": torch.arange(3)}})
        Snapshot.take(snap, {"state": state})
        target = StateDict(step=0, loss=0.0, name="", flags=[], nested={"a": {"b": torch.zeros(3, dtype=torch.int64)}})
        Snapshot(snap).restore({"state": target})
        assert_same(target.data, state.data)
        assert_same(restored(snap), state.data)


def draw() -> tuple[Any, ...]:
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]


class TestRNGState:
    def test_the_numbers_after_restore_are_those_after_take(self, snap: str) -> None:
        draw()
        Snapshot.take(snap, {"rng": RNGState()})
        expected = draw()
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        Snapshot(snap).restore({"rng": RNGState()})
        assert draw() == expected

    def test_take_leaves_the_generators_as_they_are(self, snap: str) -> None:
        expected_next = draw()
        torch.manual_seed(20240601), np.random.seed(20240601), random.seed(20240601)
        Snapshot.take(snap, {"rng": RNGState(), "model": make_and_keep_rng()})
        assert draw() == expected_next

    def test_saved_before_and_restored_after_others_that_draw(self, snap: str) -> None:
        class Draws(Box):
            def state_dict(self) -> Any:
                draw()
                return {"x": 1}

            def load_state_dict(self, state_dict: Any) -> None:
                draw()

        for order in (("a", "rng", "z"), ("rng", "a", "z"), ("a", "z", "rng")):
            path = f"{snap}-{'-'.join(order)}"
            app_state: dict[str, Any] = {key: RNGState() if key == "rng" else Draws() for key in order}
            Snapshot.take(path, app_state)
            expected = draw()
            Snapshot(path).restore(app_state)
            assert draw() == expected, order

    def test_torch_state_is_stored_as_the_original_stores_it(self, snap: str) -> None:
        state = torch.get_rng_state()
        snapshot = Snapshot.take(snap, {"rng": RNGState()})
        assert_same(snapshot.read_object("0/rng/rng_state"), state)

    def test_a_snapshot_with_only_torchs_state_restores(self, snap: str) -> None:
        torch.manual_seed(99)
        Snapshot.take(snap, {"rng": StateDict(rng_state=torch.get_rng_state())})
        expected, others = torch.rand(4), (np.random.rand(), random.random())
        np.random.seed(20240601), random.seed(20240601)
        torch.manual_seed(0)
        Snapshot(snap).restore({"rng": RNGState()})
        assert_same(torch.rand(4), expected)
        assert (np.random.rand(), random.random()) == others

    def test_gaussian_caches_survive(self, snap: str) -> None:
        np.random.randn(), random.gauss(0, 1), torch.randn(1)
        Snapshot.take(snap, {"rng": RNGState()})
        expected = (np.random.randn(), random.gauss(0, 1), torch.randn(3).tolist())
        np.random.seed(3), random.seed(3), torch.manual_seed(3)
        Snapshot(snap).restore({"rng": RNGState()})
        assert (np.random.randn(), random.gauss(0, 1), torch.randn(3).tolist()) == expected


def make_and_keep_rng() -> nn.Module:
    state = torch.get_rng_state()
    model = make_model(1)
    torch.set_rng_state(state)
    return model


APP_KEYS = [
    "a/b",
    "a%b",
    "a%2Fb",
    "%",
    "ключ 键",
    "",
    "..",
    ".",
    "../../up",
    "/abs",
    "with space",
    "0",
    "😀",
    "a\nb",
    "k" * 300,
    "-",
]


class TestAppState:
    def test_a_subset_of_the_keys(self, snap: str) -> None:
        Snapshot.take(snap, {"a": StateDict(x=1), "b": StateDict(x=2), "c": StateDict(x=3)})
        target = StateDict()
        report = Snapshot(snap).restore({"b": target})
        assert target.data == {"x": 2}
        assert report.missing == []
        assert report.mismatched == []

    def test_an_empty_app_state(self, snap: str) -> None:
        Snapshot.take(snap, {})
        assert raw_metadata(snap)["manifest"] == {}
        Snapshot(snap).restore({})

    def test_an_empty_state(self, snap: str) -> None:
        Snapshot.take(snap, {"e": StateDict(), "m": nn.ReLU()})
        Snapshot(snap).restore({"e": StateDict(), "m": nn.ReLU()})
        assert Snapshot(snap).get_state_dict_for_key("e") == {}

    @pytest.mark.parametrize("key", APP_KEYS, ids=ascii)
    def test_any_string_is_a_key(self, key: str, snap: str) -> None:
        state = {"t": torch.arange(4.0), "n": 3, "o": (1, 2)}
        Snapshot.take(snap, {key: StateDict(state), "other": StateDict(x=1)})
        assert_same(restored(snap, key), state)
        snapshot = Snapshot(snap)
        assert_same(snapshot.get_state_dict_for_key(key), state)
        assert_same(snapshot.read_object(f"0/{encoded(key)}/t"), state["t"])
        assert f"0/{encoded(key)}/t" in snapshot.get_manifest()

    def test_all_those_keys_at_once(self, snap: str) -> None:
        states = {key: StateDict(i=i, t=torch.full((3,), i)) for i, key in enumerate(APP_KEYS)}
        Snapshot.take(snap, states)
        targets = {key: StateDict() for key in APP_KEYS}
        Snapshot(snap).restore(targets)
        for key in APP_KEYS:
            assert_same(targets[key].data, states[key].data)

    @pytest.mark.parametrize(
        "value",
        [[1, torch.ones(2)], torch.arange(5), (1, 2), None, 5, "text", {}, [], collections.OrderedDict(b=1, a=2)],
        ids=lambda v: type(v).__name__,
    )
    def test_a_state_that_is_no_dict(self, value: Any, snap: str) -> None:
        Snapshot.take(snap, {"box": Box(value), "x": StateDict(a=1)})
        target = Box()
        Snapshot(snap).restore({"box": target})
        assert_same(target.value, value)
        assert target.loads == 1

    def test_the_app_state_itself_is_not_changed(self, snap: str) -> None:
        app_state = {"rng": RNGState(), "a": StateDict(x=1), "m": make_model(1)}
        items = list(app_state.items())
        Snapshot.take(snap, app_state).restore(app_state)
        assert list(app_state.items()) == items

    def test_load_state_dict_is_called_once_each(self, snap: str) -> None:
        boxes = {name: Box({"t": torch.ones(2)}) for name in "abc"}
        Snapshot.take(snap, boxes).restore(boxes)
        assert [box.loads for box in boxes.values()] == [1, 1, 1]


class TestPath:
    @pytest.mark.parametrize("name", ["plain", "with space", "per%cent", "%2F", "üñí", "a#b?c=d&e", "a:b", "..."])
    def test_any_folder_name(self, name: str, tmp_path: pathlib.Path) -> None:
        path = str(tmp_path / name)
        snapshot = Snapshot.take(path, {"state": StateDict(t=torch.ones(3))})
        assert snapshot.path == path
        assert os.listdir(tmp_path) == [name]
        assert_same(restored(path), {"t": torch.ones(3)})

    def test_url_of_the_file_system(self, snap: str) -> None:
        Snapshot.take(f"fs://{snap}", {"state": StateDict(t=torch.ones(3))})
        assert_same(restored(snap), {"t": torch.ones(3)})
        assert_same(restored(f"fs://{snap}"), {"t": torch.ones(3)})

    def test_relative_path(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Snapshot.take("a/b", {"state": StateDict(t=torch.ones(3))})
        assert_same(restored("./a/b/"), {"t": torch.ones(3)})
        assert (tmp_path / "a" / "b" / ".snapshot_metadata").is_file()

    def test_relative_path_survives_a_change_of_folder(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Snapshot.take("a", {"state": StateDict(t=torch.ones(3))})
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert_same(restored("../a"), {"t": torch.ones(3)})

    def test_a_copied_snapshot_restores(self, snap: str, tmp_path: pathlib.Path) -> None:
        import shutil

        Snapshot.take(snap, {"state": StateDict(t=torch.ones(3), o=(1,))})
        shutil.copytree(snap, tmp_path / "copy")
        shutil.rmtree(snap)
        assert_same(restored(str(tmp_path / "copy")), {"t": torch.ones(3), "o": (1,)})

    def test_a_folder_that_is_there_already(self, snap: str) -> None:
        os.makedirs(snap)
        Snapshot.take(snap, {"state": StateDict(a=1)})
        assert restored(snap) == {"a": 1}

    def test_a_folder_behind_a_symbolic_link(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        Snapshot.take(str(tmp_path / "link"), {"state": StateDict(t=torch.ones(3))})
        assert_same(restored(str(tmp_path / "real")), {"t": torch.ones(3)})


class TestHandle:
    def test_attributes(self, snap: str) -> None:
        snapshot = Snapshot.take(snap, {"state": StateDict(a=1)})
        assert isinstance(snapshot, Snapshot)
        assert (snapshot.path, snapshot.pg) == (snap, None)
        assert snapshot.metadata.world_size == 1
        assert isinstance(snapshot.metadata.version, str)
        assert set(snapshot.metadata.manifest) == {"0/state", "0/state/a"}

    def test_nothing_is_read_until_needed(self, tmp_path: pathlib.Path) -> None:
        late = Snapshot(str(tmp_path / "late"))
        Snapshot.take(str(tmp_path / "late"), {"state": StateDict(a=1)})
        assert late.metadata.world_size == 1

    def test_take_with_a_custom_prepare_function(self, snap: str) -> None:
        seen = []

        def prepare(path: str, tensor: torch.Tensor, tracing: bool) -> torch.Tensor:
            seen.append(path)
            return tensor.half() if tensor.dtype == torch.float32 else tensor

        state = StateDict(a=torch.tensor([1.5, 2.5]), n=torch.arange(3), k=1)
        Snapshot.take(snap, {"state": state}, _custom_tensor_prepare_func=prepare)
        assert set(seen) == {"state/a", "state/n"}
        assert_same(restored(snap), {"a": torch.tensor([1.5, 2.5]).half(), "n": torch.arange(3), "k": 1})
        assert_same(state["a"], torch.tensor([1.5, 2.5]))

    def test_replicated_globs_are_accepted_by_a_single_process(self, snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(a=torch.ones(2), b=2, c=(3,))}, replicated=["state/a", "**/c"])
        manifest = raw_metadata(snap)["manifest"]
        assert manifest["0/state/a"]["replicated"] is True
        assert manifest["0/state/b"]["replicated"] is False
        assert_same(restored(snap), {"a": torch.ones(2), "b": 2, "c": (3,)})
