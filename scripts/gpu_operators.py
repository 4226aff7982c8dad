#!/usr/bin/env python3
"""Measure one operator at a time: does it compute in its operand's buffer, and what does it need beside?

    gpu_operators.py [--dmopt PATH] [--ort-lib PATH] [--ep cuda|cpu] [--only NAME,...] [--output FILE]

Each model is `a = Sigmoid(x)`, then `b = OPERATOR(a, ...)`, then one slice of `b`, so the peak is one tensor where the
operator computes in place, two where it does not, and more where its kernel takes memory of its own. Prints a table in
Markdown: the predicted peak (`dmopt memory`), the measured one (`dmopt validate --session tuned`), what the second is
above the first, in bytes and in tensors of the size of `a`, and how many nodes did not run on the device
(docs/gpu.md). Needs numpy and onnx.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

N, C, H, W = 64, 64, 32, 32
SHAPE = [N, C, H, W]
TENSOR = 4 * N * C * H * W
MICROSOFT = "com.microsoft"


def weights(*shape: int) -> np.ndarray:
    """Small positive numbers, none of them zero."""
    return (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 7 / 10 + 0.1) / 10


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


class Case:
    """One operator behind `a`: its further operands, attributes, and the shape and type of its result."""

    def __init__(self, op: str, *operands: np.ndarray | str | None, name: str | None = None, domain: str = "",
                 shape: list[int] | None = None, dtype: int = TensorProto.FLOAT, opset: int = 20, **attributes):
        self.op, self.operands, self.name, self.domain = op, operands, name or op, domain
        self.shape, self.dtype, self.opset, self.attributes = shape or SHAPE, dtype, opset, attributes

    def model(self) -> onnx.ModelProto:
        nodes = [helper.make_node("Sigmoid", ["x"], ["a"])]
        names, initializers = ["a"], [numpy_helper.from_array(ints(0), "first")]
        for number, operand in enumerate(self.operands):
            name = "" if operand is None else f"operand{number}"
            if isinstance(operand, str):
                nodes.append(helper.make_node(operand, ["x"], [name]))
            elif operand is not None:
                initializers.append(numpy_helper.from_array(np.asarray(operand), name))
            names.append(name)
        results = ["b"] + ["indices"] * (self.op == "TopK")
        nodes.append(helper.make_node(self.op, names, results, domain=self.domain, **self.attributes))
        nodes.append(helper.make_node("Gather", ["b", "first"], ["y"], axis=0))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)
        y = helper.make_tensor_value_info("y", self.dtype, [1, *self.shape[1:]])
        graph = helper.make_graph(nodes, self.name, [x], [y], initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def convolution(name: str, kernel: int, groups: int = 1, dilation: int = 1, bias: bool = True) -> Case:
    operands = [weights(C, C // groups, kernel, kernel)] + ([weights(C)] if bias else [])
    pads = [kernel // 2 * dilation] * 4
    return Case("Conv", *operands, name=name, pads=pads, group=groups, dilations=[dilation] * 2)


def reduction(op: str, *axes: int) -> Case:
    shape = [1 if axis in axes else size for axis, size in enumerate(SHAPE)]
    return Case(op, ints(*axes), name=f"{op} of axes {', '.join(map(str, axes))}", shape=shape, keepdims=1)


def cases() -> list[Case]:
    channel = weights(C, 1, 1)
    found = [Case(op) for op in (
        "Abs Ceil Cos Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Log LogSoftmax Mish Neg Reciprocal Relu "
        "Selu Shrink Sigmoid Sign Softmax Softplus Softsign Sqrt Tanh ThresholdedRelu Trilu Celu"
    ).split()]
    found += [Case(op, domain=MICROSOFT) for op in ("FastGelu", "QuickGelu")]
    found += [Case(op, channel, name=f"{op} with a constant") for op in "Add Div Max Min Mul PRelu Pow Sub Sum".split()]
    found += [Case(op, "Tanh", name=f"{op} of two") for op in "Add Max Mul Sub Sum Mean".split()]
    found += [reduction(op, *axes) for op in ("ReduceMean", "ReduceMax")
              for axes in ([0], [1], [2], [3], [2, 3], [1, 2, 3], [0, 1], [0, 2, 3])]
    found += [reduction(op, *axes) for op in ("ReduceSum", "ReduceL2", "ReduceLogSumExp", "ReduceProd")
              for axes in ([1], [2, 3])]
    found += [Case("ReduceSumSquare", ints(1), name="ReduceSumSquare of axes 1", shape=[N, 1, H, W], keepdims=1)]
    return found + [
        Case("ArgMax", name="ArgMax of axis 1", shape=[N, 1, H, W], dtype=TensorProto.INT64, axis=1),
        Case("ArgMax", name="ArgMax of axis 3", shape=[N, C, H, 1], dtype=TensorProto.INT64, axis=3),
        Case("AveragePool", kernel_shape=[3, 3], pads=[1] * 4),
        Case("BatchNormalization", weights(C), weights(C), weights(C), weights(C)),
        Case("BiasGelu", weights(W), domain=MICROSOFT),
        Case("Cast", name="Cast to int32", dtype=TensorProto.INT32, to=TensorProto.INT32),
        Case("Cast", name="Cast to float16", dtype=TensorProto.FLOAT16, to=TensorProto.FLOAT16),
        Case("Clip", np.float32(0.1), np.float32(0.6)),
        Case("Concat", "Tanh", name="Concat of two", shape=[N, 2 * C, H, W], axis=1),
        convolution("Conv 1x1", 1),
        convolution("Conv 3x3", 3),
        convolution("Conv 3x3, no bias", 3, bias=False),
        convolution("Conv 3x3, dilated", 3, dilation=2),
        convolution("Conv 3x3, 4 groups", 3, groups=4),
        convolution("Conv 3x3, depthwise", 3, groups=C),
        convolution("Conv 7x7", 7),
        Case("ConvTranspose", weights(C, C, 2, 2), weights(C), shape=[N, C, 2 * H, 2 * W], strides=[2, 2]),
        Case("CumSum", np.int64(2)),
        Case("DepthToSpace", shape=[N, C // 4, 2 * H, 2 * W], blocksize=2),
        Case("Einsum", weights(C), equation="nchw,c->nchw"),
        Case("Flatten", shape=[N, C * H * W]),
        Case("FusedConv", weights(C, C, 3, 3), weights(C), domain=MICROSOFT, pads=[1] * 4, activation="Relu"),
        Case("FusedConv", weights(C, C, 3, 3), weights(C), "Tanh", name="FusedConv with Z", domain=MICROSOFT,
             pads=[1] * 4, activation="Relu"),
        Case("Gather", ints(*reversed(range(C))), axis=1),
        Case("GlobalAveragePool", shape=[N, C, 1, 1]),
        Case("GroupNormalization", weights(C), weights(C), opset=21, num_groups=8),
        Case("InstanceNormalization", weights(C), weights(C)),
        Case("LRN", size=5),
        Case("LayerNormalization", weights(W), weights(W)),
        Case("MatMul", weights(W, W)),
        Case("Max", "Tanh", "Elu", name="Max of three"),
        Case("MaxPool", kernel_shape=[3, 3], pads=[1] * 4),
        Case("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1), shape=[N, C, H + 2, W + 2]),
        Case("Reshape", ints(N, -1), shape=[N, C * H * W]),
        Case("Resize", None, np.array([1, 1, 2, 2], np.float32), name="Resize, linear", shape=[N, C, 2 * H, 2 * W],
             mode="linear"),
        Case("Resize", None, np.array([1, 1, 2, 2], np.float32), name="Resize, nearest", shape=[N, C, 2 * H, 2 * W],
             mode="nearest"),
        Case("ScatterElements", np.zeros((1, C, H, W), np.int64), weights(1, C, H, W), axis=0),
        Case("ScatterND", ints(1).reshape(1, 1), weights(1, C, H, W)),
        Case("Slice", ints(0), ints(W - 1), ints(3), shape=[N, C, H, W - 1]),
        Case("LogSoftmax", name="LogSoftmax of axis 1", axis=1),
        Case("Softmax", name="Softmax of axis 1", axis=1),
        Case("Sum", "Tanh", "Elu", name="Sum of three"),
        Case("Sum", "Tanh", "Elu", "Selu", "Softsign", name="Sum of five"),
        Case("TopK", ints(4), shape=[N, C, H, 4]),
        Case("Transpose", shape=[N, H, W, C], perm=[0, 2, 3, 1]),
    ]


class Tool:
    """dmopt, and how it is called."""

    def __init__(self, arguments: argparse.Namespace):
        self.dmopt, self.ep = arguments.dmopt, arguments.ep
        self.library = ["--ort-lib", arguments.ort_lib] if arguments.ort_lib else []

    def json(self, *arguments: str) -> dict:
        done = subprocess.run([self.dmopt, *arguments, "--json"], capture_output=True, text=True, check=False)
        if not done.stdout.strip():
            raise RuntimeError(done.stderr.strip().splitlines()[0] if done.stderr.strip() else "no output")
        return json.loads(done.stdout)

    def measure(self, case: Case, folder: Path) -> list[str]:
        """A row of the table."""
        path = str(folder / f"{case.name}.onnx")
        onnx.save(case.model(), path)
        try:
            found = self.json("validate", path, path, "--runtime", "ort", "--ep", self.ep, "--session", "tuned",
                              "--runs", "0", "--seeds", "1", "--outputs-only", *self.library)
            if found["memory"] is None:
                raise RuntimeError(found["memory_reason"])
            version = found["runtime"]["name"].split()[-1].rsplit(".", 1)[0]
            target = "ort-cuda" if self.ep.startswith("cuda") else "ort-cpu"
            predicted = self.json("memory", path, "--session", "tuned", "--target", target, "--ort-version", version)
        except RuntimeError as failure:
            return [case.name, "", "", str(failure), "", ""]
        predicted, measured = predicted["peak_bytes"], found["memory"]["candidate"]["peak_bytes"]
        elsewhere = str(len(found["elsewhere"]["candidate"]))
        above = measured - predicted
        tensors = f"{above / TENSOR:.3f}" if above else ""
        return [case.name, str(predicted), str(measured), str(above), tensors, elsewhere]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dmopt", default="target/release/dmopt")
    parser.add_argument("--ort-lib")
    parser.add_argument("--ep", default="cuda")
    parser.add_argument("--only", help="only operators of these names, separated by commas")
    parser.add_argument("--jobs", type=int, default=8, help="models that are measured at a time")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    only = arguments.only.split(",") if arguments.only else None
    chosen = [case for case in cases() if only is None or case.op in only]
    if not chosen:
        parser.error(f"no operator is called {arguments.only}")
    tool = Tool(arguments)
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(lambda case: tool.measure(case, Path(folder)), chosen))
    rows.sort(key=lambda row: row[0])
    head = ["operator", "predicted bytes", "measured bytes", "above", "in tensors", "nodes elsewhere"]
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---", *["---:"] * 5], *rows]]
    table = "\n".join(lines) + "\n"
    if arguments.output:
        arguments.output.write_text(table, encoding="utf-8")
    else:
        print(table, end="")
    return sum(row[1] == "" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
