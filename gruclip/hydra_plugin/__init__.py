"""What Hydra is given of ours: ``hydra/sweeper=grids`` and ``hydra/launcher=stacked``.

- `settings`: from a composed configuration to a run; `jobs`: a sweep's runs from what was typed; `grids`: a union of
  grids.
- `sweeper` and `launcher`: the two plugins. Start with `jobs`.

Imported as ``hydra_plugins.gruclip``, for Hydra instantiates plugins from that namespace only. May import `training`
and what is below it; `cli` is above.
"""
