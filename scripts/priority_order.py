"""Runs models in priority-based order and compares what is in memory after each operator with a prediction.

    python scripts/priority_order.py FOLDER

FOLDER has models and a file expected.json: for each model the names of its operators in the predicted order, with the
bytes in memory while each runs. The session has optimizations off, one thread and no memory patterns; the order can be
set from Python alone. Exit code 1 and a line for each model that differs.
"""
import json
import os
import sys
import tempfile

import numpy as np
import onnxruntime as ort

BATCH = 3
TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}


def measured(path, folder):
    """Names of operators in the order of execution, and the bytes that were asked for and not freed after each."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    options.enable_profiling = True
    options.profile_file_prefix = os.path.join(folder, "profile")
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    sizes = lambda port: [n if isinstance(n, int) else BATCH for n in port.shape]
    session.run(None, {port.name: np.ones(sizes(port), TYPES[port.type]) for port in session.get_inputs()})
    profile = session.end_profiling()
    with open(profile) as file:
        events = json.load(file)
    os.remove(profile)
    suffix = "_kernel_time"
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(suffix)]
    # Operators of bodies have no names.
    named = [(e["name"].removesuffix(suffix), e["args"]) for e in kernels]
    return [(name, int(args["mem_bytes_requested_in_use"])) for name, args in named if name.startswith("main")]


def main(folder):
    with open(os.path.join(folder, "expected.json")) as file:
        expected = json.load(file)
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        for model, steps in expected.items():
            found = measured(os.path.join(folder, model), temporary)
            # What a session keeps between runs is there all the time.
            kept = found[0][1] - steps[0][1] if found and steps else 0
            if found != [(name, live + kept) for name, live in steps]:
                wrong += 1
                print(f"{model}: predicted {steps}, measured {found}")
    print(f"{len(expected) - wrong} of {len(expected)} models are as predicted in priority-based order")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
