#!/usr/bin/env bash
# Measures originals against optimized models on a GPU, and prints a table in Markdown (docs/gpu.md).
#
# usage: scripts/gpu_validate.sh [OPTION...]
#   --dmopt PATH     the dmopt binary           [target/release/dmopt, built when it is not there]
#   --ort-lib PATH   ONNX Runtime's CUDA build  [what dmopt finds by itself]
#   --ep EP          cuda, cuda:N; cpu runs the same matrix on the processor   [cuda]
#   --models FOLDER  where models are, or are written with `cargo xtask`; others in it are measured as well
#                    [target/gpu-models]
#   --only TEXT      only models with this in their name, as in d18-n4 or layer
#   --runs N         timed runs of each model   [100]
#   --jobs N         models that are optimized at a time; they are measured one by one   [1]
#   --output FILE    where the table goes       [standard output]
#   --dry-run        print the commands, run nothing
#
# Needs python3 (or the one that DMOPT_PYTHON names) to read dmopt's JSON. Each model is optimized for each kind of
# session on the device, and compared with `dmopt validate`: outputs, peak of the arena, and latency with inputs and
# outputs on the device. Ends with the number of models that could not be optimized and of comparisons that failed; with
# 5 where nothing could be run on the device.
set -euo pipefail
cd "$(dirname "$0")/.."

dmopt=target/release/dmopt ort_lib="" ep=cuda models=target/gpu-models only="" runs=100 jobs=1 output=/dev/stdout dry=""
while [ $# -gt 0 ]; do
    case $1 in
        --dmopt) dmopt=$2; shift 2 ;;
        --ort-lib) ort_lib=$2; shift 2 ;;
        --ep) ep=$2; shift 2 ;;
        --models) models=$2; shift 2 ;;
        --only) only=$2; shift 2 ;;
        --runs) runs=$2; shift 2 ;;
        --jobs) jobs=$2; shift 2 ;;
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

# What else is there.
for path in "$models"/*.onnx; do
    name=$(basename "$path" .onnx)
    if [ -f "$path" ] && [[ $name == *"$only"* ]] && [[ " ${names[*]} " != *" $name "* ]]; then names+=("$name"); fi
done

if [ "${#names[@]}" -eq 0 ]; then
    echo "error: no model has '$only' in its name" >&2
    exit 2
fi

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
device=(--ep "$ep" "${library[@]}")
# Makes the result of a model for a kind of session, and keeps the exit code where there is none.
optimize() {
    run "$dmopt" optimize "$models/$1.onnx" "$results/$1.$2.onnx" --validate-with ort --session "$2" "${device[@]}" \
        --quiet --report "$results/$1.$2.report.json" || echo $? >"$results/$1.$2.code"
}
failed=0 unable=0 all=0
sessions=(default tuned)
for name in "${names[@]}"; do
    for session in "${sessions[@]}"; do
        if [ -n "$dry" ]; then optimize "$name" "$session"; continue; fi
        optimize "$name" "$session" &
        if [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; then wait -n || true; fi
    done
done
wait
for name in "${names[@]}"; do
    for session in "${sessions[@]}"; do
        before=$models/$name.onnx after=$results/$name.$session.onnx
        command=("$dmopt" validate "$before" "$after" --runtime ort --session "$session" --runs "$runs"
            --outputs-only --json "${device[@]}")
        if [ -n "$dry" ]; then
            echo "${command[*]}"
            continue
        fi
        code=0
        if [ -f "$results/$name.$session.code" ]; then
            code=$(cat "$results/$name.$session.code")
        else
            "${command[@]}" >"$results/$name.$session.json" || code=$?
        fi
        all=$((all + 1))
        if [ "$code" -ne 0 ]; then failed=$((failed + 1)); fi
        if [ "$code" -eq 5 ]; then unable=$((unable + 1)); fi
        echo "$name, $session session: exit code $code" >&2
        rm -f "$after"*
    done
done
if [ -n "$dry" ]; then exit 0; fi
if [ "$unable" -eq "$all" ]; then exit 5; fi

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
            rows.append([name, session, "failed"] + [""] * 9)
            continue
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        runtime = found["runtime"]["name"]
        outputs, memory, latency = found["outputs"], found["memory"], found["latency"]
        rel = outputs["max_rel"]
        with open(os.path.join(folder, f"{name}.{session}.report.json"), encoding="utf-8") as file:
            predicted = json.load(file)["peak"]["predicted"]
        row = [name, session, outputs["status"] + ("" if rel is None else f", {rel:.1e}")]
        row.append(" / ".join(megabytes(predicted[f"{side}_bytes"]) for side in ("before", "after")))
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
head = ["model", "session", "outputs, max rel", "predicted MB", "peak MB", "ratio", "arena held MB", "process MB"]
head += ["median ms", "ratio (quartiles)", "nodes not on the device"]
print("| " + " | ".join(head) + " |")
print("|" + "---|" * len(head))
for row in rows:
    print("| " + " | ".join(row[: len(head)]) + " |")
PY
exit "$failed"
