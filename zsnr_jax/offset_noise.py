"""Offset noise: noise that shifts each channel of an image as a whole, besides each pixel of it.

    eps_hwc ~ N(strength d_c, 1),     d_c ~ N(0, 1), one number for all pixels of a channel

Over N pixels, the orthonormal DC coefficient, sum_hw eps_hwc / sqrt(N), has variance
1 + strength^2 N where white noise has 1; every other coefficient keeps its 1. So at each level the
signal-to-noise ratio of a channel's mean is lower by that factor: 42 at 64 x 64 pixels with the
paper's strength of 0.1. A network trained so learns not to take the mean of its input for that of
the picture, and can make dark and bright ones.

It is a baseline here, and none of the paper's fixes. It distrusts the mean at every level, not at
T alone, so that pictures come out too dark or too bright for what they show. And sampling starts
from N(0, I) all the same, whose channel means vary less than those the network was trained on.

Source: arXiv 2305.08891, section 5.4.
"""

import jax

_OFFSET = 1  # what a row's key is folded with, having given the row's white noise by itself


def add_offset(eps: jax.Array, keys: jax.Array, strength: float) -> jax.Array:
    """Add to white noise one random number for each row and channel.

    eps_hwc + strength d_c,   d_c ~ N(0, 1)                                          (section 5.4)

    Args:
      eps: [B, ..., C], standard normal.
      keys: [B], one per row; they may be those that eps was drawn from.
      strength: not traced. At 0, eps comes back as it is, and nothing is drawn.
    Returns: like eps. It stands for eps in x_t and in the target. At SNR = 0 the network sees only
      this, and the v target is minus the data still.
    """
    if not strength:
        return eps
    shape = (*[1] * (eps.ndim - 2), eps.shape[-1])

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, _OFFSET), shape, eps.dtype)

    return eps + strength * jax.vmap(draw)(keys)
