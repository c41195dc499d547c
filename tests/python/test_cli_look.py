"""The command: ls, info, cat, on snapshots of the original and of ours."""

from __future__ import annotations

import io
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from cli_support import command, run, run_bytes, run_json
from support import CORPUS, raw_metadata, tensor_entry, write_snapshot
from torchsnapshot import Snapshot, StateDict

FOLDERS = sorted(path.parent for path in CORPUS.glob("*/snapshot"))
ATTACKS = sorted((CORPUS.parents[1] / "attacks").glob("*.[jy]*"))
CONTAINERS = ("dict", "OrderedDict", "list")


@pytest.fixture
def taken(snap: str) -> str:
    state = StateDict(
        weight=torch.arange(12.0).reshape(3, 4),
        half=torch.tensor([1.5, -2.0, float("nan"), float("inf")], dtype=torch.bfloat16),
        count=torch.tensor([-5, 7], dtype=torch.int64),
        z=torch.tensor([1 + 2j, 3 - 4j]),
        flags=torch.tensor([True, False, True]),
        empty=torch.zeros(0, 3),
        step=7,
        loss=0.1,
        name="run ä\n\x1b[31m",
        raw=b"\x00\xffraw",
        pair=(1, 2),
        nested={"list": [1, {"deep/key%": 2}]},
    )
    Snapshot.take(snap, {"state": state})
    return snap


# --- ls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_ls_of_the_corpus_lists_exactly_the_manifest(folder: pathlib.Path) -> None:
    path = str(folder / "snapshot")
    manifest = Snapshot(path).get_manifest()
    listed = run_json("ls", path)["entries"]
    assert {e["path"]: e["type"] for e in listed if e["type"] != "rank"} == {p: e.type for p, e in manifest.items()}
    leaves = [e for e in listed if e["type"] not in (*CONTAINERS, "rank")]
    assert sum(e["bytes"] for e in listed if e["level"] == 0) == sum(e["bytes"] for e in leaves)
    for line in run("ls", "--flat", path).stdout.splitlines():
        assert line.strip()
    assert run("ls", "--names", path).stdout.split("\n")[:-1] == [e["path"] for e in leaves]


def test_ls_shows_the_tree_as_it_was_saved(taken: str) -> None:
    text = run("ls", taken).stdout
    names = [line[12:].split("  ")[0].strip() or line[12:].strip().split("  ")[0] for line in text.splitlines()]
    assert names[:4] == ["0/", "state/", "weight", "half"]
    assert "torch.float32 [3, 4]" in text
    assert "object builtins.tuple" in text
    assert "int 7" in text
    assert "deep%2Fkey%25" in text
    assert "\x1b" not in text  # neither colours in a pipe nor what a snapshot smuggles in


def test_ls_filters(taken: str) -> None:
    def paths(*arguments: str) -> list[str]:
        return [e["path"] for e in run_json("ls", "--flat", taken, *arguments)["entries"]]

    assert paths("--dtype", "float32") == ["0/state/weight", "0/state/empty"]
    assert paths("--dtype", "torch.bool", "--dtype", "int64") == ["0/state/count", "0/state/flags"]
    assert paths("*/weight") == paths("state/weight") == ["0/state/weight"]
    assert paths("state/nested") == ["0/state/nested/list/0", "0/state/nested/list/1/deep%2Fkey%25"]
    assert paths("nothing") == []
    assert paths("--rank", "1") == []
    assert paths("--sort", "size")[0] in ("0/state/pair", "0/state/weight")
    levels = {e["level"] for e in run_json("ls", "--depth", "1", taken)["entries"]}
    assert levels == {0, 1}
    by_name = [e["path"] for e in run_json("ls", "--sort", "name", taken)["entries"] if e["level"] == 2]
    assert by_name == sorted(by_name)
    sizes = [e["bytes"] for e in run_json("ls", "--sort", "size", taken)["entries"] if e["level"] == 2]
    assert sizes == sorted(sizes, reverse=True)


def test_ls_of_many_entries(tmp_path: pathlib.Path) -> None:
    count = 100_000
    manifest: dict[str, object] = {"0/s": {"type": "dict", "keys": [f"k{i}" for i in range(count)]}}
    manifest |= {f"0/s/k{i}": tensor_entry("0/slab", "torch.uint8", [1], [i, i + 1]) for i in range(count)}
    write_snapshot(str(tmp_path / "s"), manifest, {"0/slab": bytes(count)})
    entries = run_json("ls", str(tmp_path / "s"))["entries"]
    assert len(entries) == count + 2
    assert entries[0] == {"path": "0", "type": "rank", "level": 0, "bytes": count, "leaves": count}
    assert [e["path"] for e in entries[2:5]] == ["0/s/k0", "0/s/k1", "0/s/k2"]


# --- info -----------------------------------------------------------------------------------------------------------


