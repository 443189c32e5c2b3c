"""The arithmetic of a compiled program's matrix products."""

import math
import re

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+)(?: \(.*)? \{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$")
_DOT = re.compile(r"(?:dot|custom-call\S*matmul)\((.*?)\)")


def products(text, examples, features, classes):
    """How many products of that size they amount to, those in loops counted each time."""
    computations = computations_of(text)
    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)[1]
    return _multiplications(computations, entry) / (examples * features * classes)


def computations_of(text):
    """The lines of each computation of compiled HLO."""
    found = {}
    for block in re.split(r"\n(?=\S)", text):
        lines = block.splitlines()
        if name := _COMPUTATION.match(lines[0]):
            found[name[1]] = lines[1:]
    return found


def _multiplications(computations, name):
    shapes, total = {}, 0
    for line in computations[name]:
        if not (instruction := _INSTRUCTION.match(line)):
            continue
        target, rest = instruction.groups()
        shapes[target] = _shape(rest)
        if dot := _DOT.search(rest):
            a, b = (shapes[operand] for operand in re.findall(r"%([\w.-]+)", dot[1]))
            batch = re.search(r"lhs_batch_dims=\{([\d,]+)\}", rest)
            number = math.prod(a[int(i)] for i in batch[1].split(",")) if batch else 1
            # Of so many matrices [m, k] and [k, n], whose products are [m, n].
            total += math.isqrt(math.prod(a) * math.prod(b) * math.prod(shapes[target]) // number)
        times = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
        for called in re.findall(r"(?:body|calls|to_apply)=%?([\w.-]+)", rest):
            if called in computations:
                total += int(times[1] if times else 1) * _multiplications(computations, called)
        if branches := re.search(r"branch_computations=\{(.*?)\}", rest):
            names = re.findall(r"[\w.-]+", branches[1])
        else:
            names = re.findall(r"(?:true|false)_computation=%?([\w.-]+)", rest)
        total += max((_multiplications(computations, branch) for branch in names), default=0)
    return total


def _shape(instruction):
    shape = re.match(r"\w+\[([\d,]*)\]", instruction)
    return [int(n) for n in shape[1].split(",") if n] if shape else [0]
