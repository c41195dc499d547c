"""Bytes that change on storage are found, named, and never restored in silence."""

from __future__ import annotations

import pathlib
import random
import shutil
from typing import Any

import pytest
import torch
from support import METADATA, assert_same, restored
from torchsnapshot import CorruptSnapshotError, Snapshot, StateDict, knobs
from torchsnapshot.snapshot import Corruption


def state_of(seed: int) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return StateDict(
        large=torch.rand(600_000, generator=generator),
        small=torch.rand(10, generator=generator),
        transposed=torch.rand(500, 300, generator=generator).t(),
        object={1, 2, seed},
        step=seed,
    )


def files(snap: str) -> list[pathlib.Path]:
    return sorted(path for path in pathlib.Path(snap).rglob("*") if path.is_file())


def data_of(snap: str, entry: str) -> tuple[pathlib.Path, int, int]:
    """File, first byte and size of what an entry has on storage."""
    found: Any = Snapshot(snap).get_manifest()[entry]
    path = pathlib.Path(snap, found.location)
    begin, end = getattr(found, "byte_range", None) or (0, path.stat().st_size)
    return path, begin, end - begin


def flip(path: pathlib.Path, at: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def taken(snap: str) -> str:
    Snapshot.take(snap, {"state": state_of(1)})
    return snap


class TestFlippedBits:
    @pytest.mark.parametrize("name", ["large", "small", "transposed", "object"])
    def test_restore_names_the_entry(self, taken: str, name: str) -> None:
        path, begin, size = data_of(taken, f"0/state/{name}")
        flip(path, begin + size // 2)
        target = state_of(2)
        with pytest.raises(CorruptSnapshotError, match=rf"state/{name}.*expected 0x") as raised:
            Snapshot(taken).restore({"state": target})
        assert path.name in str(raised.value)
        if name == "object":
            assert_same(dict(target), dict(state_of(2)))

    @pytest.mark.parametrize("name", ["large", "small", "transposed", "object"])
    def test_read_object(self, taken: str, name: str) -> None:
        path, begin, size = data_of(taken, f"0/state/{name}")
        flip(path, begin + size - 1)
        with pytest.raises(CorruptSnapshotError, match=f"state/{name}"):
            Snapshot(taken).read_object(f"0/state/{name}")
        with pytest.raises(CorruptSnapshotError, match=f"state/{name}"):
            Snapshot(taken).get_state_dict_for_key("state")
        assert Snapshot(taken).read_object("0/state/step") == 1

    def test_keep_going_restores_the_rest_and_reports(self, taken: str) -> None:
        path, begin, size = data_of(taken, "0/state/large")
        flip(path, begin + size // 2)
        flip(data_of(taken, "0/state/object")[0], 10)
        target = state_of(2)
        report = Snapshot(taken).restore({"state": target}, keep_going=True)
        assert all(isinstance(found, Corruption) for found in report.corrupt)
        assert sorted(path for found in report.corrupt for path in found.paths) == ["state/large", "state/object"]
        assert all(found.expected != found.found for found in report.corrupt)
        assert report.corrupt[0].byte_range[1] > report.corrupt[0].byte_range[0]
        for name in ("small", "transposed", "step"):
            assert_same(target[name], state_of(1)[name])
        assert target["object"] == {1, 2}, "the damaged object: the target's own stays"

    def test_keep_going_without_damage(self, taken: str) -> None:
        target = state_of(2)
        assert Snapshot(taken).restore({"state": target}, keep_going=True).corrupt == []
        assert_same(dict(target), dict(state_of(1)))

    def test_the_knob_turns_verification_off(self, taken: str) -> None:
        path, begin, size = data_of(taken, "0/state/large")
        flip(path, begin + size // 2)
        with knobs.override_checksums_disabled(True):
            target = state_of(2)
            Snapshot(taken).restore({"state": target})
        assert (target["large"] != state_of(1)["large"]).sum() == 1

    def test_random_damage_anywhere(self, taken: str, tmp_path: pathlib.Path) -> None:
        """Whatever file, whatever place: the right bytes, or an error."""
        random.seed(0)
        found = 0
        for case in range(60):
            copy = str(tmp_path / f"copy{case}")
            shutil.copytree(taken, copy)
            victim = random.choice(files(copy))
            content = bytearray(victim.read_bytes())
            if random.random() < 0.3:
                del content[random.randrange(len(content)) :]
            else:
                content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            victim.write_bytes(content)
            target = state_of(2)
            try:
                Snapshot(copy).restore({"state": target})
            except RuntimeError:
                found += 1
            else:
                assert_same(dict(target), dict(state_of(1)))
            shutil.rmtree(copy)
        assert found > 40


class TestMetadata:
    def test_a_number_that_was_changed(self, taken: str) -> None:
        path = pathlib.Path(taken, METADATA)
        path.write_text(path.read_text().replace('"serialized_value": "1"', '"serialized_value": "7"'))
        with pytest.raises(RuntimeError, match=r"Failed to read .snapshot_metadata.*expected 0x"):
            Snapshot(taken).restore({"state": state_of(2)})
        with knobs.override_checksums_disabled(True):
            assert Snapshot(taken).read_object("0/state/step") == 7

    def test_the_version_is_plain_to_programs(self, taken: str) -> None:
        assert "+crc32c." in pathlib.Path(taken, METADATA).read_text()
        assert "+" not in Snapshot(taken).metadata.version


class TestSidecars:
    def test_lie_where_the_original_does_not_look(self, taken: str) -> None:
        sidecars = [path for path in files(taken) if ".torchsnapshot" in path.parts]
        assert [path.name for path in sidecars] == ["checksums-0"]

    def test_none_without_checksums(self, snap: str) -> None:
        with knobs.override_checksums_disabled(True):
            Snapshot.take(snap, {"state": state_of(1)})
        assert not pathlib.Path(snap, ".torchsnapshot").exists()

    def test_are_replaced_with_the_snapshot(self, taken: str) -> None:
        before = files(taken)
        Snapshot.take(taken, {"state": state_of(3)})
        assert len(files(taken)) == len(before)
        assert_same(restored(taken), dict(state_of(3)))

    def test_a_missing_one_is_told_once(self, taken: str, caplog: pytest.LogCaptureFixture) -> None:
        shutil.rmtree(pathlib.Path(taken, ".torchsnapshot"))
        target = state_of(2)
        Snapshot(taken).restore({"state": target})
        assert_same(dict(target), dict(state_of(1)))
        assert len([record for record in caplog.records if "can't be verified" in record.getMessage()]) == 1

    def test_a_damaged_one_is_an_error(self, taken: str) -> None:
        sidecar = next(path for path in files(taken) if path.name == "checksums-0")
        flip(sidecar, 20)
        with pytest.raises(CorruptSnapshotError, match="checksums-0"):
            Snapshot(taken).restore({"state": state_of(2)})
