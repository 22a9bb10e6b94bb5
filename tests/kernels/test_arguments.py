"""No call of a kernel reads or writes outside its tensors: what a kernel needs is refused where it is not there.

The tests run in processes of their own, whose end by a signal is a failure and not the end of the tests.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

from gruclip.kernels.arguments import KERNELS

#: Counts, flags and tensors of a call that is right, of random sizes; a matrix has room between its elements or none.
MADE = """
import ctypes, mmap, random
import torch
from hypothesis import given, settings, strategies as st
from gruclip.kernels import compiled
from gruclip.kernels.arguments import KERNELS

assert compiled.library() is not None

def layout_of(name, picked):
    kernel = KERNELS[name]
    while True:
        counts = [picked.randint(0, 40) for _ in kernel.counts]
        flags = [picked.randint(1, 2) if flag == "threads" else picked.randint(0, 1) for flag in kernel.flags]
        if not kernel.allows(*counts, *flags):
            continue
        layouts = kernel.layouts(*counts)
        if all(isinstance(one, int) or possible(*one) for one in layouts):
            return counts, flags, layouts

def possible(shape, strides):
    # One of the axes has room for the other, or a matrix that is written to would overlap itself.
    (m, n), (down, across) = shape, strides
    return min(strides) > 0 and (down >= n * across or across >= m * down)

def span(layout):
    if isinstance(layout, int):
        return layout
    shape, strides = layout
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides)) if min(shape) else 0

def type_of(name, index, flags):
    dtype = KERNELS[name].dtypes[index]
    return dtype[flags[0]] if isinstance(dtype, tuple) else dtype
"""

#: Each tensor ends where a page begins that nobody may touch, or begins where such a page ends.
GUARDED = """
libc = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE

def guarded(layout, dtype, at_end):
    bytes_ = span(layout) * dtype.itemsize
    pages = max(1, -(-bytes_ // PAGE))
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        assert libc.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0) == 0
    offset = PAGE + (pages * PAGE - bytes_ if at_end else 0)
    if not bytes_:
        empty = torch.empty(0, dtype=dtype)
        return empty if isinstance(layout, int) else empty.as_strided(*layout)
    flat = torch.frombuffer(memory, dtype=dtype, count=span(layout), offset=offset)
    flat.copy_(torch.randn(span(layout)).to(dtype) if dtype.is_floating_point else torch.zeros(span(layout)))
    return flat if isinstance(layout, int) else flat.as_strided(*layout)

@settings(deadline=None, max_examples=EXAMPLES, derandomize=True, database=None)
@given(st.sampled_from(NAMES), st.integers(0, 2**31), st.booleans())
def call(name, seed, at_end):
    picked = random.Random(seed)
    torch.manual_seed(seed)
    counts, flags, layouts = layout_of(name, picked)
    tensors = []
    for index, layout in enumerate(layouts):
        leave_out = KERNELS[name].optional[index] and picked.random() < 0.5
        tensors.append(None if leave_out else guarded(layout, type_of(name, index, flags), at_end))
    compiled.call(name, tensors, counts, *flags)

call()
print("done")
"""

#: One thing about a call is wrong.
WRONG = """
def altered(tensor, layout, picked):
    other = picked.choice([d for d in (torch.float32, torch.float64, torch.int16) if d is not tensor.dtype])
    ways = [tensor.to(other), tensor.to("meta")]
    ways.append(torch.zeros(tensor.numel() + picked.randint(1, 50), dtype=tensor.dtype))
    if tensor.numel():
        ways.append(torch.zeros(picked.randrange(tensor.numel()), dtype=tensor.dtype))
    if isinstance(layout, int) and layout > 1:
        ways.append(torch.zeros(2 * layout, dtype=tensor.dtype)[::2])
        ways.append(torch.zeros(1, dtype=tensor.dtype).expand(layout))
    if isinstance(layout, tuple):
        (m, n), (down, across) = layout
        ways.append(torch.zeros(m + 1, n, dtype=tensor.dtype))
        ways.append(torch.zeros(1, dtype=tensor.dtype).as_strided((m, n), (0, 0)))
    return picked.choice(ways)

@settings(deadline=None, max_examples=EXAMPLES, derandomize=True, database=None)
@given(st.sampled_from(NAMES), st.integers(0, 2**31))
def call(name, seed):
    picked = random.Random(seed)
    counts, flags, layouts = layout_of(name, picked)
    tensors = [torch.zeros(max(1, span(one)), dtype=type_of(name, i, flags)) for i, one in enumerate(layouts)]
    tensors = [t[:one] if isinstance(one, int) else t.as_strided(*one) for t, one in zip(tensors, layouts)]
    index = picked.randrange(len(tensors))
    argument = list(KERNELS[name].tensors)[index].removesuffix("?")
    way = picked.choice(("tensor", "tensor", "none", "count", "threads", "number"))
    if way == "tensor":
        tensors[index] = altered(tensors[index], layouts[index], picked)
    elif way == "none" and not KERNELS[name].optional[index]:
        tensors[index] = None
    elif way == "count":
        changed = picked.randrange(len(counts))
        argument, counts[changed] = "", picked.choice((-1, counts[changed] + 1, 2 * counts[changed] + 7, 10**9))
        new = KERNELS[name].layouts(*counts)
        if new == layouts:
            return
    elif way == "threads" and "threads" in KERNELS[name].flags:
        argument, flags[KERNELS[name].flags.index("threads")] = "threads", picked.choice((0, -1))
    else:
        argument = ""
        picked.choice((tensors, counts)).pop()
    try:
        compiled.call(name, tensors, counts, *flags)
    except ValueError as error:
        assert name in str(error) and argument in str(error), error
    else:
        raise AssertionError(f"{name} took {way} {argument}: {counts} {flags}")

call()
print("done")
"""


def ended(code: str, examples: int) -> subprocess.CompletedProcess[str]:
    """The end of a process with this code."""
    numbers = f"EXAMPLES, NAMES = {examples}, {sorted(KERNELS)}"
    return subprocess.run([sys.executable, "-c", "\n".join((numbers, MADE, code))], capture_output=True, text=True)


def test_no_kernel_touches_what_lies_before_or_behind_its_tensors() -> None:
    done = ended(GUARDED, 1500)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-3000:]


def test_a_tensor_or_a_number_that_is_wrong_is_refused_and_named() -> None:
    done = ended(WRONG, 3000)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-3000:]


def test_a_table_that_asks_for_too_little_would_be_found() -> None:
    """The guard that the first test relies on: a result of one row less, and the process ends by a signal."""
    lax = textwrap.dedent("""
        kernel = KERNELS["gruclip_gram"]
        kernel.layouts = lambda m, q: (max(0, q * q - q), m * q)
        NAMES = ["gruclip_gram"]
    """)
    assert ended(lax + GUARDED, 200).returncode < 0
