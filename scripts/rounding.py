#!/usr/bin/env python3
"""Print, as JSON, how far rounding alone moves the outputs of one model, and how often its decisions change.

    rounding.py MODEL [--seeds N] [--exact N] [--results FILE...]

    between_sessions   ONNX Runtime with all optimizations against ONNX Runtime with none, of N inputs the largest
    from_double        the nearer of those two to the same computation in double precision by the reference evaluator of
                       onnx, of N inputs (it is slow) the largest; null for --exact 0
    decisions          how often the largest of the classes (axis 1) was looked for: for each sample, and each pixel if
                       outputs have any, of N inputs
    changed            how often it is another class with all optimizations than with none; then, for each of the results,
                       how often it is another one than in the model, with all optimizations

The measure is that of `dmopt validate`: the largest |a - b| / max(|a|, |b|, floor) over all elements, the floor being
the root of the mean square of the output. Two files that compute the same may differ by as much as the first; a file
that computed without any rounding at all would differ from the model by no less than the second.
"""

from __future__ import annotations

import argparse
import json
from typing import Iterator

import numpy as np
import onnx
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

LEVELS = [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]


def session(model: str, level: ort.GraphOptimizationLevel) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor that the graph holds."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t


def doubled(model: ModelProto) -> ReferenceEvaluator:
    """The model in double precision, for graphs without bodies."""
    for tensor in tensors(model.graph):
        if tensor.data_type == TensorProto.FLOAT:
            wide = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    del model.graph.value_info[:]
    return ReferenceEvaluator(model)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    floor = np.sqrt(np.mean(a * a))
    return float(np.max(np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), floor)))


def farthest(some: list[np.ndarray], others: list[np.ndarray]) -> float:
    return max(distance(a, b) for a, b in zip(some, others))


def changed(some: list[np.ndarray], others: list[np.ndarray]) -> int:
    return sum(int(np.sum(np.argmax(a, axis=1) != np.argmax(b, axis=1))) for a, b in zip(some, others))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--exact", type=int, default=0)
    parser.add_argument("--results", nargs="*", default=[])
    arguments = parser.parse_args()
    sessions = [session(arguments.model, level) for level in LEVELS]
    results = [session(file, LEVELS[-1]) for file in arguments.results]
    exact = doubled(onnx.load(arguments.model)) if arguments.exact else None
    between, off, decisions, differ = [0.0], [], 0, np.zeros(1 + len(results), int)
    for seed in range(max(arguments.seeds, arguments.exact)):
        random = np.random.default_rng(seed)
        feeds = {i.name: random.standard_normal(i.shape, np.float32) for i in sessions[0].get_inputs()}
        plain, optimized = [s.run(None, feeds) for s in sessions]
        between.append(farthest(plain, optimized))
        decisions += sum(output.size // output.shape[1] for output in plain)
        differ += [changed(optimized, plain), *(changed(optimized, s.run(None, feeds)) for s in results)]
        if exact and seed < arguments.exact:
            truth = exact.run(None, {name: feed.astype(np.float64) for name, feed in feeds.items()})
            off.append(min(farthest(truth, plain), farthest(truth, optimized)))
    found = {"between_sessions": max(between), "from_double": max(off, default=None)}
    print(json.dumps(found | {"decisions": decisions, "changed": differ.tolist()}))


if __name__ == "__main__":
    main()
