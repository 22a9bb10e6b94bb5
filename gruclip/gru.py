"""The paper's GRU: reset gate before the recurrent product.

    r_t = sigmoid(W_xr x_t + W_hr h_{t-1})
    z_t = sigmoid(W_xz x_t + W_hz h_{t-1})
    c_t = tanh(W_xh x_t + W_hh (r_t * h_{t-1}))
    h_t = z_t * h_{t-1} + (1 - z_t) * c_t

`torch.nn.GRU` and cuDNN compute another cell, ``tanh(W_xh x_t + r_t * (W_hh h_{t-1}))``.

Weights are stacked as torch stacks them, gates in the order r, z, n (n is the candidate c):
``weight_ih`` (3n, k) = [W_xr; W_xz; W_xh], ``weight_hh`` (3n, n) = [W_hr; W_hz; W_hh].

`plain_gru` reads like the equations and is differentiated by autograd. `gru_layer` is the fast one:
its own forward and backward, no autograd graph per step, and one product over all steps for each
gradient that does not recur. A float64 test holds the two together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gruclip.errors import UserError
from gruclip.kernels import derivatives, dropout, gru_operator
from gruclip.kernels.gru_layer import Inputs


def plain_gru(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """One layer of the paper's GRU, equation by equation; the specification of `gru_layer`.

    Shapes, with R runs side by side: x (R, T, B, k), h0 (R, B, n), weight_ih (R, 3n, k), weight_hh
    (R, 3n, n), bias (R, 3n), keep (R, T, B) or broadcastable to it, zero where the state is reset
    before the step. Returns the states h_1 ... h_T, (R, T, B, n). The cell of Kanai, Fujiwara and Iwamura
    (2017).
    """
    W_xr, W_xz, W_xh = weight_ih.mT.chunk(3, dim=-1)
    W_hr, W_hz, W_hh = weight_hh.mT.chunk(3, dim=-1)
    b_r, b_z, b_h = (0.0, 0.0, 0.0) if bias is None else bias.unsqueeze(1).chunk(3, dim=-1)
    h, states = h0, []
    for t in range(x.shape[1]):
        x_t = x[:, t]
        if keep is not None:
            h = h * keep[:, t].unsqueeze(-1)
        r = torch.sigmoid(x_t @ W_xr + h @ W_hr + b_r)
        z = torch.sigmoid(x_t @ W_xz + h @ W_hz + b_z)
        c = torch.tanh(x_t @ W_xh + (r * h) @ W_hh + b_h)
        h = z * h + (1 - z) * c
        states.append(h)
    return torch.stack(states, dim=1)


def gru_layer(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
    compute: torch.dtype | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`plain_gru` of ``x * mask``, fast. `compute` is the dtype of the products' operands (None: that of the weights).

    mask (R, T, B, k): dropout's factors. Cost, forward and backward: 9 T B n (n + k) multiply-adds a run, 6 T B n**2
    of them in sequence; 6 T B n k of them need not be done for what the mask sets to zero, and on the CPU are not.
    Under torch's transforms nothing is skipped. Raises `UserError` where second or forward-mode derivatives are asked
    for, which `plain_gru` has.
    """
    if x.shape[2] == 0:  # no rows
        return plain_gru(x if mask is None else x * mask, h0, weight_ih, weight_hh, bias, keep)
    if mask is not None and not _skips(mask, compute, x, h0, weight_ih, weight_hh):
        x, mask = x * mask, None
    keep = None if keep is None else keep.expand(x.shape[:-1])
    return gru_operator.layer(Inputs(x, h0, weight_ih, weight_hh, bias, keep, mask), compute)


def _skips(mask: Tensor, compute: torch.dtype | None, x: Tensor, *others: Tensor) -> bool:
    """Whether what the mask sets to zero is left out of the products."""
    if derivatives.is_transformed() or x.shape[0] > 1 or compute not in (None, torch.float32):
        return False
    return dropout.pays(mask, x, *others)


