"""The paper's two models, and their losses, as functions on the stacked parameters of several runs.

- `stacked`: initial weights, dropout, and the negative log-likelihood of a window; start here.
- `cells`: the recurrent layers that a model can have; `losses`: softmax and logistic output layers.
- `evaluation`: the loss on all of a split; `sampling`: a sequence continued by a model.
- `width`: layers stored some units wider, for a GPU's products.
- `device`: where and in which numbers a run computes.

May import `data`, `config`, and the library's floor (`gru`, `layers`, `dynamics`, `kernels`).
"""
