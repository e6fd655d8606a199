"""Less work for each of the many small programs that tests compile and run once.

An empty context of MLIR takes a quarter of the time in which JAX compiles a small program: all
operations of its dialects are registered anew for every one. A context can hold many programs.
What they define stays in it, so there is a new one from time to time.

Traced and compiled programs stay alive: to go through all of them again and again for cycles takes
a fifth of the time.
"""

import gc
import os

import jax
from jax._src.interpreters import mlir

PROGRAMS_OF_A_CONTEXT = 200


def _shared(make):
    """Contexts as `make` makes them, each for many programs."""
    made, uses = None, 0

    def context():
        nonlocal made, uses
        if uses % PROGRAMS_OF_A_CONTEXT == 0:
            made = make()
        uses += 1
        return made

    return context


def install():
    """Share contexts, seldom look for cycles, and digest no program for a cache on disk that nobody
    asked for."""
    gc.set_threshold(100_000, 50, 1_000_000)
    if hasattr(mlir, "make_ir_context"):  # No part of JAX's public face.
        mlir.make_ir_context = _shared(mlir.make_ir_context)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_enable_compilation_cache", False)
