"""Compiled kernels for the CPU, and the layers built on them; optional (see `gruclip.native.kernels`)."""
