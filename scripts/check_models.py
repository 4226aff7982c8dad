#!/usr/bin/env python3
"""Judge optimized ONNX models against their originals, with ONNX Runtime on the CPU.

For every pair: the full ONNX checker on the optimized file, the same graph inputs and outputs, and
equal outputs on seeded random inputs, with ONNX Runtime's optimizations off and at their default.
Symbolic dimensions are run at several sizes. One line per pair; exit status 1 if any pair fails.

The difference of an output is compared element by element:

    abs = |a - b|        rel = |a - b| / max(|b|, scale)        scale = mean of |b| over the output

where b is the original's value, so elements that happen to be near 0 are judged by the size of the
output that they belong to. A pair fails when any rel exceeds the tolerance, or where NaN and
infinity do not agree. Outputs that are not floating point must be equal.

    check_models.py original.onnx optimized.onnx
    check_models.py --pairs pairs.txt        # two paths a line, separated by a tab
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import numpy as np
import onnx
import onnxruntime

# Relative tolerance by the narrowest floating-point type of the graph inputs, outputs and weights.
F16_RTOL = 2e-2
BF16_RTOL = 1e-1

NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


class Mismatch(Exception):
    """Why a pair fails."""


@dataclass
class Worst:
    """The largest differences seen so far, and where the largest relative one was."""

    abs: float = 0.0
    rel: float = 0.0
    where: str = ""

    def update(self, abs_: float, rel: float, where: str) -> None:
        self.abs = max(self.abs, abs_)
        if rel > self.rel:
            self.rel, self.where = rel, where


def session(path: Path, optimized: bool, threads: int) -> onnxruntime.InferenceSession:
    """A CPU session with ONNX Runtime's own optimizations at their default, or off."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def signature(values: list[onnxruntime.NodeArg]) -> list[tuple[str, str, list]]:
    """Name, type and shape of each value; unnamed dimensions are all alike."""
    return [(v.name, v.type, list(v.shape or [])) for v in values]


