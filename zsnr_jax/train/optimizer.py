"""AdamW with a clipped gradient, a warm-up and a decay."""

import jax
import optax

from zsnr_jax.errors import UsageError

DECAYS = ("cosine", "constant")
_FINAL_FRACTION = 0.05  # of the peak learning rate, at the last step of a cosine decay


def learning_rate_schedule(
    peak: float, num_steps: int, warmup_steps: int, decay: str
) -> optax.Schedule:
    """From 0 up to `peak` over the warm-up, then along half a cosine to a twentieth, or level.

    Raises: UsageError for an unknown decay, or a warm-up longer than the run.
    """
    if decay not in DECAYS:
        raise UsageError(f"optimizer.decay {decay!r} is unknown: choose {' or '.join(DECAYS)}.")
    if not 0 <= warmup_steps <= num_steps:
        raise UsageError(
            f"optimizer.warmup_steps={warmup_steps} must be from 0 to train.num_steps={num_steps}."
        )
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    after = optax.constant_schedule(peak)
    if decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(num_steps - warmup_steps, 1), _FINAL_FRACTION)
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    learning_rate: optax.Schedule, b1: float, b2: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """Clip the whole gradient to `clip_norm` (0: do not), then AdamW.

    Weight decay touches kernels and embeddings (two axes or more), not biases or norm scales.
    """
    adamw = optax.adamw(
        learning_rate, b1, b2, weight_decay=weight_decay, mask=_is_matrix if weight_decay else None
    )
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm else adamw


def _is_matrix(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda p: p.ndim > 1, params)
