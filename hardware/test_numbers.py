"""Tests of what the parts compute with: tensors, comparisons, counters, tables."""

import contextlib
import io
import json
import math
import struct
import sys
import tempfile
import unittest
from array import array
from dataclasses import replace
from pathlib import Path
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import bench_tables
import binary
import counters
import cuda_libraries
import parity
import reference
import run
import training
from tensors import Tensor, max_difference, read, relative_l2


def write(path, tensors):
    """A safetensors file of `name -> (dtype, shape, bytes)`."""
    header, content = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(content), len(content) + len(data)]}
        content += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


class Tensors(unittest.TestCase):
    def test_every_dtype_is_read(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.safetensors"
            write(
                path,
                {
                    "f32": ("F32", [2, 1], struct.pack("<2f", 1.5, -2)),
                    # 1.5 and -2 in bf16: the upper halves of their f32.
                    "bf16": ("BF16", [2], struct.pack("<2H", 0x3FC0, 0xC000)),
                    "f16": ("F16", [2], struct.pack("<2e", 1.5, -2)),
                    "i64": ("I64", [2], struct.pack("<2q", 3, -4)),
                    "i32": ("I32", [2], struct.pack("<2i", 3, -4)),
                },
            )
            found = read(path)
        self.assertEqual(found["f32"].shape, [2, 1])
        for name, values in {"f32": [1.5, -2], "bf16": [1.5, -2], "f16": [1.5, -2], "i64": [3, -4], "i32": [3, -4]}.items():
            self.assertEqual(list(found[name].values), values, name)

    def test_differences_see_every_value(self):
        self.assertEqual(max_difference([1, 2, 3], [1, 2.5, 3]), 0.5)
        self.assertAlmostEqual(relative_l2([3, 4], [3, 3]), 1 / math.sqrt(18))
        for odd in (math.nan, math.inf, -math.inf):
            for at in range(3):
                values = [1.0, 2.0, 3.0]
                values[at] = odd
                self.assertEqual(max_difference(values, [1, 2, 3]), math.inf)
                self.assertEqual(relative_l2(values, [1, 2, 3]), math.inf)
        self.assertEqual(max_difference([1], [1, 2]), math.inf)


class Golden(unittest.TestCase):
    """The comparisons on the golden numbers themselves, and on these with one of them changed."""

    CASE = parity.CASES[1]  # with experts

    def setUp(self):
        self.expected = parity.expected_of(self.CASE)
        tensors = self.expected.tensors
        self.found = {name: tensor for name, tensor in tensors.items() if name.startswith("mid.")}
        self.found["input_ids"], self.found["logits"] = tensors["in.input_ids"], tensors["out.logits"]

    def change(self, name, by):
        tensor = self.found[name]
        values = array(tensor.values.typecode, tensor.values)
        values[len(values) // 2] += by
        self.found[name] = Tensor(tensor.shape, values)

    def failed(self):
        checks = [
            *parity.compare_ids(self.CASE, self.expected, self.found),
            parity.compare_logits(self.CASE, self.expected, self.found, True),
            *parity.compare_activations(self.CASE, self.expected, self.found),
        ]
        return [check.quantity for check in checks if not check.ok]

    def test_equal_numbers_pass(self):
        self.assertEqual(self.failed(), [])

    def test_each_changed_number_is_found(self):
        gate = next(name.rsplit(".", 1)[0] for name in self.found if name.endswith("gate.indices"))
        for name, by, quantity in (
            ("input_ids", 1, "input ids"),
            ("logits", 1e-3, "logits"),
            ("logits", math.nan, "logits"),
            ("mid.text.norm", 1e-2, "activations"),
            ("mid.vision.merger", math.nan, "activations"),
            (f"{gate}.indices", 100, "experts"),
            (f"{gate}.weights", 1e-3, "experts"),
        ):
            self.setUp()
            self.change(name, by)
            self.assertEqual(self.failed(), [quantity], name)

    def test_a_missing_activation_is_found(self):
        del self.found["mid.text.layers.1"]
        self.assertEqual(self.failed(), ["activations"])

    def test_a_padded_row_is_compared_without_its_padding(self):
        case = replace(parity.CASES[-1])
        expected = parity.expected_of(case)
        self.assertEqual(expected.rows, 3)
        self.assertLess(len(expected.ids()), len(expected.mask))
        self.assertEqual(len(expected.positions("out.logits")), len(expected.ids()) * 1200)


class Training(unittest.TestCase):
    STEPS = [{"loss": 3.0 - step / 10, "grad_norm": 2.0} for step in range(6)]

    def failed(self, key, value, dtype="f32"):
        changed = [dict(step) for step in self.STEPS]
        changed[-1][key] = value
        return [check["quantity"] for check in training.checks("x", dtype, changed, self.STEPS) if not check["ok"]]

    def test_a_changed_loss_or_norm_is_found(self):
        self.assertEqual(self.failed("loss", 2.5), [])
        self.assertEqual(self.failed("loss", 2.52), ["loss, 6 steps"])
        self.assertEqual(self.failed("loss", math.nan), ["loss, 6 steps", "the loss falls"])
        self.assertEqual(self.failed("loss", 3.5), ["loss, 6 steps", "the loss falls"])
        self.assertEqual(self.failed("grad_norm", 2.1), ["grad_norm, 6 steps"])
        self.assertEqual(self.failed("loss", 2.52, "bf16"), [])


class Tables(unittest.TestCase):
    def test_counters_are_summed_by_kernel(self):
        text = (
            "==PROF== Connected\n"
            '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
            '"0","matmul","gpu__time_duration.sum","ns","2,000"\n'
            '"0","matmul","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","40"\n'
            '"1","matmul","gpu__time_duration.sum","us","4"\n'
            '"1","matmul","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","60"\n'
            '"2","norm","gpu__time_duration.sum","us","1"\n'
        )
        rows = counters.by_kernel(counters.rows_of(io.StringIO(text)))
        self.assertEqual([row["kernel"] for row in rows], ["matmul", "norm"])
        self.assertEqual((rows[0]["launches"], rows[0]["total us"], rows[0]["memory %"]), (2, 6.0, 50.0))

    def test_launches_are_counted_in_the_log(self):
        lines = ["| 1.5µs      | matmul_entry", "compiled", "| 12ms       | norm", "| Name | Duration | Num Computed | Ratio |"]
        self.assertEqual([bool(counters.LAUNCH.match(line)) for line in lines], [True, False, True, False])

    def test_equal_workloads_are_set_beside_each_other(self):
        ours = [{"workloads": [self.entry("decode", 0.02, depth=128, depth_after=160), self.entry("decode", 0.03, depth=8192)]}]
        theirs = [self.entry("decode", 0.04, depth=128), self.entry("prefill", 1.0, depth=128), {"workload": "vision", "error": "x"}]
        self.assertEqual([row[-1] for row in bench_tables.beside(ours, theirs)], ["0.50"])

    @staticmethod
    def entry(workload, seconds, **shape):
        return {"workload": workload, "shape": {"batch_size": 1, **shape}, "seconds": {"median": seconds}}

    def test_images_have_the_tokens_that_the_processor_gives_them(self):
        self.assertEqual(reference.image_shape("448x448"), {"image_grid_thw": [1, 32, 32], "image_tokens": 256})
        # 1024 pixels are resized to 1036; 300x180 to 308x168.
        self.assertEqual(reference.image_shape("1024x1024"), {"image_grid_thw": [1, 74, 74], "image_tokens": 1369})
        self.assertEqual(reference.image_shape("300x180")["image_grid_thw"], [1, 12, 22])

    def test_values_are_one_document_or_one_a_line(self):
        self.assertEqual(run.values_of('{\n "a": 1\n}'), ([{"a": 1}], ""))
        self.assertEqual(run.values_of('{"a": 1}\n\n{"b": 2}\n'), ([{"a": 1}, {"b": 2}], ""))
        values, unreadable = run.values_of('{"a": 1}\nnoise\n{"b"')
        self.assertEqual(values, [{"a": 1}])
        self.assertIn("noise", unreadable)


class Libraries(unittest.TestCase):
    def test_headers_and_compiler_are_found_in_a_wheel(self):
        with tempfile.TemporaryDirectory(prefix="site packages ") as folder:
            home = Path(folder) / "nvidia/cu13"
            (home / "include").mkdir(parents=True)
            (home / "lib").mkdir()
            (home / "include/cuda_fp16.h").touch()
            (home / "lib/libnvrtc.so.13").touch()
            with mock.patch.object(cuda_libraries, "TOOLKITS", ()), mock.patch.object(sys, "path", [folder]), mock.patch(
                "site.getsitepackages", lambda: []
            ), mock.patch("glob.glob", lambda pattern: [str(home)] if "nvidia" in pattern else []), mock.patch.object(
                cuda_libraries, "loads", lambda name: False
            ):
                added = cuda_libraries.additions({"PATH": "", "LD_LIBRARY_PATH": "/before"})
        self.assertEqual(added, {"CUDA_PATH": str(home), "LD_LIBRARY_PATH": f"{home / 'lib'}:/before"})

    def test_without_lzma_the_program_xz_unpacks(self):
        with tempfile.TemporaryDirectory() as folder:
            source, packed = Path(folder) / "source", Path(folder) / "packed.xz"
            source.write_bytes(b"program" * 1000)
            import pack

            pack.compress(source, packed, 1)
            with mock.patch.dict(sys.modules, {"lzma": None}), contextlib.ExitStack() as stack:
                if binary.shutil.which("xz") is None:
                    self.skipTest("no program xz")
                out = stack.enter_context(open(Path(folder) / "out", "wb"))
                binary.unpack(packed, out)
            self.assertEqual((Path(folder) / "out").read_bytes(), source.read_bytes())


if __name__ == "__main__":
    unittest.main()
