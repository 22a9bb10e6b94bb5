"""The Triton kernels compile to machine code for an H100, which the interpreter does not show.

Without a GPU, by the compilers that Triton's wheel holds, in a process where nothing is interpreted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from gruclip.kernels import fused

COMPILE = r"""
    import pathlib
    import re
    import subprocess
    import sys
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource
    from gruclip.kernels import fused

    INTEGERS = ["rows", "words", "target_stride", "numbers", "threshold", "size", "step", "steps", "batch", "n"]
    TYPES = {**dict.fromkeys(INTEGERS, "i32"), "factor": "fp32", "targets": "*i64", "seeds": "*i64"}
    TYPES |= {"width": "i32", "norms": "*fp64"}
    #: Arrays that are float32 or bf16.
    EITHER = ["logits", "out", "gradient", "copy", "rh", "after", "d_gates", "d_candidate", "before", "array", "h"]
    EITHER += ["weight"]

    def compile(name, low, options=None, kept=None, others=(), card=90, **constants):
        kernel = fused._kernels()[name]
        types = {argument: "*fp32" for argument in kernel.arg_names} | dict.fromkeys(EITHER, low) | TYPES
        types |= dict.fromkeys(["d_gates", "d_candidate"], kept or low) | dict(others)
        signature = {argument: types[argument] for argument in kernel.arg_names}
        signature |= dict.fromkeys(constants, "constexpr")
        places = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
        target = GPUTarget("cuda", card, 32)
        # As torch hands out memory.
        aligned = [place for place, argument in enumerate(kernel.arg_names) if signature[argument][0] == "*"]
        attributes = {(place,): [["tt.divisibility", 16]] for place in aligned}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=attributes)
        compiled = triton.compile(source, target=target, options=options)
        print(name, low, constants, len(compiled.asm["cubin"]))
        return compiled

    for low in ("*fp32", "*bf16"):
        for flag in (False, True):
            compile("softmax_nll", low, GRADIENT=flag, BLOCK=16384)
            compile("update", low, COPY=flag, BLOCK=1024)
            for name in ("gates_of_step", "state_of_step", "candidate_gradient", "reset_gradient"):
                compile(name, low, KEEP=flag, BLOCK=256)
        compile("random_factors", low, BLOCK=1024)
        compile("row_norms", low, BLOCKS=10, BLOCK=1024)
    for name in (
        "gates_by_product", "state_by_product", "reset_gradient_by_product", "candidate_gradient_by_product"
    ):
        blocks = dict(fused.PRODUCT_BLOCKS)
        options = {option: blocks.pop(option) for option in ("num_warps", "num_stages")}
        for n, width in ((656, 16), (650, 4), (5, None)):
            # Of a layer with biases the gradients are float32, which the products round.
            kept = "*fp32" if n == 5 else "*bf16"
            made = compile(name, "*bf16", options, kept, n=n, KEEP=n == 656, ROWS=32, WIDE=False, **blocks)
            # Through a pipeline, as wide as the rows of the weights lie, to the tensor cores.
            copies = re.findall(r"cp\.async\.c.\.shared\.global .*, 0x([0-9]+),", made.asm["ptx"])
            assert width is None or copies, (name, n)
            assert all(int(copy, 16) >= (width or 4) for copy in copies), (name, n, copies)
            assert "mma.sync" in made.asm["ptx"], name
    def spilled(made, card):
        # Bytes that do not fit into the registers.
        ptx = pathlib.Path(sys.argv[1], "kernel.ptx")
        ptx.write_text(made.asm["ptx"])
        command = [get_ptxas(card).path, "-v", f"--gpu-name={'sm_90a' if card == 90 else f'sm_{card}'}", ptx]
        told = subprocess.run([*command, "-o", f"{ptx}.cubin"], capture_output=True, text=True, check=True).stderr
        return int(re.search(r"([0-9]+) bytes spill stores", told)[1])

    for card in (80, 90):
        for COLUMNS, ROWS, sides, EXACT in (
            (64, 64, (656, 1), False), (16, 16, (1, 656), False), (128, 64, (1, 656), False), (64, 64, (656, 1), True)
        ):
            places = dict(zip(("row_stride", "term_stride"), sides))
            made = compile(
                "thin_product", "*fp32", {"num_warps": 4, "num_stages": 4}, card=card, rows=656, terms=656, **places,
                SCALED=True, FACTOR=2.0, BASE=True, BEFORE=True, EXACT=EXACT, COLUMNS=COLUMNS, WIDTH=min(COLUMNS, 64),
                ROWS=ROWS, TERMS=32,
            )
            copies = re.findall(r"cp\.async\.c.\.shared\.global .*, 0x([0-9]+),", made.asm["ptx"])
            assert copies and set(copies) == {"10"}, copies
            kind = r"mma.*\.f64\.f64\.f64" if EXACT else r"mma.*\.f32\.tf32\.tf32"
            assert re.search(kind, made.asm["ptx"])
            assert spilled(made, card) == 0, (card, COLUMNS, EXACT)
        wide = dict.fromkeys(["x", "out", "matrix", "polynomials", "roots", "inverses", "logarithms"], "*fp64")
        gram = dict(COLUMNS=64, TILE=32, ROWS=32)
        # Beside a product of 64 x 64 in float64, which takes 2,000 cycles, some hundred bytes are nothing.
        for name, stages, others, constants, most in (
            ("inverse_factor", 3, wide, dict(UNIT=True, SHIFT=1e-11, LEAST=1e-60, Q=64), 0),
            ("column_gram", 3, {**wide, "x": "*fp32"}, dict(rows=656, row_stride=1, column_stride=656, **gram), 64),
            ("column_gram", 3, wide, dict(rows=64, row_stride=64, column_stride=1, **gram), 0),
            ("sign", 1, wide, dict(count=17, Q=64), 200),
            ("coupled_roots", 1, wide, dict(count=5, Q=64), 700),
            ("high_power", 3, wide, dict(squarings=14, LEAST=1e-300, Q=64), 0),
        ):
            options = {"num_warps": 4, "num_stages": stages}
            made = compile(name, "*fp32", options, others=others, card=card, **constants)
            assert re.search(r"mma.*\.f64\.f64\.f64", made.asm["ptx"]), name
            assert spilled(made, card) <= most, (name, card)
    # A size of 1 is no argument of a kernel but part of it.
    compile("update", "*fp32", size=1, COPY=False, BLOCK=1024)
    compile("softmax_nll", "*bf16", rows=1, target_stride=1, GRADIENT=True, BLOCK=16)
    print(sorted(name for name, kernel in fused._kernels().items() if hasattr(kernel, "arg_names")))
"""


@pytest.mark.xdist_group("long")  # begun first
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled by running them here")
def test_every_kernel_compiles_to_machine_code(tmp_path: Path) -> None:
    assert fused._installed(), "needs triton, of the dev extra: pip install triton==3.6.0"
    script = tmp_path / "compile.py"
    script.write_text(textwrap.dedent(COMPILE))
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    *compiled, all_of_them = done.stdout.splitlines()
    assert len(compiled) == 62
    assert all(int(line.split()[-1]) > 1000 for line in compiled)
    names = {line.split()[0] for line in compiled}
    assert {name for name in all_of_them.strip("[]").replace("'", "").split(", ") if name[0] != "_"} == names
