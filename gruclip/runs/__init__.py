"""A run's folder: what is written into it while it is trained, and what is read back from it.

- `folder`: `RunFolder`, its lock, its CSV files; start here. ``outputs/README.md`` describes each file. `names`: what a
  folder is called.
- `checkpoints`: tensors and progress in one file; `records`: configuration and summary; `files`: how all are written.
- `ownership`: one process at a time writes a folder, on all hosts; `sweeps`: what was going to be trained; `scheduler`:
  what SLURM knows of both.
- `sums` and `verify`: whether a run is still what was written.
- `environment`: machine, versions, revision, kernels; `loggers`: TensorBoard, MLflow, Weights and Biases.
- `trained`: a finished run's model, loaded or evaluated; `sample`: text and tunes drawn from it.

May import `model`, `data`, `config` and the library's floor; knows nothing of how a run is trained.
"""
