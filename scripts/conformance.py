#!/usr/bin/env python3
"""Run every model of the ONNX backend tests through optimizers, and judge what comes out.

Each model is tried in three variants: `plain`; `weights`, with all inputs but the first turned into
initializers; `baked`, with all of them turned, so that everything can be folded. (Only inputs that are
tensors can be turned.) Each optimizer runs in a process of its own per
model, so that a crash is a result like any other. `dmopt` is `dmopt optimize MODEL RESULT`, which
runs original and result in the runtimes that it has before the result is put in place; `dmopt TARGET`
is the same with `--target`, with `--no-validate` and with `--verify`, which leaves it to this script to
find what is wrong. A verdict is the first of these that applies:

    crash     the process died of a signal or a panic, or took more than the limit of time
    refused   an error instead of a model
    rejected  dmopt itself says that outputs differ
    input     an output, or an input without a default, is gone, renamed or elsewhere
    invalid   the full checker of onnx objects, and did not object to the original
    broken    ONNX Runtime (else the reference evaluator) runs the original and not the result
    changed   an output is neither what the suite expects nor what the original gives
    unjudged  neither runtime runs the original
    ok

Usage: conformance.py MODELS --dmopt PATH [--peers] [--keep] [--sample N] [--markdown FILE --command TEXT]
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import pickle
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, NamedTuple

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

LIMIT_SECONDS = 60
# Of the command that runs original and result as well, several times in two runtimes.
VALIDATING_SECONDS = 300
VARIANTS = ("plain", "weights", "baked")
VERDICTS = ("ok", "unjudged", "crash", "refused", "rejected", "input", "invalid", "broken", "changed")
FAILURES = VERDICTS[2:]
PEERS = {
    "onnxsim": "onnxsim",
    "OnnxSlim": "onnxslim",
    "onnxoptimizer": "onnxoptimizer",
    "onnxscript": "onnxscript",
}


class Case(NamedTuple):
    """A model of the suite in a variant."""

    name: str
    variant: str
    rtol: float
    atol: float


class Failed(Exception):
    """A verdict other than ok."""

    def __init__(self, verdict: str, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict


def isolated(work: Callable[[], Any]) -> Any:
    """What `work` gives in a forked child; `Failed` if that raises, dies or takes too long."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        silence()
        try:
            result = ("done", work())
        except Failed as failed:
            result = (failed.verdict, str(failed))
        except BaseException as error:  # whatever a library raises is its verdict
            result = ("refused", "".join(traceback.format_exception_only(error)))
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(writer)
    data, end = b"", time.monotonic() + LIMIT_SECONDS
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            break
        piece = os.read(reader, 1 << 16)
        if not piece:
            break
        data += piece
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if not data:
        slow = time.monotonic() >= end
        raise Failed("crash", f"more than {LIMIT_SECONDS} s" if slow else f"wait status {status}")
    verdict, value = pickle.loads(data)
    if verdict != "done":
        raise Failed(verdict, value)
    return value


def silence() -> None:
    """Peers print."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def load_value(path: Path, info: onnx.ValueInfoProto) -> Any:
    """A value of the suite's data, as numpy and Python have it."""
    kind = info.type.WhichOneof("value")
    raw = path.read_bytes()
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(raw))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(raw))
    if kind == "map_type":
        return numpy_helper.to_dict(onnx.MapProto.FromString(raw))
    return numpy_helper.to_array(onnx.TensorProto.FromString(raw))


def data_sets(folder: Path, model: onnx.ModelProto) -> list[tuple[list[Any], list[Any]]]:
    """Inputs and expected outputs of each data set."""
    weights = {tensor.name for tensor in model.graph.initializer}
    infos = list(model.graph.input)
    sets = []
    for data in sorted(folder.glob("test_data_set_*")):
        count = len(list(data.glob("input_*.pb")))
        named = infos if count == len(infos) else [v for v in infos if v.name not in weights]
        feed = [(v.name, load_value(data / f"input_{i}.pb", v)) for i, v in enumerate(named[:count])]
        expected = [
            load_value(data / f"output_{i}.pb", v)
            for i, v in enumerate(model.graph.output)
            if (data / f"output_{i}.pb").is_file()
        ]
        sets.append((feed, expected))
    return sets


