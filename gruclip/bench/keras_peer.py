"""What gruclip is measured against on JAX: Keras' ``GRU(reset_after=False)``, the paper's cell, compiled by XLA.

An optional extra: ``pip install 'gruclip[bench]'``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

MISSING = "Keras on JAX is not installed and was left out: pip install 'gruclip[bench]'"


def is_installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("keras", "jax"))


def _keras() -> tuple[Any, Any]:
    """Both modules, with as many threads of XLA's as torch has: it makes one for each core the process may use."""
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    if not hasattr(os, "sched_setaffinity"):
        jax.devices()
    else:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(cores)[: torch.get_num_threads()])
        try:
            jax.devices()
        finally:
            os.sched_setaffinity(0, cores)
    # absl, which comes with it, keeps the stderr that it finds and may close it, a notebook's or a test's too.
    with contextlib.redirect_stderr(sys.__stderr__):
        import keras

    return keras, jax


def notes() -> list[str]:
    """What a table should say where it is missing."""
    return [] if is_installed() else [MISSING]


def gru(keras: Any, n: int) -> Any:
    return keras.layers.GRU(n, return_sequences=True, return_state=True, reset_after=False, use_bias=False)


def layer_step(steps: int, batch: int, n: int) -> Callable[[], object]:
    """Forward and backward of one layer of n inputs and n units, its input's gradient included."""
    keras, jax = _keras()
    layer = gru(keras, n)
    rng = np.random.default_rng(0)
    x = jax.numpy.asarray(rng.standard_normal((batch, steps, n), dtype=np.float32))
    grad = jax.numpy.asarray(rng.standard_normal((batch, steps, n), dtype=np.float32))
    h = jax.numpy.zeros((batch, n))
    layer.build(x.shape)
    fixed = [variable.value for variable in layer.non_trainable_variables]

    def objective(weights: list[Any], x: Any) -> Any:
        (out, _), _ = layer.stateless_call(weights, fixed, x, initial_state=h)
        return (out * grad).sum()

    gradient = jax.jit(jax.grad(objective, argnums=(0, 1)))
    weights = [variable.value for variable in layer.trainable_variables]
    return lambda: jax.block_until_ready(gradient(weights, x))


def language_step(
    lanes: np.ndarray, vocabulary: int, steps: int, n: int, lr: float = 1.0, clip: float = 5.0
) -> Callable[[], float]:
    """A compiled training step on the next `steps` of the tokens (L, B); the loss in nats per token.

    Embedding, dropout, GRU with its state carried, dropout, softmax; the gradient clipped at the global norm
    `clip`; plain SGD. Weights are given up to the step that replaces them, as JAX' users do.
    """
    keras, jax = _keras()
    jnp = jax.numpy
    batch = lanes.shape[1]
    tokens, state = keras.Input((steps,), batch_size=batch, dtype="int32"), keras.Input((n,), batch_size=batch)
    x = keras.layers.Dropout(0.5)(keras.layers.Embedding(vocabulary, n)(tokens))
    x, after = gru(keras, n)(x, initial_state=state)
    model = keras.Model([tokens, state], [keras.layers.Dense(vocabulary)(keras.layers.Dropout(0.5)(x)), after])

    def objective(weights: list[Any], fixed: list[Any], data: Any, targets: Any, hidden: Any) -> Any:
        (logits, hidden), fixed = model.stateless_call(weights, fixed, [data, hidden], training=True)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
        return -picked.mean(), (fixed, hidden)

    def update(weights: list[Any], fixed: list[Any], data: Any, targets: Any, hidden: Any) -> Any:
        (loss, (fixed, hidden)), gradients = jax.value_and_grad(objective, has_aux=True)(
            weights, fixed, data, targets, hidden
        )
        norm = jnp.sqrt(sum((gradient**2).sum() for gradient in gradients))
        factor = lr * jnp.minimum(1.0, clip / norm)
        return [w - factor * g for w, g in zip(weights, gradients, strict=True)], fixed, hidden, loss

    compiled = jax.jit(update, donate_argnums=(0, 1, 4))
    weights = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]
    hidden = jnp.zeros((batch, n))
    start = 0

    def step() -> float:
        nonlocal weights, fixed, hidden, start
        window = lanes[start : start + steps + 1].T.astype(np.int32)
        data, targets = jnp.asarray(window[:, :-1]), jnp.asarray(window[:, 1:])
        weights, fixed, hidden, loss = jax.block_until_ready(compiled(weights, fixed, data, targets, hidden))
        start = start + steps if start + 2 * steps < len(lanes) else 0
        return float(loss)

    return step
