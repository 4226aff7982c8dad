#!/usr/bin/env python3
"""Time dmopt and other optimizers on models of real sizes, each run in a process of its own.

    bench_peers.py FOLDER --dmopt PATH [--runs N] [--seconds S] [--markdown FILE --command TEXT]

FOLDER holds `<model>/model.onnx` for each model, with external data beside it. Of several runs the fastest counts: of
three, of a single one where that takes over 30 seconds, of as many as ten seconds are enough for where that is more. It
is taken as wall time, as processor time, which other load on the machine disturbs less, and as the largest resident
memory, which counts pages of mapped files that were touched. A run that takes longer than the limit is ended.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import onnx

LIMIT_SECONDS = 120
# `{out}` is a folder of its own on the disk of the model.
PEERS = {
    "onnxsim": ["-m", "onnxsim", "{model}", "{out}/out.onnx"],
    "onnxslim": ["-m", "onnxslim", "{model}", "{out}/out.onnx"],
    "onnxoptimizer": ["-m", "onnxoptimizer", "{model}", "{out}/out.onnx"],
    "onnxscript": [
        "-c",
        "import sys, onnx_ir, onnxscript.optimizer as o; m = onnx_ir.load(sys.argv[1]); "
        "m = o.optimize(m) or m; onnx_ir.save(m, sys.argv[2] + '/out.onnx', external_data='out.data')",
        "{model}",
        "{out}",
    ],
    "onnxruntime": [
        "-c",
        "import sys, onnxruntime as r; o = r.SessionOptions(); "
        "o.graph_optimization_level = r.GraphOptimizationLevel.ORT_ENABLE_BASIC; "
        "o.optimized_model_filepath = sys.argv[2] + '/out.onnx'; "
        "o.add_session_config_entry('session.optimized_model_external_initializers_file_name', 'out.data'); "
        "r.InferenceSession(sys.argv[1], o, providers=['CPUExecutionProvider'])",
        "{model}",
        "{out}",
    ],
}
COPY = "cp and fsync"
UNWRITTEN = "dmopt to /dev/null"
ALONE = "dmopt simplifying alone"
# What the other optimizers do; the search for what lowers memory is left out.
SIMPLIFYING = (
    "drop-dead,fold-constants,resolve-reshape,dedupe-initializers,common-subexpressions,"
    "fuse-layer-affine,fold-batch-norm"
)
# What a process had in memory before it became another program counts as that program's: this script must not be it.
LAUNCHER = (
    "import os, sys, time; b = time.monotonic(); p = os.spawnvp(os.P_NOWAIT, sys.argv[2], sys.argv[2:]); "
    "_, s, u = os.wait4(p, 0); w = time.monotonic() - b; "
    "open(sys.argv[1], 'w').write(str([s, w, u.ru_utime + u.ru_stime, u.ru_maxrss * 1024 / 1e6]))"
)


class Run(NamedTuple):
    """What one process took, or why it gave nothing."""

    wall: float
    cpu: float
    rss: float
    nodes: int | None
    failure: str | None


def run(command: list[str], out: Path) -> Run:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    usage = out.with_suffix(".usage")
    usage.unlink(missing_ok=True)
    launch = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(usage), *command]
    process = subprocess.Popen(launch, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    late = threading.Event()
    end = threading.Timer(LIMIT_SECONDS, lambda: (late.set(), os.killpg(process.pid, signal.SIGKILL)))
    end.start()
    message = process.stderr.read().decode(errors="replace")
    process.wait()
    end.cancel()
    status, wall, cpu, rss = json.loads(usage.read_text()) if usage.is_file() else (1, math.nan, math.nan, math.nan)
    if status:
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        return Run(wall, cpu, rss, None, "" if late.is_set() else (lines or [f"status {status}"])[-1][:80])
    nodes = None
    if (out / "out.onnx").is_file():
        nodes = len(onnx.load(out / "out.onnx", load_external_data=False).graph.node)
    return Run(wall, cpu, rss, nodes, None)


def tools(dmopt: Path) -> dict[str, list[str]]:
    optimize = [str(dmopt), "optimize", "{model}", "--no-validate", "-q"]
    python = {name: [sys.executable, *arguments] for name, arguments in PEERS.items()}
    return {
        "dmopt": [*optimize, "{out}/out.onnx"],
        UNWRITTEN: [*optimize, "/dev/null"],
        ALONE: [*optimize, "/dev/null", "--passes", SIMPLIFYING],
        COPY: ["sh", "-c", 'cp "$1"/* "$2" && sync "$2"/*', "sh", "{folder}", "{out}"],
        **python,
    }


def measure(model: Path, command: list[str], runs: int, seconds: float = 0.0) -> Run:
    out = model.parent.parent / "out"
    places = {"model": str(model), "out": str(out), "folder": str(model.parent)}
    filled = [part.format(**places) if "{" in part else part for part in command]
    best, done, spent = None, 0, 0.0
    # A moment is told from noise by many runs.
    while done < runs or spent < seconds:
        found = run(filled, out)
        done, spent = done + 1, spent + found.wall
        if best is None or found.wall < best.wall:
            best = found
        if found.failure is not None or found.wall > 30:
            break
    shutil.rmtree(out, ignore_errors=True)
    assert best
    return best


def row(tool: str, found: Run, ours: list[Run | None]) -> str:
    if found.failure is not None:
        wall = f"> {LIMIT_SECONDS}" if found.failure == "" else f"fails: {found.failure}"
        return f"| {tool} | {wall} | | | |{' |' * len(ours)}"
    nodes = "" if found.nodes is None else f"{found.nodes}"
    times = [f"{found.wall / of.wall:.1f}" if of else "" for of in ours]
    cells = [tool, f"{found.wall:.3f}", f"{found.cpu:.3f}", f"{found.rss:.0f}", nodes, *times]
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    kib = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    load = os.getloadavg()[0]
    name = names[0] if names else platform.machine()
    return f"{len(names)} cores of {name}, {kib / 1e6:.0f} GB, load {load:.1f} when it began"


def version_of(dmopt: Path) -> str:
    return subprocess.run([dmopt, "--version"], capture_output=True, text=True).stdout.strip()


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118, break_on_hyphens=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path)
    add("--dmopt", type=Path, required=True)
    add("--runs", type=int, default=3)
    add("--seconds", type=float, default=10.0)
    add("--only", help="tools, separated by commas")
    add("--markdown", type=Path)
    add("--command", default="cargo xtask bench-peers")
    arguments = parser.parse_args()
    where = machine()
    chosen = tools(arguments.dmopt.resolve())
    if arguments.only:
        chosen = {name: chosen[name] for name in arguments.only.split(",")}
    sections = []
    for model in sorted(arguments.folder.resolve().glob("*/model.onnx"), key=lambda p: p.stat().st_size):
        graph = onnx.load(model, load_external_data=False).graph
        weights = sum(path.stat().st_size for path in model.parent.iterdir()) / 1e6
        found = {}
        for tool, command in chosen.items():
            found[tool] = measure(model, command, arguments.runs, arguments.seconds)
            print(model.parent.name, row(tool, found[tool], []), flush=True)
        ours = [found.get(name) for name in ("dmopt", UNWRITTEN, ALONE)]
        lines = [row(tool, result, ours) for tool, result in found.items()]
        title = f"## {model.parent.name}: {len(graph.node)} nodes, {weights:.0f} MB"
        times = ["times dmopt's wall", "to /dev/null", "simplifying alone"]
        columns = ["", "wall, s", "processor, s", "resident, MB", "nodes left", *times]
        head = f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}"
        sections.append("\n".join([title, "", head, *lines]))
    if arguments.markdown:
        versions = ", ".join([version_of(arguments.dmopt)] + [f"{name} {metadata.version(name)}" for name in PEERS])
        meaning = (__doc__ or "").split("\n\n")[2].split("beside it. ")[1].replace("\n", " ")
        about = f"""On {where}, with {versions}, Python {platform.python_version()}. {meaning.strip()} dmopt runs as
`dmopt optimize IN OUT --no-validate`, with all passes, most of which look for what lowers memory, as none of the others
does; to /dev/null it writes no weights, which the others do. Simplifying alone, as they do, and to /dev/null, is
`--passes {SIMPLIFYING}`.
The copy is what moving the bytes costs. onnxruntime writes what its level `basic` leaves, which is plain ONNX. How time
grows with graphs of other shapes stands in [scaling.md](scaling.md)."""
        text = f"""# Benchmarks

dmopt and other optimizers on models of real sizes, a cold process each. Written by

```sh
# not run by the tests: takes long, and a network
{arguments.command}
```

{paragraph(about)}

{chr(10).join(section + chr(10) for section in sections)}"""
        arguments.markdown.write_text(text.rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