def bake(model: onnx.ModelProto, folder: Path, keep_first: bool) -> set[str]:
    """Turns inputs into initializers with the values of the first data set; returns their names."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    baked = set()
    free = [v for v in graph.input if v.name not in weights]
    for i, value in enumerate(free):
        path = folder / "test_data_set_0" / f"input_{i}.pb"
        if keep_first and i == 0 or not path.is_file():
            continue
        if value.type.WhichOneof("value") == "tensor_type":
            tensor = onnx.TensorProto.FromString(path.read_bytes())
            tensor.name = value.name
            graph.initializer.append(tensor)
            baked.add(value.name)
    kept = [v for v in graph.input if v.name not in baked]
    del graph.input[:]
    graph.input.extend(kept)
    model.ir_version = max(model.ir_version, 4)  # before, every initializer is an input too
    return baked


def write_variants(models: Path, work: Path, rows: list[list[str]]) -> list[Case]:
    """Writes the variants of every model below `work`; one that changes nothing is left out."""
    cases = []
    for _, name, rtol, atol in rows:
        folder = models / name
        for variant in VARIANTS:
            path = work / variant / f"{name}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            if variant == "plain":
                shutil.copyfile(folder / "model.onnx", path)
            else:
                model = onnx.load(folder / "model.onnx")
                if not bake(model, folder, keep_first=variant == "weights"):
                    continue
                path.write_bytes(model.SerializeToString())
            cases.append(Case(name, variant, float(rtol), max(float(atol), 1e-5)))
    return cases


def run_ort(model: bytes, feeds: list[dict[str, Any]]) -> list[list[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


def run_reference(model: bytes, feeds: list[dict[str, Any]]) -> list[list[Any]]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.ModelProto.FromString(model))
    return [evaluator.run(None, feed) for feed in feeds]


def spacing(dtype: np.dtype) -> float:
    """How far apart neighbours in a type are: in a narrow one, further than the suite's tolerance."""
    try:
        return float(ml_dtypes.finfo(dtype).eps)
    except (TypeError, ValueError):  # not a floating-point type
        return 0.0


def differs(a: Any, b: Any, case: Case) -> str | None:
    """Why two values are not the same within the tolerances of the suite."""
    if isinstance(a, list) or isinstance(b, list):
        if not (isinstance(a, list) and isinstance(b, list)) or len(a) != len(b):
            return "a sequence of another length"
        return next((why for x, y in zip(a, b) if (why := differs(x, y, case))), None)
    if a is None or b is None:
        return None if a is b else "an optional that is empty in one"
    if isinstance(a, dict) or isinstance(b, dict):
        return None if a == b else "another map"
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape:
        return f"shape {x.shape} instead of {y.shape}"
    if x.dtype.kind in "OSUT" or y.dtype.kind in "OSUT":
        same = [str(p) for p in x.ravel()] == [str(q) for q in y.ravel()]
        return None if same else "other strings"
    if x.dtype != y.dtype:
        return f"type {x.dtype} instead of {y.dtype}"
    if x.dtype.kind == "c":
        wide = np.complex128
    else:
        wide = np.float64 if x.dtype.kind in "fV" else x.dtype
    epsilon = spacing(y.dtype)
    x, y = x.astype(wide), y.astype(wide)
    if np.issubdtype(wide, np.inexact):
        if np.allclose(x, y, max(case.rtol, epsilon), case.atol, equal_nan=True):
            return None
        with np.errstate(all="ignore"):
            return f"differs by up to {np.nanmax(np.abs(x - y)):.3g}"
    return None if np.array_equal(x, y) else f"{int((x != y).sum())} elements of {x.size}"


def first_difference(a: list[list[Any]], b: list[list[Any]], case: Case) -> str | None:
    for run_a, run_b in zip(a, b):
        if len(run_a) < len(run_b):
            return "fewer outputs"
        for i, (x, y) in enumerate(zip(run_a, run_b)):
            if why := differs(x, y, case):
                return f"output {i}: {why}"
    return None


