"""Python and C++ train on from each other's snapshots: the same losses, whoever took the snapshot.

Python trains five steps and takes a snapshot; both train ten more. C++ takes a snapshot then; Python restores it into
new objects, and both train another ten. One run of the C++ program (interchange.cc) serves all cases.
TORCHSNAPSHOT_TEST_TORCH_BUILD: the build folder with the program.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchsnapshot import RNGState, Snapshot, StateDict
from torchsnapshot.errors import ObjectNotAllowedError

STEPS = 10
BUILD = Path(os.environ.get("TORCHSNAPSHOT_TEST_TORCH_BUILD", Path(__file__).parents[2] / "build/torch"))
PROGRAM = BUILD / "tests/torch/torch_interchange"

# Both run the same kernels on float32, but the optimizers and the attention are written in another order of operations:
# Adam's moment is lerp() in Python and mul().add() in C++, attention is one fused operation in Python and three in C++.
# The last bits of the losses differ, and LBFGS, which divides by differences of gradients, makes more of it.
EXACT = 0.0
CLOSE = 1e-5
LBFGS = 1e-3


class Net(nn.Module):
    """As struct Net of interchange.cc."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        bodies: dict[str, Callable[[], nn.Module]] = {
            "linear": lambda: nn.Linear(8, 8),
            "conv": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()),
            "embedding": lambda: nn.Embedding(20, 8),
            "layernorm": lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)),
            "batchnorm": lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)),
            "rnn": lambda: nn.RNN(8, 8, 2, batch_first=True),
            "lstm": lambda: nn.LSTM(8, 8, 2, batch_first=True),
            "gru": lambda: nn.GRU(8, 8, bidirectional=True, batch_first=True),
            "attention": lambda: nn.MultiheadAttention(8, 2),
            "transformer": lambda: nn.Transformer(8, 2, 1, 1, dim_feedforward=16, dropout=0.0),
        }
        self.body = bodies[kind]()
        self.head = nn.Linear({"conv": 32, "gru": 16}.get(kind, 8), 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind in ("rnn", "lstm", "gru"):
            h = self.body(x)[0].select(1, -1)
        elif self.kind == "attention":
            h = self.body(x, x, x)[0].mean(0)
        elif self.kind == "transformer":
            h = self.body(x, x).mean(0)
        else:
            h = self.body(x)
        if self.kind == "embedding":
            h = h.mean(1)
        return self.head(torch.tanh(h))


def make_input(kind: str) -> torch.Tensor:
    if kind == "conv":
        return torch.rand(16, 1, 6, 6)
    if kind == "embedding":
        return torch.randint(20, (16, 5))
    if kind in ("rnn", "lstm", "gru"):
        return torch.rand(16, 5, 8)
    if kind in ("attention", "transformer"):
        return torch.rand(5, 16, 8)
    return torch.rand(16, 8)


OPTIMIZERS: dict[str, Callable[[Net], torch.optim.Optimizer]] = {
    "adam": lambda net: torch.optim.Adam(net.parameters(), 0.01, betas=(0.8, 0.95), weight_decay=0.01),
    "adam_amsgrad": lambda net: torch.optim.Adam(net.parameters(), 0.01, amsgrad=True),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), 0.01),
    "adamw_named": lambda net: torch.optim.AdamW(net.named_parameters(), 0.01, foreach=True),
    "sgd": lambda net: torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.01),
    "sgd_momentum": lambda net: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, dampening=0.1),
    "sgd_nesterov": lambda net: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda net: torch.optim.RMSprop(net.parameters(), 0.01, alpha=0.9),
    "rmsprop_all": lambda net: torch.optim.RMSprop(net.parameters(), 0.01, centered=True, momentum=0.5),
    "adagrad": lambda net: torch.optim.Adagrad(net.parameters(), 0.1, lr_decay=0.01, initial_accumulator_value=0.1),
    "lbfgs": lambda net: torch.optim.LBFGS(net.parameters(), 0.2, max_iter=3, history_size=4),
    "lbfgs_wolfe": lambda net: torch.optim.LBFGS(net.parameters(), max_iter=3, line_search_fn="strong_wolfe"),
    "groups": lambda net: torch.optim.AdamW(
        [{"params": net.body.parameters(), "lr": 0.02, "weight_decay": 0.0}, {"params": net.head.parameters()}], 0.01
    ),
}


@dataclass
class Case:
    model: str
    optimizer: str
    scheduler: str = ""
    tolerance: float = CLOSE

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.model, self.optimizer, self.scheduler) if part)


CASES = [
    *(
        Case("linear", name, tolerance=LBFGS if name.startswith("lbfgs") else CLOSE)
        for name in OPTIMIZERS
        if name != "sgd"
    ),
    Case("linear", "sgd", tolerance=EXACT),
    *(
        Case(name, "sgd", tolerance=EXACT)
        for name in ("conv", "embedding", "layernorm", "batchnorm", "rnn", "lstm", "gru")
    ),
    Case("attention", "adamw"),
    Case("transformer", "adamw"),
    Case("batchnorm", "adamw"),
    Case("linear", "sgd", "step"),
    Case("linear", "sgd", "plateau"),
]