def boundary(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Names of the graph inputs (initializers left out) and of the graph outputs, in order."""
    weights = {t.name for t in model.graph.initializer}
    inputs = [v.name for v in model.graph.input if v.name not in weights]
    return inputs, [v.name for v in model.graph.output]


def symbolic_dims(inputs: list[onnxruntime.NodeArg]) -> set[str]:
    """Every dimension without a size; an unnamed one is called after its input and position."""
    return {
        dim if isinstance(dim, str) else f"{value.name}:{axis}"
        for value in inputs
        for axis, dim in enumerate(value.shape)
        if not isinstance(dim, int)
    }


def random_input(
    rng: np.random.Generator, value: onnxruntime.NodeArg, sizes: dict[str, int]
) -> np.ndarray:
    """A random tensor of the type and shape of a graph input.

    Floating point: normal. Integers: 0 or 1, valid as an index wherever the axis has two entries.
    """
    if value.type not in NUMPY_TYPES:
        raise Mismatch(f"input {value.name} has type {value.type}: cannot make random values")
    dtype = NUMPY_TYPES[value.type]
    shape = [
        dim if isinstance(dim, int) else sizes[dim if isinstance(dim, str) else f"{value.name}:{i}"]
        for i, dim in enumerate(value.shape)
    ]
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def default_rtol(model: onnx.ModelProto, rtol: float) -> float:
    """`rtol`, or what the narrowest floating-point type in the model allows if that is more."""
    types = {t.data_type for t in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        types.add(value.type.tensor_type.elem_type)
    for node in model.graph.node:
        if node.op_type == "Cast":
            types.update(a.i for a in node.attribute if a.name == "to")
    if onnx.TensorProto.BFLOAT16 in types:
        return max(rtol, BF16_RTOL)
    return max(rtol, F16_RTOL) if onnx.TensorProto.FLOAT16 in types else rtol


def difference(name: str, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Largest absolute and relative difference of output `name`: optimized `a`, original `b`."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise Mismatch(f"output {name}: {a.dtype}{a.shape}, original {b.dtype}{b.shape}")
    if not np.issubdtype(b.dtype, np.floating):
        if not np.array_equal(a, b):
            raise Mismatch(f"output {name}: {int((a != b).sum())} elements of {b.size} differ")
        return 0.0, 0.0
    finite = np.isfinite(b)
    same = np.array_equal(a[~finite], b[~finite], equal_nan=True)
    if not same or not np.isfinite(a[finite]).all():
        raise Mismatch(f"output {name}: NaN or infinity at other places than in the original")
    if not finite.any():
        return 0.0, 0.0
    a64, b64 = a[finite].astype(np.float64), b[finite].astype(np.float64)
    delta, size = np.abs(a64 - b64), np.abs(b64)
    floor = max(float(size.mean()), float(np.finfo(b.dtype).tiny))
    return float(delta.max()), float((delta / np.maximum(size, floor)).max())


def runs(arguments: argparse.Namespace, dims: set[str]) -> Iterator[tuple[int, dict[str, int]]]:
    """The (seed, size of each symbolic dimension) to run."""
    fixed = dict(arguments.dim)
    free = sorted(dims - fixed.keys())
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for size in arguments.sizes if free else [0]:
            yield seed, {**{d: size for d in free}, **fixed}


def check_pair(original: Path, optimized: Path, arguments: argparse.Namespace) -> str:
    """Checks one pair; returns what to say about it, or raises `Mismatch`."""
    before = onnx.load(original, load_external_data=False)
    after = onnx.load(optimized, load_external_data=False)
    try:
        onnx.checker.check_model(str(optimized), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Mismatch(f"checker: {first_line(error)}") from error
    if boundary(before) != boundary(after):
        raise Mismatch(f"graph inputs or outputs: {boundary(after)}, original {boundary(before)}")
    rtol = arguments.rtol if arguments.exact_rtol else default_rtol(before, arguments.rtol)
    reference = session(original, False, arguments.threads)
    judged = {"off": session(optimized, False, arguments.threads)}
    judged["default"] = session(optimized, True, arguments.threads)
    if signature(reference.get_inputs()) != signature(judged["off"].get_inputs()):
        raise Mismatch("types or shapes of the graph inputs are not the original's")
    worst, count = Worst(), 0
    for seed, sizes in runs(arguments, symbolic_dims(reference.get_inputs())):
        rng = np.random.default_rng(seed)
        feed = {v.name: random_input(rng, v, sizes) for v in reference.get_inputs()}
        expected = reference.run(None, feed)
        for level, candidate in judged.items():
            got = candidate.run(None, feed)
            for value, a, b in zip(reference.get_outputs(), got, expected, strict=True):
                where = f"output {value.name}, seed {seed}, {sizes or 'fixed sizes'}, {level}"
                worst.update(*difference(value.name, a, b), where)
            count += 1
    summary = f"max abs {worst.abs:.3e}, max rel {worst.rel:.3e} (limit {rtol:.0e}), {count} runs"
    if worst.rel > rtol:
        raise Mismatch(f"{summary}; worst: {worst.where}")
    return f"{summary}, nodes {len(before.graph.node)} -> {len(after.graph.node)}"


def first_line(error: Exception) -> str:
    """The first line of a message that may have many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def read_pairs(path: Path) -> list[tuple[Path, Path]]:
    """Pairs listed one a line: original and optimized, separated by a tab (or by one space)."""
    pairs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split("\t") if "\t" in line else line.split()
        if len(parts) != 2:
            raise SystemExit(f"{path}:{number}: expected two paths, found {len(parts)}")
        pairs.append((Path(parts[0]), Path(parts[1])))
    return pairs


def parse_dim(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name or not size.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=N")
    return name, int(size)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("original", type=Path, nargs="?")
    add("optimized", type=Path, nargs="?")
    add("--pairs", type=Path, metavar="FILE", help="pairs of paths, one pair a line")
    add("--seeds", type=int, default=3, metavar="N", help="how many seeds (default %(default)s)")
    add("--seed", type=int, default=0, help="the first seed (default %(default)s)")
    add("--rtol", type=float, default=1e-5, help="limit on rel (default %(default)s)")
    add("--exact-rtol", action="store_true", help="do not widen the limit for f16 and bf16 models")
    add("--sizes", type=int, nargs="+", default=[1, 2, 5], help="sizes for symbolic dimensions")
    add("--dim", type=parse_dim, action="append", default=[], metavar="NAME=N", help="fix one")
    add("--threads", type=int, default=1, help="ONNX Runtime threads (default %(default)s)")
    arguments = parser.parse_args()
    pairs = read_pairs(arguments.pairs) if arguments.pairs else []
    if arguments.original and arguments.optimized:
        pairs.append((arguments.original, arguments.optimized))
    if not pairs or bool(arguments.original) != bool(arguments.optimized):
        parser.error("give ORIGINAL and OPTIMIZED, or --pairs FILE")
    onnxruntime.set_default_logger_severity(3)
    failed = 0
    for original, optimized in pairs:
        try:
            verdict = check_pair(original, optimized, arguments)
            print(f"ok   {optimized.name}: {verdict}", flush=True)
        except Mismatch as error:
            failed += 1
            print(f"FAIL {optimized.name}: {error}", flush=True)
        except Exception as error:  # one bad file must not hide the verdict on the others
            failed += 1
            print(f"FAIL {optimized.name}: {type(error).__name__}: {first_line(error)}", flush=True)
    if len(pairs) > 1:
        print(f"{len(pairs) - failed} of {len(pairs)} pairs passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
