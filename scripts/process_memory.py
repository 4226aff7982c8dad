#!/usr/bin/env python3
"""Peak memory of a model as the system sees it: an independent check of what dmopt counts.

A process of its own loads MODEL in ONNX Runtime's Python package with the settings of `--session tuned` (one thread,
arena and memory pattern off, optimization level BASIC), runs it, sets the system's record of its largest resident
memory back (/proc/self/clear_refs), runs it again, and reads the record (VmHWM in /proc/self/status). The growth over
what was resident before that run is what the run took. Blocks from 64 KiB on come from the system one by one
(MALLOC_MMAP_THRESHOLD_), so that what is freed is gone.

Prints one line: bytes, and the model. Given several models, the ratio of the last to the first too. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import numpy as np
import onnxruntime as ort

TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


def resident(record: str) -> int:
    """A record of /proc/self/status, in bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(record + ":"):
                return int(line.split()[1]) * 1024
    raise SystemExit(f"no {record} in /proc/self/status")


def measure(model: str, batch: int, runs: int) -> int:
    """Growth of the process while the model runs; the largest of some runs."""
    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = {}
    for port in session.get_inputs():
        shape = [size if isinstance(size, int) else batch for size in port.shape]
        if port.type not in TYPES:
            raise SystemExit(f"{model}: input {port.name} has type {port.type}; only floats are generated")
        inputs[port.name] = rng.standard_normal(shape).astype(TYPES[port.type])
    # What the first run sets up for good is not what a run takes.
    session.run(None, inputs)
    peaks = []
    for _ in range(runs):
        with open("/proc/self/clear_refs", "w", encoding="ascii") as record:
            record.write("5")
        before = resident("VmRSS")
        outputs = session.run(None, inputs)
        peaks.append(resident("VmHWM") - before)
        del outputs
    return max(peaks)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--batch", type=int, default=1, help="size of every open dimension")
    parser.add_argument("--runs", type=int, default=3, help="runs that are measured")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(measure(arguments.models[0], arguments.batch, arguments.runs))
        return 0
    # The allocator reads its settings when a process begins.
    environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="0", MALLOC_ARENA_MAX="1")
    found = []
    for model in arguments.models:
        command = [sys.executable, __file__, "--inside", model]
        command += ["--batch", str(arguments.batch), "--runs", str(arguments.runs)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            return done.returncode
        found.append(int(done.stdout))
        print(f"{found[-1]:>14,} bytes  {model}")
    if len(found) > 1:
        print(f"{found[-1] / found[0]:>14.4f} ratio of the last to the first")
    return 0


if __name__ == "__main__":
    sys.exit(main())
