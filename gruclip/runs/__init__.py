"""A run's folder: what is written into it while it is trained, and what is read back from it.

- `folder`: `RunFolder`, its name, its lock, its CSV files; start here. ``outputs/README.md`` describes each file.
- `checkpoints`: tensors and progress in one file; `records`: configuration and summary.
- `environment`: machine, versions, revision, kernels; `loggers`: TensorBoard, MLflow, Weights and Biases.
- `trained`: a finished run's model, loaded or evaluated.

May import `model`, `data`, `config` and the library's floor; knows nothing of how a run is trained.
"""
