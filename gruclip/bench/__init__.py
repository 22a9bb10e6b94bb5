"""Measurements against peers, side by side in one process: ``gruclip bench projection | gru | step | ...``.

- `projection` (with `grid`, `projection_stacks`, `projection_figure`), `gru`, `step`, `transformer`, `stack`, `sweep`:
  a bench each, with its command line.
- `options`, `timing` (rounds in an order of their own) and `output`: what they share.
- `peers`, `keras_peer` and `projection_peers`: what others would write; `floor`: what the machine could do at best;
  `budget`: what an iteration on a GPU should take.
- `gpu`: the stages of ``scripts/gpu`` on a lent card: `gpu_probe` asks it, `gpu_check` tests it, `gpu_study` trains the
  `gpu_runs`.
- `revisions`: this checkout beside another one, which `revision_work` runs.
- `sequences`: matrices before clipping, made; `recorded`: those of runs; `agreement`: training by ``auto`` against
  ``full``.

Start with `timing` and `step`. May import every room but `hydra_plugin` and `cli`. ``README.md`` and ``projection.md``
have the results.
"""
