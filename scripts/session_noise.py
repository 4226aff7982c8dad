#!/usr/bin/env python3
"""Print how far the outputs of one model are apart in two sessions of ONNX Runtime: all optimizations, and none.

    session_noise.py MODEL [--seeds N]

The measure is that of `dmopt validate`: the largest |a - b| / max(|a|, |b|, floor) over all elements, the floor being
the root of the mean square of the output. What two files that compute the same may differ by is not less than this.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnxruntime as ort

LEVELS = [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]


def session(model: str, level: ort.GraphOptimizationLevel) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    floor = np.sqrt(np.mean(a * a))
    return float(np.max(np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), floor)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    sessions = [session(arguments.model, level) for level in LEVELS]
    worst = 0.0
    for seed in range(arguments.seeds):
        random = np.random.default_rng(seed)
        feeds = {i.name: random.standard_normal(i.shape, np.float32) for i in sessions[0].get_inputs()}
        outputs = [s.run(None, feeds) for s in sessions]
        worst = max([worst, *(distance(a, b) for a, b in zip(*outputs))])
    print(worst)


if __name__ == "__main__":
    main()
