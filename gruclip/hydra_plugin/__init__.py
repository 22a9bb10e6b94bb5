"""What Hydra is given: a sweeper for unions of grids, and a launcher that trains all runs in one process.

The folder is installed as ``hydra_plugins.gruclip``, the only namespace from which Hydra instantiates plugins.
"""