def checker(path: Path) -> str | None:
    """What the full checker objects to."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        return str(error).strip().splitlines()[0]
    return None


def boundary(model: onnx.ModelProto, defaults: set[str]) -> tuple[list[str], list[str]]:
    """Names of what the graph takes and gives, in order; inputs that had a default may go."""
    inputs = [v.name for v in model.graph.input if v.name not in defaults]
    return inputs, [v.name for v in model.graph.output]


def judge(case: Case, folder: Path, before: Path, after: Path) -> str:
    """`ok` or `unjudged`; raises `Failed` otherwise."""
    old, new = onnx.load(before), onnx.load(after)
    defaults = {tensor.name for tensor in old.graph.initializer}
    if boundary(old, defaults) != boundary(new, defaults):
        raise Failed("input", f"{boundary(old, defaults)} became {boundary(new, defaults)}")
    objection = checker(after)
    if objection and not checker(before):
        raise Failed("invalid", objection)
    suite = data_sets(folder, onnx.load(folder / "model.onnx"))
    taken = {v.name for v in old.graph.input}
    if case.variant != "plain":
        suite = suite[:1]  # the set that the initializers are from
    feeds = [{name: value for name, value in feed if name in taken} for feed, _ in suite]
    expected = [outputs for _, outputs in suite]
    for run in (run_ort, run_reference):
        try:
            result = run(after.read_bytes(), feeds)
        except Exception as error:
            try:
                run(before.read_bytes(), feeds)
            except Exception:
                continue
            raise Failed("broken", str(error)) from error
        if not first_difference(result, expected, case):
            return "ok"
        try:
            original, repeated = (run(before.read_bytes(), feeds) for _ in range(2))
        except Exception:
            continue
        if first_difference(original, repeated, case):
            return "ok"  # random by its meaning; it runs, which is all that can be said
        if why := first_difference(result, original, case):
            raise Failed("changed", why)
        return "ok"
    return "unjudged"


def run_dmopt(binary: str, target: str | None, before: Path, after: Path) -> None:
    """For a target without validation; without one, as people type it, with the ONNX Runtime of this Python."""
    command = [binary, "optimize", before, after, "-q"]
    if target:
        command += ["--target", target, "--no-validate", "--verify"]
    limit = LIMIT_SECONDS if target else VALIDATING_SECONDS
    environment = {**os.environ, "DMOPT_PYTHON": sys.executable}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired as error:
        raise Failed("crash", f"more than {limit} s") from error
    if done.returncode == 3:
        after.with_suffix(".rejected.onnx").unlink(missing_ok=True)
        raise Failed("rejected", done.stderr.strip())
    if done.returncode not in (0, 1):
        raise Failed("crash", f"exit status {done.returncode}: {done.stderr.strip()}")
    if done.returncode == 1:
        raise Failed("refused", done.stderr.strip())


def run_peer(tool: str, before: Path, after: Path) -> None:
    model = onnx.load(before)
    if tool == "onnxsim":
        import onnxsim

        model, _ = onnxsim.simplify(model)
    elif tool == "OnnxSlim":
        import onnxslim

        model = onnxslim.slim(model)
    elif tool == "onnxoptimizer":
        import onnxoptimizer

        model = onnxoptimizer.optimize(model)
    else:
        import onnxscript.optimizer

        model = onnxscript.optimizer.optimize(model)
    onnx.save(model, after)


class Runner:
    """Runs one optimizer on one case; what a pool of processes calls."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.models, self.work, self.binary = arguments.models, work, str(arguments.dmopt)

    def __call__(self, task: tuple[str, Case]) -> tuple[str, Case, str, str]:
        tool, case = task
        before = self.work / case.variant / f"{case.name}.onnx"
        after = self.work / tool.replace(" ", "-") / case.variant / f"{case.name}.onnx"
        after.parent.mkdir(parents=True, exist_ok=True)
        try:
            if tool.startswith("dmopt"):
                run_dmopt(self.binary, tool.removeprefix("dmopt").strip() or None, before, after)
            else:
                isolated(lambda: run_peer(tool, before, after))
            verdict, reason = isolated(lambda: judge(case, self.models / case.name, before, after)), ""
        except Failed as failed:
            verdict, reason = failed.verdict, " ".join(str(failed).split())
        after.unlink(missing_ok=True)
        return tool, case, verdict, reason


def targets(binary: Path) -> list[str]:
    """What dmopt can optimize for, as it tells whoever asks for something else."""
    wrong = [binary, "optimize", "x", "--target", "?"]
    text = subprocess.run(wrong, capture_output=True, text=True).stderr
    found = re.search(r"possible values: ([^\]]*)\]", text)
    if not found:
        raise SystemExit(f"{binary} does not tell its targets: {text}")
    return found[1].split(", ")


def earlier(path: Path) -> list[tuple[str, Case, str, str]]:
    """The results of an earlier run."""
    if not path.is_file():
        return []
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [(tool, Case(name, variant, 0.0, 0.0), verdict, reason) for tool, variant, name, verdict, reason in rows]


def write_results(work: Path, results: list[tuple[str, Case, str, str]]) -> None:
    lines = sorted("\t".join([t, c.variant, c.name, v, reason]) for t, c, v, reason in results)
    (work / "results.tsv").write_text("".join(f"{line}\n" for line in lines))


