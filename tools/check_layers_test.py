#!/usr/bin/env python3
"""Tests of check_layers: each kind of bad include is found, and a good tree has no finding."""

import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import check_layers

CMAKE = """
function(torchsnapshot_layer name)
endfunction()
torchsnapshot_layer(core)
torchsnapshot_layer(exec DEPS core)
torchsnapshot_layer(state DEPS core LIBS exec)
torchsnapshot_layer(top DEPS state exec)
"""

GOOD = {
    "src/CMakeLists.txt": CMAKE,
    "include/torchsnapshot/torch.h": '#include <torch/nn/module.h>\n#include <vector>\n#include "torchsnapshot/a.h"\n',
    "libtorch/module.cc": '#include <ATen/core/Tensor.h>\n#include "libtorch/m.h"\n#include "torchsnapshot/torch.h"\n',
    "libtorch/m.h": '#include "core/x.h"\n#include "torchsnapshot/a.h"\n',
    "include/torchsnapshot/a.h": "#include <vector>\n#include <cstdint>\n",
    "include/torchsnapshot/b.h": '#include "torchsnapshot/a.h"\n',
    "src/core/x.h": '#include "torchsnapshot/b.h"\n',
    "src/exec/pool.cc": '#include <fmt/format.h>\n#include <unistd.h>\n#include "core/x.h"\n#include "exec/pool.h"\n',
    "src/exec/pool.h": "#include <thread>\n",
    "src/exec/pool_test.cc": '#include "gtest/gtest.h"\n#include <rapidcheck.h>\n#include "exec/testing.h"\n',
    "src/exec/testing.h": "#include <nlohmann/json.hpp>\n",
    "src/top/top.cc": '#include "core/x.h"\n#include "exec/pool.h"\n  #  include "torchsnapshot/a.h"\n',
    "cli/ls.cc": '#include <CLI/CLI.hpp>\n#include "cli/x.h"\n#include "core/x.h"\n#include "torchsnapshot/a.h"\n',
    "python/bindings/module.cc": '#include <nanobind/nanobind.h>\n#include "bindings/m.h"\n#include "core/x.h"\n',
}


class CheckLayersTest(unittest.TestCase):
    def findings(self, changes: dict[str, str]) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name, text in {**GOOD, **changes}.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            return check_layers.check_tree(root)

    def test_good_tree(self) -> None:
        self.assertEqual(self.findings({}), [])

    def test_each_bad_include_is_found_once_with_its_place(self) -> None:
        cases = {
            "upwards": ("src/core/x.h", '\n#include "exec/pool.h"\n', "src/core/x.h:2: layer core includes"),
            "sideways": ("src/state/s.cc", '#include "exec/pool.h"\n', "src/state/s.cc:1: layer state includes"),
            "libs are no layers": ("src/state/s.h", '#include "exec/pool.h"', "it may use only core"),
            "plain name": ("src/top/top.h", '#include "top.cc"\n', "is of no layer"),
            "unknown folder": ("src/top/top.h", '#include "net/http.h"\n', "is of no layer"),
            "torch": ("src/top/t.cc", "#include <torch/torch.h>\n", "knows nothing of torch"),
            "aten": ("src/top/t.cc", "#include <ATen/ATen.h>\n", "knows nothing of torch"),
            "python": ("src/top/t_test.cc", "#include <Python.h>\n", "knows nothing of torch or Python"),
            "third party in public": (
                "include/torchsnapshot/a.h",
                "#include <fmt/format.h>\n",
                "only the standard library may be",
            ),
            "system in public": (
                "include/torchsnapshot/a.h",
                "#include <unistd.h>\n",
                "only the standard library may be",
            ),
            "private in public": ("include/torchsnapshot/a.h", '#include "core/x.h"\n', "no public header"),
            "missing public": ("src/core/y.h", '#include "torchsnapshot/gone.h"\n', "does not exist"),
            "fmt in a header": ("src/core/y.h", "#include <fmt/format.h>\n", "for .cc files only"),
            "json in the product": ("src/core/y.cc", "#include <nlohmann/json.hpp>\n", "for tests only"),
            "gtest in the product": ("src/core/y.cc", "#include <gtest/gtest.h>\n", "for tests only"),
            "test header in the product": ("src/top/y.cc", '#include "exec/testing.h"\n', "for tests only"),
            "undeclared layer": ("src/net/http.h", "", "src/net: no layer of this name"),
            "command": ("cli/ls.cc", '#include "exec/pool.h"\n', "layer cli includes"),
            "torch in another public header": (
                "include/torchsnapshot/b.h",
                "#include <torch/types.h>\n",
                "only the standard library may be",
            ),
            "python in torch.h": (
                "include/torchsnapshot/torch.h",
                "#include <Python.h>\n",
                "only the standard library may be",
            ),
            "torch.h in a public header": (
                "include/torchsnapshot/b.h",
                '#include "torchsnapshot/torch.h"\n',
                "is for libtorch programs",
            ),
            "torch.h in the engine": ("src/top/t.cc", '#include "torchsnapshot/torch.h"\n', "for libtorch programs"),
            "torch in the bindings": (
                "python/bindings/m.cc",
                "#include <ATen/ATen.h>\n",
                "serves every version of torch",
            ),
            "a face in the engine": ("src/top/t.cc", '#include "libtorch/m.h"\n', "is of no layer"),
            "the other face": ("libtorch/m.cc", '#include "bindings/m.h"\n', "is of no layer"),
            "gtest in a face": ("libtorch/m.cc", "#include <gtest/gtest.h>\n", "for tests only"),
            "bindings": ("python/bindings/m.cc", '#include "nowhere/m.h"\n', "is of no layer"),
        }
        for name, (path, text, expected) in cases.items():
            with self.subTest(name):
                found = self.findings({path: text})
                self.assertEqual(len(found), 1, found)
                self.assertIn(expected, found[0])

    def test_undeclared_dependency_is_an_error(self) -> None:
        with self.assertRaisesRegex(ValueError, "layer a depends on b"):
            check_layers.read_layers("torchsnapshot_layer(a DEPS b)\ntorchsnapshot_layer(b)\n")

    def test_dependencies_are_transitive(self) -> None:
        self.assertEqual(check_layers.read_layers(CMAKE)["top"], {"core", "exec", "state", "top"})


if __name__ == "__main__":
    unittest.main()