def test_info_of_ours(taken: str) -> None:
    info = run_json("info", taken)
    manifest = Snapshot(taken).get_manifest()
    assert info["writer"].startswith("torchsnapshot (C++ engine)")
    assert info["metadata_guarded"]
    assert info["world_size"] == 1
    assert info["entries"] == sum(e.type not in CONTAINERS for e in manifest.values())
    assert info["by_dtype"]["torch.float32"] == {"entries": 2, "bytes": 48}
    assert info["by_type"]["int"]["entries"] == 3
    assert set(info["by_key"]) == {"state"}
    assert info["by_rank"]["0"]["entries"] == info["entries"]
    assert info["objects"] == info["objects_with_checksums"] > 0
    assert info["object_bytes"] == info["bytes_with_checksums"]
    assert info["objects_missing"] == 0
    text = run("info", taken).stdout
    for part in ("C++ engine", "checksums", info["take_ids"][0], "torch.bfloat16"):
        assert part in text


def test_info_of_the_originals() -> None:
    info = run_json("info", str(CORPUS / "dtensor_2" / "snapshot"))
    assert "original" in info["writer"]
    assert info["world_size"] == 2
    assert not info["metadata_guarded"]
    assert info["objects_with_checksums"] == 0
    assert set(info["by_rank"]) == {"0", "1"}
    assert "can't be noticed" in run("info", str(CORPUS / "dtensor_2" / "snapshot")).stdout


# --- cat ------------------------------------------------------------------------------------------------------------


def test_cat_of_values(taken: str) -> None:
    assert run("cat", taken, "state/step").stdout == "7\n"
    assert run("cat", taken, "0/state/loss").stdout == "0.1\n"
    assert run("cat", taken, "state/name").stdout == "run ä\\x0a\\x1b[31m\n"
    assert run_bytes("cat", "--raw", taken, "state/name") == "run ä\n\x1b[31m".encode()
    assert run_bytes("cat", "--raw", taken, "state/raw") == b"\x00\xffraw"
    assert run("cat", taken, "state/nested").stdout == "list\n"
    assert run_json("cat", taken, "state/step")["value"] == "7"
    pair = run_json("cat", taken, "state/pair")
    assert pair["object_type"] == "builtins.tuple"
    raw = run_bytes("cat", "--raw", taken, "state/pair")
    assert len(raw) == pair["bytes"]
    assert torch.load(io.BytesIO(raw), weights_only=True) == (1, 2)


def test_cat_of_tensors(taken: str) -> None:
    weight = run_json("cat", taken, "state/weight")
    assert (weight["min"], weight["max"], weight["mean"]) == (0, 11, 5.5)
    assert weight["shape"] == [3, 4]
    assert weight["first"] == list(range(8))
    half = run_json("cat", taken, "state/half", "--first", "4")
    assert (half["nan"], half["infinite"], half["min"], half["max"], half["mean"]) == (1, 1, -2, 1.5, -0.25)
    assert half["first"] == [1.5, -2, "NaN", "Infinity"]
    assert run_json("cat", taken, "state/z")["first"] == [[1, 2], [3, -4]]
    assert run_json("cat", taken, "state/z")["min"] is None
    assert run_json("cat", taken, "state/count")["min"] == -5
    assert run_json("cat", taken, "state/empty")["elements"] == 0
    text = run("cat", taken, "state/weight").stdout
    for part in ("torch.float32", "[3, 4]", "5.5", "0, 1, 2"):
        assert part in text


@pytest.mark.parametrize("folder", ["tensors_batched", "tensors_files", "chunked_batched", "sharded_2", "dtensor_2"])
def test_npy_of_every_plain_tensor_of_the_corpus(folder: str, tmp_path: pathlib.Path) -> None:
    path = str(CORPUS / folder / "snapshot")
    expected = torch.load(CORPUS / folder / "expected.pt", weights_only=False)
    tensors = {f"{k}/{p}": t for k, state in expected["ranks"][0].items() for p, t in state.items()}
    tensors |= expected["global"]
    checked = 0
    for entry in run_json("ls", "--flat", "--rank", "0", path)["entries"]:
        tensor = tensors.get(entry["path"].removeprefix("0/"))
        if (
            not isinstance(tensor, torch.Tensor)
            or entry.get("serializer") != "buffer_protocol"
            or "/nest/" in entry["path"]
        ):
            continue
        run("cat", "--npy", str(tmp_path / "t.npy"), path, entry["path"])
        array = np.load(tmp_path / "t.npy")
        wanted = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(array, wanted.numpy())
        assert array.dtype == wanted.numpy().dtype
        checked += 1
    assert checked >= 2
    assert os.listdir(tmp_path) == ["t.npy"]


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
)
def test_npy_widens_what_numpy_lacks(snap: str, dtype: torch.dtype) -> None:
    tensor = torch.arange(256, dtype=torch.uint8).view(dtype)
    Snapshot.take(
        snap,
        {"s": StateDict(t=tensor, half=torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16))},
    )
    array = np.load(io.BytesIO(run_bytes("cat", "--npy", "-", snap, "s/t")))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, tensor.float().numpy())
    summary = run_json("cat", snap, "s/half")
    values = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16).double()
    assert summary["nan"] == int(values.isnan().sum())
    assert summary["max"] == float(values[values.isfinite()].max())
    assert math.isclose(summary["mean"], float(values[values.isfinite()].mean()), abs_tol=1e-12)


