#!/usr/bin/env bash
# Builds the static binary of the Dockerfile without Docker, and fails unless it is static and runs with nothing around
# it. FEATURES may name other features than the embedded runtime.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${TARGET:-x86_64-unknown-linux-gnu}
folder=${CARGO_TARGET_DIR:-target}
# Static against glibc where musl is not installed; the Dockerfile takes musl.
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
    cargo build --release --locked --target "$target" --no-default-features --features "${FEATURES-tract}" --bin dmopt
binary=$folder/$target/release/dmopt

if readelf --program-headers "$binary" | grep INTERP > /dev/null; then
    echo "error: $binary asks for a dynamic loader" >&2
    exit 1
fi
if readelf --dynamic "$binary" | grep NEEDED > /dev/null; then
    echo "error: $binary needs shared libraries" >&2
    exit 1
fi
env -i "$binary" --version
echo "$binary is static, $(stat --format=%s "$binary") bytes"
