"""Equations of einsum layers, read as a matrix product."""

from __future__ import annotations

from string import ascii_letters
from typing import NamedTuple


class Labels(NamedTuple):
    """An equation 'inputs,kernel->output' whose kernel is a matrix between merged axes.

    Arguments:
        inputs, kernel, output: labels of the axes, ellipses written out.
        contracted: labels that inputs and kernel sum over.
        made: labels that the kernel alone brings into the output.
    """

    inputs: str
    kernel: str
    output: str
    contracted: str
    made: str


def labels_of(equation: str, inputs_ndim: int, kernel_ndim: int) -> Labels | str:
    """Read an equation of two operands; where it is no matrix product, what keeps it from one."""
    operands, _, output = equation.replace(" ", "").partition("->")
    inputs, _, kernel = operands.partition(",")
    if "..." in kernel or len(kernel) != kernel_ndim:
        return f"its equation {equation!r} has an ellipsis in the kernel"
    free = [letter for letter in ascii_letters if letter not in equation]
    more = "".join(free[: inputs_ndim - len(inputs.replace("...", ""))])
    inputs, output = inputs.replace("...", more), output.replace("...", more)
    repeated = any(len(set(labels)) < len(labels) for labels in (inputs, kernel, output))
    contracted = "".join(label for label in kernel if label in inputs and label not in output)
    made = "".join(label for label in kernel if label in output and label not in inputs)
    if repeated or len(contracted) + len(made) < len(kernel):
        return f"its equation {equation!r} is more than a matrix product"
    if any(label not in output for label in inputs if label not in contracted):
        return f"its equation {equation!r} sums its inputs"
    if not contracted or not made:
        return f"its equation {equation!r} has no axis to compress"
    return Labels(inputs, kernel, output, contracted, made)