class GRU(nn.Module):
    """The paper's GRU with `torch.nn.GRU`'s call, shapes and parameter names.

    Input (T, B, k), or (B, T, k) with ``batch_first``, or (T, k) unbatched; hx, the states before it, (num_layers, B,
    n), or (num_layers, n) unbatched, zero where it is not given. Returns the last layer's states (T, B, n) and every
    layer's last one (num_layers, B, n). Parameters ``weight_ih_l0`` (3n, k), ``weight_hh_l0`` (3n, n), ``bias_ih_l0``
    and ``bias_hh_l0`` (3n,), gates in the order r, z, n; the candidate's two biases are added, so that ``bias_hh`` is
    no part of the reset product. Initial weights as torch's: uniform in +-1/sqrt(n).

    Under `torch.autocast` the products' operands are of its dtype, and states and results of the parameters'.

    Under `torch.compile` (``fullgraph=True``, dynamic shapes) and `torch.export` a layer is the operator
    ``gruclip::gru_layer``, with the bits of a plain call; dropout's masks are a plain call's too for the same seed, but
    inductor's own without ``torch._inductor.config.fallback_random``. A process that loads an exported program makes
    the operator known by ``from gruclip import GRU``; ``import gruclip`` alone loads nothing. `torch.func` takes it:
    `functional_call`, `grad`, `vmap` over stacked parameters, inputs or both, `jacrev`, one in the other; in a compiled
    function these are left to Python, which ``fullgraph=True`` refuses. First derivatives in reverse mode only:
    ``create_graph=True``, `hessian`, `jvp` raise `UserError`, and so do packed, nested and sparse sequences, wrong
    shapes, dtypes and devices.

    >>> gru = GRU(3, 5, num_layers=2)
    >>> states, last = gru(torch.zeros(7, 4, 3))
    >>> states.shape, last.shape
    (torch.Size([7, 4, 5]), torch.Size([2, 4, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if bidirectional:
            raise UserError("bidirectional=True: gruclip.GRU runs in one direction; make two of them")
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise UserError(f"{name}={size!r}: should be a whole number of at least 1")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
            raise UserError(f"dropout={dropout!r}: should be a number from 0 to 1")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise UserError(f"dtype={dtype!r}: should be a floating dtype, e.g. torch.float32")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, False
        for layer in range(num_layers):
            for name, shape in self._shapes(layer).items():
                self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """A layer's parameters: weight_ih and weight_hh, and with biases bias_ih and bias_hh."""
        rows, k = 3 * self.hidden_size, self.input_size if layer == 0 else self.hidden_size
        shapes = {"weight_ih": (rows, k), "weight_hh": (rows, self.hidden_size)}
        biases = {"bias_ih": (rows,), "bias_hh": (rows,)} if self.bias else {}
        return {f"{name}_l{layer}": shape for name, shape in (shapes | biases).items()}

    def reset_parameters(self) -> None:
        """Draw all weights and biases anew, uniform in +-1/sqrt(n)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing to do; here because `torch.nn.GRU` has it."""

    def extra_repr(self) -> str:
        """What stands between the parentheses of ``print(gru)``."""
        options = f"bias={self.bias}, batch_first={self.batch_first}, dropout={self.dropout}"
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, {options}"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The last layer's states and each layer's last one; shapes and errors as the class says."""
        weights = self._weights()
        x, h_0, compute = self._arguments(input, hx, like=weights[0][1])
        last = []
        with derivatives.without_autocast(x.device):  # it is in `compute`; it stacks no states of another 16 bits
            for layer, parameters in enumerate(weights):
                if layer > 0 and self.dropout > 0:
                    x = nn.functional.dropout(x, self.dropout, self.training)
                x = gru_layer(x.unsqueeze(0), h_0[layer].unsqueeze(0), *parameters, compute=compute).squeeze(0)
                last.append(x[-1])
            h_n = torch.stack(last)
        if input.dim() == 2:
            return x.squeeze(1), h_n.squeeze(1)
        return (x.transpose(0, 1) if self.batch_first else x), h_n

    def _arguments(self, input: Tensor, hx: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor, torch.dtype | None]:
        """The input (T, B, k), the states before it (num_layers, B, n), and the dtype of the products' operands.

        Raises `UserError` where they do not fit the module or a weight, `like`.
        """
        _check_dense("input", input)
        if hx is not None:
            _check_dense("hx", hx)
        layout = "(T, k)" if input.dim() == 2 else "(B, T, k)" if self.batch_first else "(T, B, k)"
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            raise UserError(f"input of shape {tuple(input.shape)}: should be {layout} with k = {self.input_size}")
        batched = input.dim() == 3
        x = input.unsqueeze(1) if not batched else input.transpose(0, 1) if self.batch_first else input
        if x.shape[0] == 0:
            raise UserError(f"input of shape {tuple(input.shape)}: should have at least one step, {layout}")
        expected = (self.num_layers, *((x.shape[1],) if batched else ()), self.hidden_size)
        if hx is None:
            hx = like.new_zeros(expected)
        elif tuple(hx.shape) != expected:
            raise UserError(f"hx of shape {tuple(hx.shape)}: should be {expected}")
        compute, device = None, like.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            compute = torch.get_autocast_dtype(device)
            x, hx = x.to(like.dtype), hx.to(like.dtype)
        for name, tensor in (("input", x), ("hx", hx)):
            if tensor.dtype != like.dtype:
                raise UserError(f"{name} of {tensor.dtype}: should be of the parameters' {like.dtype}")
            if tensor.device != like.device:
                raise UserError(f"{name} on {tensor.device}: should be on the parameters' {like.device}")
        return x, hx if batched else hx.unsqueeze(1), compute

    def _weights(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Each layer's weight_ih, weight_hh and bias as of one run. Raises `UserError` where one does not fit."""
        weights: list[tuple[Tensor, Tensor, Tensor | None]] = []
        dtype: torch.dtype | None = None
        for layer in range(self.num_layers):
            read = []
            for name, shape in self._shapes(layer).items():
                one = getattr(self, name)  # once, since parametrizations compute it
                dtype = dtype or one.dtype
                if not dtype.is_floating_point:
                    raise UserError(f"parameters of {dtype}: should be of a floating dtype")
                if one.dtype != dtype:
                    raise UserError(f"{name} of {one.dtype}: should be of {dtype}, as weight_ih_l0 is")
                if one.shape != shape:
                    raise UserError(f"{name} of shape {tuple(one.shape)}: should be {shape}")
                read.append(one)
            bias = (read[2] + read[3]).unsqueeze(0) if self.bias else None
            weights.append((read[0].unsqueeze(0), read[1].unsqueeze(0), bias))
        return weights


def _check_dense(name: str, argument: object) -> None:
    """Raises `UserError` for what is not a dense tensor: packed or nested sequences, tuples, arrays."""
    if not isinstance(argument, Tensor):
        kind = type(argument).__name__
    elif argument.is_nested or argument.layout != torch.strided:
        kind = "nested tensor" if argument.is_nested else f"tensor of layout {argument.layout}"
    else:
        return
    raise UserError(f"{name} is a {kind}, which gruclip.GRU does not take; pass a dense tensor, padded")
