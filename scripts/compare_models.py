#!/usr/bin/env python3
"""Compare ONNX files before and after a round trip, field by field.

A and B are two files, or two folders compared by the relative paths of the files in A. For each:

    same bytes     the files are identical
    same message   they parse to the same ModelProto (unknown fields included)
    DIFFERENT      they do not; the differing fields are listed

A message can be encoded in more than one way. Where A is encoded as protobuf's own writer would
(fields in the order of their numbers), `same message` is a failure too: a faithful round trip
gives the same bytes. Exit status 1 if any file fails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Iterator

import onnx

ABSENT = "absent"


def show(value: Any, limit: int = 60) -> str:
    """A value, shortened."""
    text = " ".join(str(value).split()) if not isinstance(value, bytes) else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Paths of the fields in which two messages of one type differ, with both values."""
    fields_a = {field.name: value for field, value in a.ListFields()}
    fields_b = {field.name: value for field, value in b.ListFields()}
    for field in a.DESCRIPTOR.fields:
        name, where = field.name, f"{path}.{field.name}" if path else field.name
        x, y = fields_a.get(name, ABSENT), fields_b.get(name, ABSENT)
        if x is ABSENT or y is ABSENT:
            if x is not y:
                yield f"{where}: {show(x)} | {show(y)}"
        elif field.is_repeated:
            yield from repeated_differences(field, x, y, where)
        elif field.message_type is not None:
            yield from differences(x, y, where)
        elif encoded(x) != encoded(y):
            yield f"{where}: {show(x)} | {show(y)}"


def repeated_differences(field: Any, x: Any, y: Any, where: str) -> Iterator[str]:
    """The same for a repeated field."""
    if len(x) != len(y):
        yield f"{where}: {len(x)} entries | {len(y)} entries"
    for i, (p, q) in enumerate(zip(x, y)):
        if field.message_type is not None:
            yield from differences(p, q, f"{where}[{i}]")
        elif encoded(p) != encoded(q):
            yield f"{where}[{i}]: {show(p)} | {show(q)}"


def encoded(value: Any) -> Any:
    """A scalar such that NaN equals itself and 0.0 differs from -0.0."""
    return value.hex() if isinstance(value, float) else value


def compare(a: Path, b: Path, limit: int) -> tuple[str, list[str]]:
    """The verdict on a pair of files, and the fields that differ."""
    bytes_a, bytes_b = a.read_bytes(), b.read_bytes()
    if bytes_a == bytes_b:
        return "same bytes", []
    model_a, model_b = onnx.ModelProto(), onnx.ModelProto()
    model_a.ParseFromString(bytes_a)
    model_b.ParseFromString(bytes_b)
    canonical_a = model_a.SerializeToString(deterministic=True)
    if canonical_a != model_b.SerializeToString(deterministic=True):
        found = list(differences(model_a, model_b)) or ["unknown fields only"]
        more = [f"and {len(found) - limit} more"] if len(found) > limit else []
        return "DIFFERENT", found[:limit] + more
    if canonical_a == bytes_a:
        return "DIFFERENT", ["the encoding only, and the original's is the usual one"]
    return "same message", []


def pairs(a: Path, b: Path) -> list[tuple[str, Path, Path]]:
    """The files to compare, by name."""
    if a.is_file():
        return [(a.name, a, b / a.name if b.is_dir() else b)]
    names = sorted(str(p.relative_to(a)) for p in a.rglob("*.onnx"))
    return [(name, a / name, b / name) for name in names]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path, metavar="A", help="original file or folder")
    parser.add_argument("b", type=Path, metavar="B", help="what came back")
    parser.add_argument("--limit", type=int, default=10, help="fields to list per file")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each file")
    arguments = parser.parse_args()
    listed = pairs(arguments.a, arguments.b)
    if not listed:
        parser.error(f"no .onnx file in {arguments.a}")
    counts: dict[str, int] = {}
    for name, a, b in listed:
        verdict, details = ("MISSING", []) if not b.is_file() else ("", [])
        if not verdict:
            try:
                verdict, details = compare(a, b, arguments.limit)
            except Exception as error:  # a file that does not parse is a verdict, not a crash
                verdict, details = "DIFFERENT", [f"{type(error).__name__}: {error}"]
        counts[verdict] = counts.get(verdict, 0) + 1
        if arguments.verbose or verdict in ("DIFFERENT", "MISSING"):
            print("\n    ".join([f"{verdict}: {name}", *details]))
    print(f"{len(listed)} files: " + ", ".join(f"{n} {v}" for v, n in sorted(counts.items())))
    return 1 if counts.keys() & {"DIFFERENT", "MISSING"} else 0


if __name__ == "__main__":
    sys.exit(main())
