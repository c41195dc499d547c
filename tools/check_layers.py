#!/usr/bin/env python3
"""Checks that each #include obeys the layers.

The layers and what each one may use are the torchsnapshot_layer(NAME DEPS ...) lines of src/CMakeLists.txt; a
dependency counts transitively. On top of that:

* public headers (include/torchsnapshot) include only the standard library and each other;
* code in src includes other layers by "LAYER/FILE.h", and nothing of torch or Python;
* what only tests are built with (gtest, rapidcheck, nlohmann) stays in *_test.cc, test*.h and conformance*.h, and
  these headers are included by nothing else;
* fmt stays in .cc files: torch carries a newer one;
* the faces (python/bindings, libtorch) may use every layer, and only libtorch and its public header torch.h use torch;
* the command (cli) uses public headers, its own and those of core: all else it does is the engine's work.

Usage: check_layers.py [ROOT]. Prints each finding as FILE:LINE: TEXT; exit status 1 if there are any.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
LAYER = re.compile(r"^torchsnapshot_layer\((\w+)([^)]*)\)", re.MULTILINE)
TORCH_OR_PYTHON = re.compile(r"(torch|ATen|c10|caffe2|nanobind|pybind11)/|(Python|dlpack)\.h$|dlpack/")
TORCH = re.compile(r"(torch|ATen|c10|caffe2)/")
TORCH_FACE_HEADER = "torch.h"  # of the public headers, the one that may include torch
TEST_ONLY = re.compile(r"(gtest|gmock|rapidcheck|nlohmann)[/.]")
TEST_FILE = re.compile(r"\w+_test\.cc|(test|conformance)\w*\.h")
FACES = {"python/bindings": "bindings", "libtorch": "libtorch"}  # by folder
STANDARD = re.compile(r"[a-z_0-9]+")  # <vector>, <cstdint>: no folder, no ".h"


def read_layers(cmake: str) -> dict[str, set[str]]:
    """Each layer's allowed layers, itself included, from the text of src/CMakeLists.txt."""
    layers: dict[str, set[str]] = {}
    for match in LAYER.finditer(cmake):
        name, rest = match.group(1), match.group(2).split()
        allowed = {name}
        group = None
        for word in rest:
            if word in ("DEPS", "LIBS"):
                group = word
            elif group == "DEPS":
                if word not in layers:
                    raise ValueError(
                        f"src/CMakeLists.txt: layer {name} depends on {word}, which is not declared above it"
                    )
                allowed |= layers[word]
        layers[name] = allowed
    return layers


def includes(text: str) -> Iterator[tuple[int, str, bool]]:
    """Each include of a source text: line number, what it names, whether in angle brackets."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := INCLUDE.match(line):
            yield number, match.group(2), match.group(1) == "<"


def check_public(name: str, angle: bool, file: Path, public: set[str]) -> str | None:
    if angle:
        if file.name == TORCH_FACE_HEADER and TORCH.match(name):
            return None
        return (
            None if STANDARD.fullmatch(name) else f"a public header includes <{name}>: only the standard library may be"
        )
    if name == f"torchsnapshot/{TORCH_FACE_HEADER}":
        return f"{TORCH_FACE_HEADER} is for libtorch programs: no other public header includes it"
    return None if name in public else f'a public header includes "{name}", which is no public header'


def check_private(name: str, angle: bool, file: Path, layer: str, layers: Mapping[str, set[str]]) -> str | None:
    """What is wrong with an include in src/LAYER, in cli (the layer "cli"), or in a face: "bindings" or "libtorch"."""
    is_face = layer in FACES.values()
    is_test = TEST_FILE.fullmatch(file.name) is not None
    if TEST_ONLY.match(name):  # in quotes or not
        return None if is_test else f"{name} is for tests only"
    if angle:
        if not is_face and TORCH_OR_PYTHON.match(name):
            return f"the engine includes <{name}>: it knows nothing of torch or Python"
        if layer == "bindings" and TORCH.match(name):
            return f"the bindings include <{name}>: one extension serves every version of torch, so it uses none"
        if name.startswith("fmt/") and file.suffix == ".h":
            return f"<{name}> is for .cc files only"
        return None
    if name.startswith("torchsnapshot/"):
        if name == f"torchsnapshot/{TORCH_FACE_HEADER}" and layer != "libtorch":
            return f'"{name}" is for libtorch programs'
        return None
    target = name.split("/", 1)[0] if "/" in name else ""
    if target in layers:
        if not is_face and target not in layers[layer]:
            allowed = ", ".join(sorted(layers[layer] - {layer})) or "no other layer"
            return f'layer {layer} includes "{name}": it may use only {allowed}'
        if TEST_FILE.fullmatch(Path(name).name) and not is_test:
            return f'"{name}" is for tests only'
        return None
    if is_face and (target == layer or (layer == "bindings" and not target)):
        return None
    return f'"{name}" is of no layer: write "LAYER/FILE.h", or <…> for a library'


def check_tree(root: Path) -> list[str]:
    """All findings of the source tree at root."""
    layers = read_layers((root / "src/CMakeLists.txt").read_text(encoding="utf-8"))
    public = {f"torchsnapshot/{path.name}" for path in (root / "include/torchsnapshot").glob("*.h")}
    findings = [
        f"src/{folder.name}: no layer of this name is declared in src/CMakeLists.txt"
        for folder in sorted((root / "src").iterdir())
        if folder.is_dir() and folder.name not in layers
    ]
    layers["cli"] = {"cli", "core"}
    for top in ("include", "src", "cli", *FACES):
        for path in sorted((root / top).rglob("*")):
            if path.suffix not in (".h", ".cc"):
                continue
            relative = path.relative_to(root)
            layer = relative.parts[1] if top == "src" else "cli" if top == "cli" else FACES.get(top, "")
            if top == "src" and layer not in layers:
                continue
            for number, name, angle in includes(path.read_text(encoding="utf-8")):
                if name.startswith("torchsnapshot/") and name not in public:
                    finding: str | None = f'"{name}" does not exist'
                elif top == "include":
                    finding = check_public(name, angle, path, public)
                else:
                    finding = check_private(name, angle, path, layer, layers)
                if finding:
                    findings.append(f"{relative}:{number}: {finding}")
    return findings


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    findings = check_tree(root)
    print("\n".join(findings) if findings else "layers: every include obeys them")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
