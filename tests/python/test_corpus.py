"""Every snapshot that the original took restores to the values it saved, bit for bit."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support import CORPUS, assert_same, encoded, tensors_of, zeroed
from torchsnapshot import RNGState, Snapshot, StateDict

NAMES = sorted(path.parent.name for path in CORPUS.glob("*/snapshot"))
FIELDS = [
    "location", "serializer", "dtype", "shape", "byte_range", "keys", "obj_type", "mesh", "dim_map", "serialized_value",
    "readable", "replicated",
]  # fmt: skip
SHARDED = ["sharded_2", "dtensor_2"]


def load(name: str) -> tuple[Snapshot, dict[str, Any]]:
    expected = torch.load(CORPUS / name / "expected.pt", weights_only=False)
    return Snapshot(str(CORPUS / name / "snapshot")), expected


def leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    """Every container and leaf with its path."""
    children: Any = enumerate(value) if type(value) is list else ()
    collides = isinstance(value, dict) and len({str(k) for k in value}) < len(value)
    if isinstance(value, dict) and not collides and all(isinstance(k, (str, int)) for k in value):
        children = value.items()
    found = [(path, value)]
    for key, child in children:
        found += leaves(child, f"{path}/{encoded(key)}")
    return found


def full(expected: dict[str, Any], rank: int, key: str) -> dict[Any, Any]:
    """A state of one rank with the sharded tensors put in, in any order."""
    state = expected["ranks"][rank][key]
    state = type(state)(state)
    for path, tensor in expected["global"].items():
        first, *rest = path.split("/")
        if first == key:
            place = state
            for part in rest[:-1]:
                place = place.setdefault(part, {})
            place[rest[-1]] = tensor
    return state


def test_the_corpus_is_here() -> None:
    assert len(NAMES) == 13


@pytest.mark.parametrize("name", NAMES)
class TestRank0:
    def test_into_empty_targets(self, name: str) -> None:
        snapshot, expected = load(name)
        targets = {key: StateDict() for key in expected["ranks"][0]}
        snapshot.restore(targets)
        for key, state in expected["ranks"][0].items():
            assert_same(targets[key].data, dict(state))

    def test_in_place_into_zeros(self, name: str) -> None:
        snapshot, expected = load(name)
        targets = {key: StateDict(zeroed(dict(full(expected, 0, key)))) for key in expected["ranks"][0]}
        places = {key: {p: t.data_ptr() for p, t in tensors_of(target.data).items()} for key, target in targets.items()}
        report = snapshot.restore(targets)
        for key, target in targets.items():
            want = dict(full(expected, 0, key))
            assert set(target.data) == set(want)
            assert_same({k: target[k] for k in want}, want)
            if name != "quantized":
                assert {p: t.data_ptr() for p, t in tensors_of(target.data).items()} == places[key]
        assert report.missing == []
        assert report.unexpected == []

    def test_one_key_alone(self, name: str) -> None:
        snapshot, expected = load(name)
        for key, state in expected["ranks"][0].items():
            target = StateDict()
            snapshot.restore({key: target})
            assert_same(target.data, dict(state))

    def test_state_dict_for_key(self, name: str) -> None:
        snapshot, expected = load(name)
        for key in expected["ranks"][0]:
            want = full(expected, 0, key)
            got = snapshot.get_state_dict_for_key(key)
            assert type(got) is type(want)
            assert set(got) == set(want)
            assert_same({k: got[k] for k in want}, dict(want))


@pytest.mark.parametrize("name", NAMES)
class TestEveryRank:
    def test_every_leaf_and_container_by_read_object(self, name: str) -> None:
        snapshot, expected = load(name)
        for rank in range(expected["world_size"]):
            for key, state in expected["ranks"][rank].items():
                for path, value in leaves(state, f"{rank}/{encoded(key)}"):
                    if name in SHARDED and isinstance(value, dict):
                        continue  # has sharded children that are not in "ranks"
                    assert_same(snapshot.read_object(path), value)

    def test_every_tensor_in_place(self, name: str) -> None:
        snapshot, expected = load(name)
        for rank in range(expected["world_size"]):
            for key, state in expected["ranks"][rank].items():
                for path, value in leaves(state, f"{rank}/{encoded(key)}"):
                    if isinstance(value, torch.Tensor) and not value.is_quantized:
                        out = torch.zeros_like(value)
                        assert snapshot.read_object(path, obj_out=out) is out
                        assert_same(out, value)

    def test_with_a_budget(self, name: str) -> None:
        snapshot, expected = load(name)
        for rank in range(expected["world_size"]):
            for key, state in expected["ranks"][rank].items():
                for path, value in leaves(state, f"{rank}/{encoded(key)}"):
                    if isinstance(value, torch.Tensor):
                        assert_same(snapshot.read_object(path, memory_budget_bytes=50), value)

    def test_the_manifest_is_that_of_the_file(self, name: str) -> None:
        snapshot, expected = load(name)
        manifest = snapshot.get_manifest()
        assert snapshot.metadata.world_size == expected["world_size"]
        text = (CORPUS / name / "snapshot" / ".snapshot_metadata").read_text()
        if text.startswith("{"):
            raw = json.loads(text)["manifest"]
            assert list(manifest) == list(raw)
            for path, entry in raw.items():
                assert manifest[path].type == entry["type"]
                for field in FIELDS:
                    if field in entry:
                        assert getattr(manifest[path], field) == entry[field], (path, field)


@pytest.mark.parametrize("name", SHARDED)
class TestSharded:
    def test_full_tensors_by_read_object(self, name: str) -> None:
        snapshot, expected = load(name)
        for path, tensor in expected["global"].items():
            for rank in (0, 1):
                assert_same(snapshot.read_object(f"{rank}/{path}"), tensor)
                out = torch.zeros_like(tensor)
                assert snapshot.read_object(f"{rank}/{path}", obj_out=out) is out
                assert_same(out, tensor)

    def test_left_out_where_the_target_has_none(self, name: str) -> None:
        snapshot, expected = load(name)
        target = StateDict(plain=5)
        snapshot.restore({"state": target})
        assert_same(target["plain"], expected["ranks"][0]["state"]["plain"])
        assert set(target.data) == set(expected["ranks"][0]["state"])


def test_module_optimizer_scheduler_and_rng_resume() -> None:
    """model_optim into the real things, not only into dictionaries."""
    snapshot, expected = load("model_optim")
    state = expected["ranks"][0]
    model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=7.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 99)
    snapshot.restore({"model": model, "optim": optimizer, "sched": scheduler, "rng": RNGState()})
    assert_same(torch.get_rng_state(), state["rng"]["rng_state"])
    assert_same(dict(model.state_dict()), dict(state["model"]))
    assert_same(scheduler.state_dict(), state["sched"])
    got = optimizer.state_dict()
    assert_same(got["state"], state["optim"]["state"])
    for key, value in state["optim"]["param_groups"][0].items():
        assert_same(got["param_groups"][0][key], value)
