"""What Hydra is given of ours: ``hydra/sweeper=grids``, and ``hydra/launcher=stacked``, ``slurm`` and ``local``.

- `settings`: from a composed configuration to a run; `jobs`: a sweep's runs from what was typed; `grids`: a union of
  grids.
- `sweeper` and `launcher`: the two plugins that need nothing else. Start with `jobs`.
- `submitted`: the launchers that hand stacks to submitit (``README.md`` beside this says how they are used): `stacks`,
  which runs make a job; `submission`; `on_slurm` and `on_this_machine`, which wait; `work`, what a job does.

Imported as ``hydra_plugins.gruclip``, for Hydra instantiates plugins from that namespace only. May import `training`
and what is below it; `cli` is above.
"""
