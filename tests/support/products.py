"""The arithmetic of a compiled program's matrix products."""

import math
import re

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+)(?: \(.*)? \{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$")
_DOT = re.compile(r"(?:dot|custom-call\S*matmul)\((.*?)\)")


def products(text, examples, features, classes):
    """How many products of that size they amount to, those in loops counted each time."""
    return as_often_as_it_runs(text, _multiplications) / (examples * features * classes)


def as_often_as_it_runs(text, count):
    """The sum of ``count(lines)`` over the computations of compiled HLO, loops counted each time.

    Of the branches of a condition the largest counts.
    """
    computations = _computations(text)

    def of(name):
        total = count(computations[name])
        for line in computations[name]:
            times = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for called in re.findall(r"(?:body|calls|to_apply)=%?([\w.-]+)", line):
                if called in computations:
                    total += int(times[1] if times else 1) * of(called)
            if branches := re.search(r"branch_computations=\{(.*?)\}", line):
                names = re.findall(r"[\w.-]+", branches[1])
            else:
                names = re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line)
            total += max(map(of, names), default=0)
        return total

    return of(re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)[1])


def _computations(text):
    found = {}
    for block in re.split(r"\n(?=\S)", text):
        lines = block.splitlines()
        if name := _COMPUTATION.match(lines[0]):
            found[name[1]] = lines[1:]
    return found


def _multiplications(lines):
    shapes, total = {}, 0
    for line in lines:
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
    return total


def _shape(instruction):
    shape = re.match(r"\w+\[([\d,]*)\]", instruction)
    return [int(n) for n in shape[1].split(",") if n] if shape else [0]
