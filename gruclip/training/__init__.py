"""The runner: from a list of configurations to finished run folders.

In the order of a call: `runner` (`train`: checks, groups, hands out), `jobs` (a checked run), `capacity` (how many
fit), `workers` (a process for each core), `stack` (runs side by side, epoch after epoch), `active_run` (one of them and
its folder), `engine` (the batched program: forward, backward, update), `iteration` (what its phases hand on),
`operands` (weights rounded for products), `optimizers` and `projections` (the update), `widening` (of
subspaces), `schedule`, `explosions` and `progress` (what is kept of a run), `clock`, `display`, `interrupts`.

Start with `runner`, then `stack`; `engine` is the inner loop. May import every room but `report`, `bench`,
`hydra_plugin` and `cli`: ``train(runs)`` works from plain Python without Hydra or pandas.
"""