class Training:
    """Model, optimizer and scheduler of a case, new."""

    def __init__(self, case: Case, data: StateDict) -> None:
        self.model = Net(case.model)
        self.optimizer = OPTIMIZERS[case.optimizer](self.model)
        self.data = data
        self.app_state: dict[str, Any] = {"model": self.model, "optim": self.optimizer, "data": data, "rng": RNGState()}
        self.scheduler: Any = None
        if case.scheduler == "step":
            self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 4, 0.5)
        elif case.scheduler == "plateau":
            self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, factor=0.5, patience=1)
        if self.scheduler is not None:
            self.app_state["sched"] = self.scheduler

    def train(self, steps: int = STEPS) -> list[float]:
        losses = []
        for _ in range(steps):

            def closure() -> torch.Tensor:
                self.optimizer.zero_grad()
                loss = nn.functional.mse_loss(self.model(self.data["x"]), self.data["y"])
                loss.backward()
                return loss

            losses.append(self.optimizer.step(closure).item())
            if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                self.scheduler.step(1.0)
            elif self.scheduler is not None:
                self.scheduler.step()
        return losses


@dataclass
class Outcome:
    """What Python computed, and where C++ left what it did."""

    folder: Path
    losses: list[float]
    drawn: torch.Tensor

    def result(self) -> dict[str, Any]:
        return Snapshot(str(self.folder / "result")).get_state_dict_for_key("result")