def table(counts: collections.Counter, tools: list[str]) -> str:
    lines = [f"| optimizer | variant | models | {' | '.join(VERDICTS)} |", "|---" * 2 + "|---:" * (len(VERDICTS) + 1) + "|"]
    for tool in tools:
        for variant in VARIANTS:
            row = [counts[tool, variant, verdict] for verdict in VERDICTS]
            lines.append(f"| {tool} | {variant} | {sum(row)} | {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def failures(results: list[tuple[str, Case, str, str]], tools: list[str]) -> str:
    """Which models fail, by optimizer and verdict."""
    lines = []
    for tool in tools:
        for verdict in FAILURES:
            names = sorted({case.name for t, case, v, _ in results if (t, v) == (tool, verdict)})
            if names:
                shown = ", ".join(f"`{name}`" for name in names[:12])
                rest = f" and {len(names) - 12} more" if len(names) > 12 else ""
                lines.append(f"- {tool}, {verdict}: {shown}{rest}")
    return "\n".join(lines) or "None."


def document(arguments: argparse.Namespace, results: list, counts: collections.Counter, tools: list[str]) -> str:
    version = subprocess.run([arguments.dmopt, "--version"], capture_output=True, text=True).stdout.strip()
    others = " and through other optimizers" if any(name in PEERS for name in tools) else ""
    used = [version] + [f"{name} {metadata.version(PEERS[name])}" for name in tools if name in PEERS]
    judges = [f"{name} {metadata.version(name)}" for name in ("onnx", "onnxruntime")]
    models = len({case.name for _, case, _, _ in results})
    extent = f"{models} models of the ONNX backend tests, {'evenly spread' if arguments.sample else 'all of them'},"
    meaning = (__doc__ or "").split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
    return f"""# Conformance

{extent} through dmopt, with all passes{others}. Written by

```sh
# not run by the tests: takes long, and a network
{arguments.command}
```

with {", ".join(used)}; judged by {" and ".join(judges)} on Python {platform.python_version()}, within the
tolerances of the suite (absolute ones at least 1e-5, relative ones at least the distance of neighbours in the type).

{meaning}

{table(counts, tools)}

Models that fail:

{failures(results, tools)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", type=Path, help="what scripts/backend_models.py wrote")
    add("--dmopt", type=Path, required=True, metavar="PATH", help="the binary")
    add("--peers", action="store_true", help="other optimizers too")
    add("--only", help="only these optimizers, separated by commas; none writes the document anew")
    add("--keep", action="store_true", help="verdicts on other optimizers stay those of the last run in the folder")
    add("--targets", help="what dmopt optimizes for, separated by commas [default: all]")
    add("--sample", type=int, metavar="N", help="only N models, evenly spread")
    add("--work", type=Path, default=Path("target/conformance"), help="folder for models (default %(default)s)")
    add("--jobs", type=int, default=os.cpu_count(), metavar="N")
    add("--markdown", type=Path, metavar="FILE", help="document to write")
    add("--command", default="cargo xtask onnx-backend", help="what to call this in the document")
    arguments = parser.parse_args()
    arguments.models, work = arguments.models.resolve(), arguments.work.resolve()
    arguments.dmopt = arguments.dmopt.resolve()
    onnxruntime.set_default_logger_severity(4)
    warnings.simplefilter("ignore")
    rows = [line.split("\t") for line in (arguments.models / "index.tsv").read_text().splitlines()[1:]]
    rows.sort(key=lambda row: row[1])
    if arguments.sample:
        rows = [rows[i * len(rows) // arguments.sample] for i in range(min(arguments.sample, len(rows)))]
    kept = earlier(work / "results.tsv") if arguments.keep else []
    shutil.rmtree(work, ignore_errors=True)
    cases = write_variants(arguments.models, work, rows)
    chosen = arguments.targets.split(",") if arguments.targets else targets(arguments.dmopt)
    tools = ["dmopt"] + [f"dmopt {target}" for target in chosen]
    if arguments.peers:
        tools += PEERS
        for package in PEERS.values():
            __import__(package)
    only = tools if arguments.only is None else [tool for tool in arguments.only.split(",") if tool]
    if unknown := set(only) - set(tools):
        raise SystemExit(f"no such optimizer: {', '.join(sorted(unknown))}; there are {', '.join(tools)}")
    running = [tool for tool in tools if tool in only]
    results = [result for result in kept if result[0] not in running]
    write_results(work, results)
    for tool in running:
        begin = time.monotonic()
        # A process of the pool is replaced now and then: libraries leak.
        with multiprocessing.get_context("fork").Pool(arguments.jobs, maxtasksperchild=200) as pool:
            tasks = [(tool, case) for case in cases]
            for result in pool.imap_unordered(Runner(arguments, work), tasks, chunksize=4):
                results.append(result)
                _, case, verdict, reason = result
                if tool.startswith("dmopt") and verdict in FAILURES:
                    print(f"{verdict:8} {case.variant} {case.name}: {reason[:300]}", flush=True)
        print(f"{tool}: {len(cases)} cases in {time.monotonic() - begin:.0f} s", flush=True)
        write_results(work, results)
    done = {tool for tool, *_ in results}
    tools = [tool for tool in tools if tool in done]
    counts = collections.Counter((tool, case.variant, verdict) for tool, case, verdict, _ in results)
    print(table(counts, tools))
    if arguments.markdown:
        arguments.markdown.write_text(document(arguments, results, counts, tools))
    bad = sum(verdict in FAILURES for tool, _, verdict, _ in results if tool.startswith("dmopt"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
