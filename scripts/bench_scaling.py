#!/usr/bin/env python3
"""Time dmopt on graphs of many shapes, each with so many operators and with four times as many.

    bench_scaling.py FOLDER --dmopt PATH [--operators N] [--runs N] [--only TEXT] [--markdown FILE --command TEXT]

FOLDER is where the graphs are written. Tensors are small, so that time goes into the graph alone. Of several runs the
fastest counts, as processor time, which other load on the machine disturbs least. Where time is linear in the number
of operators the ratio is near 4; caches and allocators make it somewhat more, and a tree of sums, which is read
as one sum before it is left alone as too large, takes more than that.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Callable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bench_peers import LIMIT_SECONDS, UNWRITTEN, machine, measure, paragraph, tools, version_of

TIMES = 4
CHANNELS = 8
DIMS = [1, CHANNELS, 4, 4]

node = helper.make_node
Dims = list[int | str]


def value(name: str, dims: Dims = DIMS, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, dims)


def constant(name: str, numbers: object, dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(numbers, dtype=dtype), name)


def scalars(count: int, name: str = "c") -> list[TensorProto]:
    return [constant(f"{name}{i}", i + 0.5) for i in range(count)]


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


def model(
    nodes: list[NodeProto],
    inputs: list[str | onnx.ValueInfoProto],
    outputs: list[str | onnx.ValueInfoProto],
    constants: list[TensorProto] | None = None,
) -> ModelProto:
    typed = [[v if isinstance(v, onnx.ValueInfoProto) else value(v) for v in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "shape", *typed, constants or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(
    count: int,
    step: Callable[[str, str, int], list[NodeProto]],
    inputs: list[str | onnx.ValueInfoProto] | None = None,
    constants: list[TensorProto] | None = None,
    before: Dims = DIMS,
    after: Dims = DIMS,
) -> ModelProto:
    """`step(v, w, i)` computes w of v: so often, one after the other. `before` and `after` are the sizes at the ends."""
    nodes = [made for i in range(count) for made in step(f"v{i}", f"v{i + 1}", i)]
    return model(nodes, [value("v0", before), *(inputs or [])], [value(f"v{count}", after)], constants)


# Each shape is a function whose first line says what it is.


def activations(n: int) -> ModelProto:
    """a chain of activations"""
    return chain(n, lambda v, w, i: [node("Relu" if i % 2 else "Sigmoid", [v], [w])])


def identities(n: int) -> ModelProto:
    """a chain of Identity"""
    return chain(n, lambda v, w, i: [node("Identity", [v], [w])])


def negations(n: int) -> ModelProto:
    """a chain of Neg"""
    return chain(n, lambda v, w, i: [node("Neg", [v], [w])])


def casts(n: int) -> ModelProto:
    """a chain of Cast, to half precision and back"""
    return chain(2 * (n // 2), lambda v, w, i: [node("Cast", [v], [w], to=1 if i % 2 else 10)])


def transposes(n: int) -> ModelProto:
    """a chain of Transpose"""
    return chain(n, lambda v, w, i: [node("Transpose", [v], [w], perm=[0, 2, 3, 1])], after=[1, "H", "W", "C"])


def reshapes(n: int) -> ModelProto:
    """a chain of Reshape and Relu"""
    step = lambda v, w, i: [node("Relu", [v], [w]) if i % 2 else node("Reshape", [v, f"s{i % 4 // 2}"], [w])]
    constants = [constant("s0", [8, 16], np.int64), constant("s1", DIMS, np.int64)]
    return chain(n // 4 * 4, step, constants=constants)


def shapes(n: int) -> ModelProto:
    """Reshape to what Shape computes, with open sizes"""
    step = lambda v, w, i: [
        node("Shape", [v], [f"s{i}"]),
        node("Reshape", [v, f"s{i}"], [f"r{i}"]),
        node("Relu", [f"r{i}"], [w]),
    ]
    return chain(n // 3, step, before=["N", 8, "H", 4], after=["N", 8, "H", 4])


def affine(n: int) -> ModelProto:
    """a chain of Mul and Add with constants"""
    constants = [constant(f"c{i}", 1 + (i % 977 + 1) * 1e-5) for i in range(n)]
    return chain(n, lambda v, w, i: [node("Add" if i % 2 else "Mul", [v, f"c{i}"], [w])], constants=constants)


def shared_constant(n: int) -> ModelProto:
    """a chain in which every operator reads one constant"""
    return chain(n, lambda v, w, i: [node("Max" if i % 2 else "Min", [v, "c"], [w])], constants=[constant("c", 0.5)])


def equal_constants(n: int) -> ModelProto:
    """a chain in which every operator reads a constant of its own, all of them equal"""
    constants = [constant(f"c{i}", [0.5] * 4) for i in range(n)]
    return chain(n, lambda v, w, i: [node("Max", [v, f"c{i}"], [w])], constants=constants)


def computed_constant(n: int) -> ModelProto:
    """a chain that constants alone are read by"""
    nodes = [node("Add", [f"c{i}", "one"], [f"c{i + 1}"]) for i in range(n)]
    return model([*nodes, node("Add", ["x", f"c{n}"], ["y"])], ["x"], ["y"], [constant("c0", 0), constant("one", 1)])


def doubling(n: int) -> ModelProto:
    """a chain of values added to themselves"""
    return chain(n, lambda v, w, i: [node("Add", [v, v], [w])])


def residuals(n: int) -> ModelProto:
    """a chain of v + relu(v)"""
    return chain(n // 2, lambda v, w, i: [node("Relu", [v], [f"r{i}"]), node("Add", [f"r{i}", v], [w])])


def differences(n: int) -> ModelProto:
    """a chain of v - relu(v)"""
    return chain(n // 2, lambda v, w, i: [node("Relu", [v], [f"r{i}"]), node("Sub", [v, f"r{i}"], [w])])


def layers(n: int) -> ModelProto:
    """a chain of v + 0.3 relu(conv(v))"""
    weights = np.random.RandomState(0).rand(CHANNELS, CHANNELS, 3, 3) * 0.1
    constants = [constant(f"w{i}", weights + i) for i in range(n // 4)] + [constant("k", 0.3)]
    step = lambda v, w, i: [
        node("Conv", [v, f"w{i}"], [f"a{i}"], pads=[1, 1, 1, 1]),
        node("Relu", [f"a{i}"], [f"b{i}"]),
        node("Mul", [f"b{i}", "k"], [f"d{i}"]),
        node("Add", [f"d{i}", v], [w]),
    ]
    return chain(n // 4, step, constants=constants)


def prefix_sums(n: int) -> ModelProto:
    """a sum of inputs, one after the other"""
    return chain(n, lambda v, w, i: [node("Add", [v, f"x{i}"], [w])], inputs=names("x", n))


def weighted_sums(n: int) -> ModelProto:
    """a sum of weighted inputs, one after the other"""
    step = lambda v, w, i: [node("Mul", [f"x{i}", f"c{i}"], [f"p{i}"]), node("Add", [v, f"p{i}"], [w])]
    return chain(n // 2, step, inputs=names("x", n // 2), constants=scalars(n // 2))


def horner(n: int) -> ModelProto:
    """v * c + x, one after the other, with a factor for each channel"""
    step = lambda v, w, i: [node("Mul", [v, f"c{i}"], [f"p{i}"]), node("Add", [f"p{i}", f"x{i}"], [w])]
    factor = lambda i: [[[(1 + i % 97 / 100) * (j + 1) ** 2]] for j in range(CHANNELS)]
    constants = [constant(f"c{i}", factor(i)) for i in range(n // 2)]
    return chain(n // 2, step, inputs=names("x", n // 2), constants=constants)


def lerps(n: int) -> ModelProto:
    """v + c * (x - v), one after the other"""
    step = lambda v, w, i: [
        node("Sub", [f"x{i}", v], [f"s{i}"]),
        node("Mul", [f"s{i}", f"c{i}"], [f"p{i}"]),
        node("Add", [f"p{i}", v], [w]),
    ]
    constants = [constant(f"c{i}", 0.1 + i % 97 / 100) for i in range(n // 3)]
    return chain(n // 3, step, inputs=names("x", n // 3), constants=constants)


def sums_of_four(n: int) -> ModelProto:
    """a chain of Sum with four operands"""
    step = lambda v, w, i: [node("Sum", [v, *(f"x{(3 * i + j) % 3000}" for j in range(3))], [w])]
    return chain(n, step, inputs=names("x", 3000))


def last_six(n: int) -> ModelProto:
    """each value is relu of the sum of the six before it"""
    nodes = [node("Relu", ["x"], ["r0"])]
    for i in range(1, n // 2):
        nodes.append(node("Sum", [f"r{j}" for j in range(max(0, i - 6), i)], [f"s{i}"]))
        nodes.append(node("Relu", [f"s{i}"], [f"r{i}"]))
    return model(nodes, ["x"], [f"r{n // 2 - 1}"])


def tree(n: int) -> ModelProto:
    """a binary tree of Add over inputs"""
    nodes, level = [], names("x", n)
    while len(level) > 1:
        made = []
        for a, b in zip(level[::2], level[1::2]):
            made.append(f"t{len(nodes)}")
            nodes.append(node("Add", [a, b], [made[-1]]))
        level = made + level[len(level) // 2 * 2 :]
    return model(nodes, names("x", n), level)


def sum_of_inputs(n: int) -> ModelProto:
    """one Sum of inputs, each weighted"""
    nodes = [node("Mul", [f"x{i}", f"c{i}"], [f"m{i}"]) for i in range(n)]
    return model([*nodes, node("Sum", names("m", n), ["y"])], names("x", n), ["y"], scalars(n))


def sum_of_one(n: int) -> ModelProto:
    """one Sum of one input, weighted so often"""
    nodes = [node("Mul", ["x", f"c{i}"], [f"m{i}"]) for i in range(n)]
    return model([*nodes, node("Sum", names("m", n), ["y"])], ["x"], ["y"], scalars(n))


def sum_of_branches(n: int) -> ModelProto:
    """one Sum of branches of two operators"""
    nodes = []
    for i in range(n // 2):
        nodes += [node("Mul", ["x", f"c{i}"], [f"a{i}"]), node("Relu", [f"a{i}"], [f"m{i}"])]
    return model([*nodes, node("Sum", names("m", n // 2), ["y"])], ["x"], ["y"], scalars(n // 2))


def pairs(n: int) -> ModelProto:
    """sums of two weighted neighbours"""
    nodes, count = [], n // 4
    for i in range(count):
        nodes += [node("Mul", [f"x{i + j}", f"{c}{i % 50}"], [f"{c}x{i}"]) for j, c in enumerate("ab")]
        nodes += [node("Add", [f"ax{i}", f"bx{i}"], [f"s{i}"]), node("Relu", [f"s{i}"], [f"y{i}"])]
    return model(nodes, names("x", count + 1), names("y", count), scalars(50, "a") + scalars(50, "b"))


def concat(n: int) -> ModelProto:
    """one Concat of what one input is computed to"""
    nodes = [node("Max", ["x", f"c{i}"], [f"m{i}"]) for i in range(n)]
    nodes += [node("Concat", names("m", n), ["y"], axis=1), node("Relu", ["y"], ["z"])]
    return model(nodes, ["x"], [value("z", [1, CHANNELS * n, 4, 4])], scalars(n))


def split(n: int) -> ModelProto:
    """Split into parts of one row, an operator on each, Concat"""
    nodes = [node("Split", ["x"], names("s", n), axis=0)]
    nodes += [node("Relu", [f"s{i}"], [f"r{i}"]) for i in range(n)]
    nodes.append(node("Concat", names("r", n), ["y"], axis=0))
    return model(nodes, [value("x", [n, 4])], [value("y", [n, 4])])


def outputs(n: int) -> ModelProto:
    """a chain whose every value is an output"""
    nodes = [node("Relu" if i % 2 else "Sigmoid", [f"v{i}"], [f"v{i + 1}"]) for i in range(n)]
    return model(nodes, ["v0"], names("v", n + 1)[1:])


def equal_chains(n: int) -> ModelProto:
    """two equal chains beside each other"""
    nodes = [node("Sigmoid", [f"{c}{i}" if i else "x"], [f"{c}{i + 1}"]) for i in range(n // 2) for c in "ab"]
    return model([*nodes, node("Max", [f"a{n // 2}", f"b{n // 2}"], ["y"])], ["x"], ["y"])


def dead(n: int) -> ModelProto:
    """a chain that nothing reads"""
    nodes = [node("Sigmoid", [f"d{i}" if i else "x"], [f"d{i + 1}"]) for i in range(n)]
    return model([*nodes, node("Relu", ["x"], ["y"])], ["x"], ["y"])


def grid(n: int) -> ModelProto:
    """a grid in which each value is computed of those above and left of it"""
    side, nodes = math.isqrt(n), []
    for i in range(side):
        for j in range(side):
            above, left = f"g{i - 1}_{j}" if i else "x", f"g{i}_{j - 1}" if j else "x"
            nodes.append(node("Add" if (i + j) % 2 else "Max", [above, left], [f"g{i}_{j}"]))
    return model(nodes, ["x"], [f"g{side - 1}_{side - 1}"])


def fan(n: int) -> ModelProto:
    """short branches of one input, joined one after the other"""
    step = lambda v, w, i: [
        node("Max", ["x", f"c{i}"], [f"a{i}"]),
        node("Sigmoid", [f"a{i}"], [f"b{i}"]),
        node("Relu", [f"b{i}"], [f"d{i}"]),
        node("Max", [f"d{i}", v], [w]),
    ]
    return chain(n // 4, step, inputs=["x"], constants=scalars(n // 4))


def skips(n: int) -> ModelProto:
    """a chain down and up again, each level joined with its own on the way down"""
    half = n // 2
    nodes = [node("Sigmoid", [f"a{i}" if i else "x"], [f"a{i + 1}"]) for i in range(half)]
    nodes += [node("Max", [f"b{i + 1}" if i < half else f"a{half}", f"a{i}"], [f"b{i}"]) for i in range(half, 0, -1)]
    return model(nodes, ["x"], ["b1"])


def branches(n: int) -> ModelProto:
    """a chain of If"""
    body = lambda op, v, out: helper.make_graph([node(op, [v], [out])], out, [], [value(out)])
    step = lambda v, w, i: [
        node("If", ["c"], [w], then_branch=body("Relu", v, f"t{i}"), else_branch=body("Sigmoid", v, f"e{i}"))
    ]
    return chain(n // 3, step, inputs=[value("c", [], TensorProto.BOOL)])


def captures(n: int) -> ModelProto:
    """one If whose branch reads what all others compute"""
    nodes = [node("Max", ["x", f"c{i}"], [f"m{i}"]) for i in range(n)]
    branch = helper.make_graph([node("Max", names("m", n), ["t"])], "t", [], [value("t")])
    other = helper.make_graph([node("Relu", ["x"], ["e"])], "e", [], [value("e")])
    nodes.append(node("If", ["c"], ["y"], then_branch=branch, else_branch=other))
    return model(nodes, ["x", value("c", [], TensorProto.BOOL)], ["y"], scalars(n))


def common_capture(n: int) -> ModelProto:
    """many If whose branches all read one value"""
    nodes, count = [node("Sigmoid", ["x"], ["v"])], n // 3
    for i in range(count):
        make = lambda op: helper.make_graph([node(op, ["v", f"c{i}"], [f"{op}{i}"])], op, [], [value(f"{op}{i}")])
        nodes.append(node("If", ["c"], [f"o{i}"], then_branch=make("Max"), else_branch=make("Min")))
    nodes.append(node("Max", names("o", count), ["y"]))
    return model(nodes, ["x", value("c", [], TensorProto.BOOL)], ["y"], scalars(count))


SHAPES: list[Callable[[int], ModelProto]] = [
    activations, identities, negations, casts, transposes, reshapes, shapes, affine, shared_constant, equal_constants,
    computed_constant, doubling, residuals, differences, layers, prefix_sums, weighted_sums, horner, lerps,
    sums_of_four, last_six, tree, sum_of_inputs, sum_of_one, sum_of_branches, pairs, concat, split, outputs,
    equal_chains, dead, grid, fan, skips, branches, captures, common_capture,
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path)
    add("--dmopt", type=Path, required=True)
    add("--operators", type=int, default=20_000)
    add("--runs", type=int, default=2)
    add("--only", default="", help="only shapes with this in what they are")
    add("--markdown", type=Path)
    add("--command", default="cargo xtask bench-scaling")
    arguments = parser.parse_args()
    where, few = machine(), arguments.operators
    command = tools(arguments.dmopt.resolve())[UNWRITTEN]
    rows = []
    for shape in SHAPES:
        what = (shape.__doc__ or "").strip()
        if arguments.only not in what:
            continue
        seconds = []
        for count in (few, TIMES * few):
            path = arguments.folder.resolve() / shape.__name__ / "model.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            onnx.save(shape(count), path)
            found = measure(path, command, arguments.runs)
            path.unlink()
            if found.failure is not None:
                print(f"{what}, {count}: {found.failure or f'more than {LIMIT_SECONDS} s'}", file=sys.stderr)
                return 1
            seconds.append(found.cpu)
        rows.append(f"| {what} | {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[1] / max(seconds[0], 0.01):.1f} |")
        print(rows[-1], flush=True)
    if arguments.markdown:
        meaning = (__doc__ or "").split("\n\n")[2].split("written. ")[1]
        about = f"On {where}, with {version_of(arguments.dmopt)}. {meaning}"
        text = f"""# How time grows with the graph

`dmopt optimize MODEL /dev/null --no-validate`, with all passes, on graphs of {few:,} operators and of {TIMES * few:,}. Written by

```sh
# not run by the tests: takes long
{arguments.command}
```

{paragraph(about)}

| graph | {few:,}, s | {TIMES * few:,}, s | ratio |
|---|---:|---:|---:|
{chr(10).join(rows)}
"""
        arguments.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