def run_cpp(*arguments: object) -> subprocess.CompletedProcess[str]:
    if not PROGRAM.exists():
        pytest.fail(f"{PROGRAM} is not there: make torch-test builds it")
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("interchange")
    done = {}
    for case in CASES:
        torch.manual_seed(11)
        data = StateDict(x=make_input(case.model), y=torch.rand(16, 4))
        training = Training(case, data)
        training.train(5)
        kind = StateDict(model=case.model, optimizer=case.optimizer, scheduler=case.scheduler)
        Snapshot.take(str(root / case.name / "python"), {**training.app_state, "case": kind})
        drawn = torch.rand(4)
        done[case.name] = Outcome(root / case.name, training.train(), drawn)
    run = run_cpp(*(outcome.folder for outcome in done.values()))
    assert run.returncode == 0, run.stderr
    return done


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cpp_trains_on_from_python(outcomes: dict[str, Outcome], case: Case) -> None:
    outcome = outcomes[case.name]
    result = outcome.result()
    assert len(set(outcome.losses)) > STEPS // 2, "the losses must tell something"
    assert result["first"] == pytest.approx(outcome.losses, rel=case.tolerance, abs=case.tolerance * 1e-2)
    assert torch.equal(result["drawn"], outcome.drawn)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_python_trains_on_from_cpp(outcomes: dict[str, Outcome], case: Case) -> None:
    outcome = outcomes[case.name]
    torch.manual_seed(99)
    training = Training(case, StateDict(x=None, y=None))
    report = Snapshot(str(outcome.folder / "cpp")).restore(training.app_state)
    missing = [path for path in report.missing if not path.startswith(("rng/python_", "rng/numpy_"))]
    # libtorch's ReduceLROnPlateau knows neither the least rate that new groups get nor the rates it set.
    only_python = ["sched/default_min_lr", "sched/_last_lr/0"] if case.scheduler == "plateau" else []
    assert [path for path in missing if path not in only_python] == []
    result = outcome.result()
    assert torch.equal(result["drawn_after"], torch.rand(4))
    assert training.train() == pytest.approx(result["second"], rel=case.tolerance, abs=case.tolerance * 1e-2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_structure_is_pythons(outcomes: dict[str, Outcome], case: Case) -> None:
    """Same keys in the same order (but for a group's options: as they were given), and values of the same types."""

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            items = sorted(value.items()) if "params" in value else value.items()
            return type(value).__name__, [(key, shape(item)) for key, item in items]
        if isinstance(value, (list, tuple)):
            return type(value).__name__, [shape(item) for item in value]
        if isinstance(value, torch.Tensor):
            return str(value.dtype), list(value.shape)
        return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else repr(value)

    folder = outcomes[case.name].folder
    for key in ("model", "optim"):
        taken = {side: shape(Snapshot(str(folder / side)).get_state_dict_for_key(key)) for side in ("python", "cpp")}
        if case.optimizer.startswith("lbfgs") and key == "optim":
            continue  # its lists grow with each step
        assert taken["cpp"] == taken["python"]


def test_what_only_python_knows_survives_cpp(outcomes: dict[str, Outcome]) -> None:
    snapshot = Snapshot(str(outcomes["linear-adamw_named"].folder / "cpp"))
    group = snapshot.get_state_dict_for_key("optim")["param_groups"][0]
    assert group["foreach"] is True
    assert group["param_names"] == [name for name, _ in Net("linear").named_parameters()]
    assert group["decoupled_weight_decay"] is True
    assert group["betas"] == (0.9, 0.999)


def test_objects_are_read_by_weights_only_rules(outcomes: dict[str, Outcome]) -> None:
    """Nothing that C++ writes needs more than torch.load(weights_only=True)."""
    snapshot = Snapshot(str(outcomes["linear-adamw"].folder / "cpp"))
    files = {entry.location for entry in snapshot.get_manifest().values() if entry.type == "object"}
    values = [torch.load(outcomes["linear-adamw"].folder / "cpp" / name, weights_only=True) for name in files]
    assert None in values
    assert (0.9, 0.999) in values


def values_of_python() -> StateDict:
    return StateDict(
        none=None,
        pair=(1, 2.5),
        nested=((None, [True, "ü"]), {"a": 1, 2.5: (3,)}),
        big=1 << 40,
        large=(1 << 40, -(1 << 62)),
        complex=1 - 2j,
        size=torch.Size([2, 3]),
        device=torch.device("cuda", 1),
        data=b"\x00\xff",
        bytes_in_tuple=(b"\x00\xff", b""),
        tensors=(torch.arange(6).reshape(2, 3).t(), nn.Parameter(torch.ones(2))),
        quantized=torch.quantize_per_tensor(torch.rand(4), 0.1, 2, torch.quint8),
        double_keys={1.5: 2},
        ordered={"b": 1, "a": 2},
        list=[1, None, "x"],
    )


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore:.*TypedStorage:UserWarning")
def test_values_of_every_kind_pass_through_cpp(tmp_path: Path) -> None:
    saved = values_of_python()
    Snapshot.take(str(tmp_path / "python"), {"values": saved})
    run = run_cpp("--relay", tmp_path / "python", tmp_path / "cpp")
    assert run.returncode == 0, run.stderr
    back = Snapshot(str(tmp_path / "cpp")).get_state_dict_for_key("values")
    assert list(back) == list(saved)
    for key in saved:
        if key in ("tensors", "quantized"):
            continue
        expected = tuple(saved[key]) if key == "size" else saved[key]
        assert back[key] == expected
        assert type(back[key]) is type(expected)
    assert all(torch.equal(a, b) for a, b in zip(back["tensors"], saved["tensors"], strict=True))
    assert torch.equal(back["quantized"].int_repr(), saved["quantized"].int_repr())
    assert back["quantized"].q_zero_point() == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({1, 2}, "set"),
        (1 << 70, "more than 64 bits"),
        ((1 << 70,), "more than 64 bits"),
        (torch.float32, "torch.float32"),
        (slice(1, 2), "slice"),
    ],
    ids=["set", "int", "int_in_tuple", "dtype", "slice"],
)
def test_what_only_python_can_make_is_named_or_skipped(tmp_path: Path, value: object, reason: str) -> None:
    Snapshot.take(str(tmp_path / "python"), {"values": StateDict(a=1, odd=StateDict(x=value).data, z=2)})
    run = run_cpp("--relay", tmp_path / "python", tmp_path / "cpp")
    assert run.returncode == 1
    assert "values/odd/x" in run.stderr
    assert reason in run.stderr
    run = run_cpp("--relay-skipping", tmp_path / "python", tmp_path / "cpp")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["skipped", "values/odd/x"]
    assert Snapshot(str(tmp_path / "cpp")).get_state_dict_for_key("values") == {"a": 1, "odd": {}, "z": 2}


@pytest.mark.parametrize("state", [{1: 2, "a": 3}, {(1, 2): 3}], ids=["number", "object"])
def test_a_state_that_is_no_dict_with_text_as_keys_is_named(tmp_path: Path, state: dict[Any, Any]) -> None:
    Snapshot.take(str(tmp_path / "python"), {"values": StateDict(state)})
    run = run_cpp("--relay", tmp_path / "python", tmp_path / "cpp")
    assert run.returncode == 1
    assert "saved under 'values'" in run.stderr
    assert "use read_object" in run.stderr


def test_nothing_that_a_pickle_names_is_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/exploded",)

    Snapshot.take(str(tmp_path / "python"), {"values": StateDict(bomb=Bomb())})
    with pytest.raises(ObjectNotAllowedError):
        Snapshot(str(tmp_path / "python")).get_state_dict_for_key("values")
    run = run_cpp("--relay", tmp_path / "python", tmp_path / "cpp")
    assert run.returncode == 1
    assert "values/bomb" in run.stderr
    assert "posix.system" in run.stderr
    assert not (tmp_path / "exploded").exists()
