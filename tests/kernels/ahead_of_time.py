"""Kernels compiled for GPUs that are not there, and what the machine code needs of them.

A `Specimen` names a kernel and the types and constants of one launch. A worker process compiles it
for sm_80 or sm_90: a process of its own, because the tests' own one has TRITON_INTERPRET=1, under
which `@triton.jit` makes no function that can be compiled. Neither step needs a driver or a GPU.

Where the figures come from (triton 3.9, the wheel alone):
    shared     `metadata.shared` of the compiled kernel, bytes a program
    registers  a thread's, from the log of the `ptxas -v` that Triton runs itself and prints under
    spills     TRITON_DUMP_PTXAS_LOG=1; spills are the bytes stored and loaded, a thread
`cuobjdump --dump-resource-usage` comes with the wheel and works too, but its STACK holds whatever
lies on the stack, and its SHARED is 0: Triton's shared memory is sized at the launch. A launch also
knows more than the types: Triton compiles anew for pointers and integers divisible by 16. Pointers
count as such here, since PyTorch's are; an integer does where its type says so: `"i32:16"`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Specimen:
    """One launch of a kernel: `signature` has its tensors and numbers, `constexprs` the rest."""

    kernel: str  # "memarch.kernels.rms_norm.triton_kernels:_forward"
    signature: dict[str, str]  # {"x": "*bf16", "rows": "i32", "stride": "i64:16", "eps": "fp32"}
    constexprs: dict[str, Any] = field(default_factory=dict)  # {"BLOCK": 64, "bias": None}
    num_warps: int = 4
    num_stages: int = 3

    def __str__(self) -> str:
        types = ",".join(kind for kind in self.signature.values() if kind.startswith("*"))
        sizes = ",".join(f"{name}={value}" for name, value in self.constexprs.items())
        return f"{self.kernel.rpartition(':')[2]}[{types}][{sizes}]"


@dataclass(frozen=True)
class Resources:
    """Registers and bytes of spills a thread, bytes of shared memory a program."""

    registers: int
    spills: int
    shared: int


class Compiler:
    """The worker process. It starts with the first specimen and ends with `close`."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._worker: subprocess.Popen[str] | None = None
        self._known: dict[str, Resources] = {}

    def __call__(self, specimen: Specimen, arch: int) -> Resources:
        """The resources on sm_`arch`; RuntimeError with the worker's traceback if it fails."""
        request = json.dumps({"arch": arch, **dataclasses.asdict(specimen)})
        if request not in self._known:
            answer = json.loads(self._ask(request))
            if "error" in answer:
                raise RuntimeError(f"{specimen} does not compile for sm_{arch}:\n{answer['error']}")
            self._known[request] = Resources(**answer)
        return self._known[request]

    def _ask(self, request: str) -> str:
        if self._worker is None:
            environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            environment |= {
                "TRITON_CACHE_DIR": str(self._cache),
                "TRITON_ALWAYS_COMPILE": "1",  # a kernel from the cache comes without a log
                "TRITON_DUMP_PTXAS_LOG": "1",
                "TRITON_DEFAULT_FP_FUSION": "1",
            }
            self._worker = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(request + "\n")
        self._worker.stdin.flush()
        answer = self._worker.stdout.readline()
        if not answer:
            raise RuntimeError(f"the compiler process ended at {request}")
        return answer

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.communicate()


def _compile(
    arch: int,
    kernel: str,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    num_warps: int,
    num_stages: int,
) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = kernel.partition(":")
    with contextlib.redirect_stdout(sys.stderr):
        function = getattr(importlib.import_module(module), name)
    while not isinstance(function, triton.JITFunction):  # below autotune and heuristics
        function = function.fn
    given, wanted = {*signature, *constexprs}, set(function.arg_names)
    if given != wanted or len(given) != len(signature) + len(constexprs):
        raise ValueError(
            f"{kernel} takes {function.arg_names}: missing {sorted(wanted - given)}, "
            f"unknown {sorted(given - wanted)}, twice {sorted({*signature} & {*constexprs})}"
        )
    types = {name: signature.get(name, "constexpr") for name in function.arg_names}
    source = ASTSource(
        function,
        {name: kind.removesuffix(":16") for name, kind in types.items()},
        constexprs,
        {
            (index,): [["tt.divisibility", 16]]
            for index, kind in enumerate(types.values())
            if kind.startswith("*") or kind.endswith(":16")
        },
    )
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", arch, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log.getvalue())
    if registers is None or not spills:
        raise ValueError(f"ptxas's log names no registers or spills:\n{log.getvalue()}")
    return Resources(int(registers[1]), sum(map(int, spills)), compiled.metadata.shared)


def _serve() -> None:
    """A request a line, an answer a line."""
    answers = sys.stdout
    for line in sys.stdin:
        try:
            answer = dataclasses.asdict(_compile(**json.loads(line)))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