def test_cat_says_what_is_wrong(taken: str, tmp_path: pathlib.Path) -> None:
    assert "did you mean 'state/weight'" in run("cat", taken, "state/weigth", status=2).stderr
    assert "no tensor" in run("cat", "--npy", str(tmp_path / "x"), taken, "state/step", status=2).stderr
    assert "container" in run("cat", "--raw", taken, "state", status=2).stderr
    assert "excludes" in run("cat", "--raw", "--npy", "x", taken, "state/weight", status=2).stderr
    assert "No such file" in run("cat", "--npy", str(tmp_path / "no" / "x"), taken, "state/weight", status=2).stderr
    [slab] = {
        e["location"] for e in raw_metadata(taken)["manifest"].values() if e["type"] == "Tensor" and e["byte_range"]
    }
    with open(os.path.join(taken, slab), "r+b") as file:
        file.write(b"\x55")
    error = run("cat", "--npy", str(tmp_path / "x.npy"), taken, "state/weight", status=2).stderr
    assert "state/weight" in error
    assert "CRC-32C" in error
    assert os.listdir(tmp_path) == ["outer"] or not list(tmp_path.glob("x.npy*"))
    assert run_json("cat", "--no-verify", taken, "state/weight")["elements"] == 12


# --- usage and errors -----------------------------------------------------------------------------------------------


def test_usage(tmp_path: pathlib.Path) -> None:
    assert "Exit status" in run("--help").stdout
    assert run("--version").stdout.startswith("torchsnapshot 0.")
    commands = ["ls", "info", "cat", "verify", "diff", "rm", "prune"]
    for name in commands:
        text = run(name, "--help").stdout
        assert "Examples:" in text
        assert "--json" in text
        assert name in run("--help").stdout
    for arguments in (
        [],
        ["nothing"],
        ["ls"],
        ["ls", "x", "--sort", "wrong"],
        ["diff", "x"],
        ["ls", "x", "--dtype", "float33"],
        ["prune", "x", "--older-than", "3 parsecs"],
        ["ls", "ftp://host/x"],
        ["ls", "x", "-o", "novalue"],
    ):
        assert run(*arguments, status=2).stderr
    missing = str(tmp_path / "nothing")
    for name in ("ls", "info", "verify", "rm"):
        assert missing in run(name, missing, status=2).stderr
    error = run_json("ls", missing, status=2)["error"]
    assert error["code"] == "NOT_A_SNAPSHOT"
    assert missing in error["message"]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda path: path.name)
def test_hostile_metadata_is_refused(attack: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copy(attack, tmp_path / ".snapshot_metadata")
    error = run("ls", str(tmp_path), status=2).stderr
    assert error.startswith("torchsnapshot: Failed to read .snapshot_metadata")
    assert len(error) > 150  # the reason
    assert error.isprintable() or error[:-1].isprintable()
    status = run_status("verify", str(tmp_path))
    assert status in (1, 2)  # 1: damaged; 2: something that this version does not know


def run_status(*arguments: str) -> int:
    return subprocess.run([command(), *arguments], capture_output=True, timeout=60, check=False).returncode


def test_a_full_disk_is_an_error(taken: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([command(), "ls", taken], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "No space left" in done.stderr


def test_module_and_completions(taken: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torchsnapshot", "cat", taken, "state/step"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "7\n"
    bash = run("completion", "bash").stdout
    script = bash + (
        'COMP_WORDS=(torchsnapshot pr); COMP_CWORD=1; _torchsnapshot; echo "${COMPREPLY[@]}"\n'
        'COMP_WORDS=(torchsnapshot prune --ol); COMP_CWORD=2; _torchsnapshot; echo "${COMPREPLY[@]}"\n'
        f'COMP_WORDS=({command()} cat {taken} 0/state/we); COMP_CWORD=3; _torchsnapshot; echo "${{COMPREPLY[@]}}"\n'
        'COMP_WORDS=(torchsnapshot ls --sort s); COMP_CWORD=3; _torchsnapshot; echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["prune", "--older-than", "0/state/weight", "saved size"]
    for shell in ("zsh", "fish"):
        assert "--older-than" in run("completion", shell).stdout.replace("-l older-than", "--older-than")
    assert run("completion", "man").stdout.startswith(".TH TORCHSNAPSHOT 1")
    assert json.loads(run("ls", "--json", taken).stdout)
