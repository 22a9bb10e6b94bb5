"""Everything that is only there for speed: without this room gruclip would compute the same, slower.

- `compiled`: loads the C++ beside it (``*.cpp``), and makes the calls; `arguments`: what each takes, checked.
- `build`: compiles it, on first use or for a wheel; `cache`: where that is kept, and whether to trust it.
- `products`: which matrix product is the fastest here; `dropout`: those that skip what dropout set to zero.
- `gru_layer`: the paper's GRU, forward and backward; `gru_steps`: its recurrence; `gru_operator`: a differentiable
  layer of it, also under torch's transforms; `derivatives`: what autograd functions with their own derivatives share.
- `fused`: what Triton's kernels (`fused_triton`, `gru_steps_triton`) do in one pass on a GPU; `program`
  (`program_triton`): what the projection does there to a few columns.
- `graphs`: an iteration captured as CUDA graphs; `memory`: freed arrays kept.

Imports torch and the standard library, Triton where a GPU has it, and of gruclip `errors` alone. Start with
``README.md`` beside this file, then `compiled`. Each fast function names the plain one that specifies it, and a test
holds the two together.
"""
