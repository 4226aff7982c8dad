#!/usr/bin/env bash
# Measures originals against optimized models on a GPU, and prints a table in Markdown (docs/gpu.md).
#
# usage: scripts/gpu_validate.sh [OPTION...]
#   --dmopt PATH     the dmopt binary           [target/release/dmopt, built when it is not there]
#   --ort-lib PATH   ONNX Runtime's CUDA build  [what dmopt finds by itself]
#   --ep EP          cuda, cuda:N; cpu runs the same matrix on the processor   [cuda]
#   --models FOLDER  where models are, or are written with `cargo xtask`       [target/gpu-models]
#   --only TEXT      only models with this in their name, as in d18-n4 or layer
#   --runs N         timed runs of each model   [100]
#   --output FILE    where the table goes       [standard output]
#   --dry-run        print the commands, run nothing
#
# Needs python3 (or the one that DMOPT_PYTHON names) to read dmopt's JSON. Each model is compared with
# `dmopt validate`: outputs, peak of the arena, and latency with inputs and outputs on the device. Ends with the number
# of comparisons that failed.
set -euo pipefail
cd "$(dirname "$0")/.."

dmopt=target/release/dmopt ort_lib="" ep=cuda models=target/gpu-models only="" runs=100 output=/dev/stdout dry=""
while [ $# -gt 0 ]; do
    case $1 in
        --dmopt) dmopt=$2; shift 2 ;;
        --ort-lib) ort_lib=$2; shift 2 ;;
        --ep) ep=$2; shift 2 ;;
        --models) models=$2; shift 2 ;;
        --only) only=$2; shift 2 ;;
        --runs) runs=$2; shift 2 ;;
        --output) output=$2; shift 2 ;;
        --dry-run) dry=1; shift ;;
        *) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
    esac
done
python=${DMOPT_PYTHON:-python3}
library=()
if [ -n "$ort_lib" ]; then library=(--ort-lib "$ort_lib"); fi

# Runs a command, or shows it.
run() {
    if [ -n "$dry" ]; then
        echo "$*"
    else
        "$@"
    fi
}

# Adds a model to those that are measured, and writes it unless it is there.
names=()
model() {
    local name=$1 path=$models/$1.onnx
    if [[ $name != *"$only"* ]]; then return; fi
    names+=("$name")
    if [ ! -f "$path" ]; then run cargo xtask "$2" "$path" "${@:3}" >&2; fi
}

if [ -z "$dry" ] && [ ! -x "$dmopt" ]; then cargo build --release >&2; fi
if [ -z "$dry" ]; then
    mkdir -p "$models"
    "$dmopt" doctor "${library[@]}" >&2
fi

for streams in 2 4; do
    for batch in 4 32; do
        model "d18-n$streams-b$batch" network --form f3 --streams "$streams" --batch "$batch"
    done
done
model layer-n2-b32 layer --streams 2 --batch 32

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
failed=0
for name in "${names[@]}"; do
    before=$models/$name.onnx after=$results/$name.opt.onnx
    run "$dmopt" optimize "$before" "$after" --no-validate --quiet
    for session in default tuned; do
        command=("$dmopt" validate "$before" "$after" --runtime ort --ep "$ep" --session "$session" --runs "$runs"
            --json "${library[@]}")
        if [ -n "$dry" ]; then
            echo "${command[*]}"
            continue
        fi
        code=0
        "${command[@]}" >"$results/$name.$session.json" || code=$?
        if [ "$code" -ne 0 ]; then failed=$((failed + 1)); fi
        echo "$name, $session session: exit code $code" >&2
        # Without a device there is nothing to go on with.
        if [ "$code" -eq 5 ]; then exit 5; fi
    done
    rm -f "$after"*
done
if [ -n "$dry" ]; then exit 0; fi

gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)
"$python" - "$results" "$ep" "${gpu:-no GPU}" "$runs" "${names[@]}" >"$output" <<'PY'
import json
import os
import sys

folder, ep, gpu, runs, *names = sys.argv[1:]


def megabytes(value):
    return "-" if value is None else f"{value / 1e6:.1f}"


def pair(memory, get):
    return " / ".join(megabytes(get(memory[side])) for side in ("reference", "candidate"))


rows, runtime = [], ""
for name in names:
    for session in ("default", "tuned"):
        path = os.path.join(folder, f"{name}.{session}.json")
        if not os.path.exists(path) or not os.path.getsize(path):
            rows.append([name, session, "failed"] + [""] * 8)
            continue
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        runtime = found["runtime"]["name"]
        outputs, memory, latency = found["outputs"], found["memory"], found["latency"]
        rel = outputs["max_rel"]
        row = [name, session, outputs["status"] + ("" if rel is None else f", {rel:.1e}")]
        if memory is None:
            row += [found["memory_reason"]] + [""] * 3
        else:
            row += [pair(memory, lambda m: m["peak_bytes"]), f"{memory['peak_ratio']:.4f}"]
            row.append(pair(memory, lambda m: m["arena"] and m["arena"]["held_bytes"]))
            row.append(pair(memory, lambda m: m["process_bytes"]))
        if latency is None:
            row += [found["latency_reason"]] + [""]
        else:
            seconds = (latency["reference_seconds"], latency["candidate_seconds"])
            row.append(" / ".join(f"{time * 1e3:.3f}" for time in seconds))
            row.append("{:.3f} ({:.3f} to {:.3f})".format(latency["ratio"], *latency["ratio_quartiles"]))
        elsewhere = found["elsewhere"]
        row.append(f"{len(elsewhere['reference'])} / {len(elsewhere['candidate'])}")
        rows.append(row)

print(f"GPU and driver: {gpu}. Runtime: {runtime}, {ep}. Pairs are original / optimized.")
print(f"Command: `scripts/gpu_validate.sh --ep {ep} --runs {runs}`\n")
head = ["model", "session", "outputs, max rel", "peak MB", "ratio", "arena held MB", "process MB"]
head += ["median ms", "ratio (quartiles)", "nodes not on the device"]
print("| " + " | ".join(head) + " |")
print("|" + "---|" * len(head))
for row in rows:
    print("| " + " | ".join(row[: len(head)]) + " |")
PY
exit "$failed"
