"""What the networks of Stable Diffusion share. NHWC; parameters float32; `dtype` computes.

Submodules bear the names that torch's have in a diffusers folder, so that weights pass between the
two by one rule (`zsnr_jax.torch_weights`).
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from einops import repeat
from flax import linen as nn

from zsnr_jax.errors import UsageError
from zsnr_jax.models.convolution import Conv3x3
from zsnr_jax.models.layers import Dtype
from zsnr_jax.models.norm import GroupNorm

Padding = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)
Factory = Callable[..., nn.Module]  # makes copies of a layer, whose names are still to be given
# Bounds of a config.json, so that a network of absurd sizes is refused before it is traced.
_MOST, _MOST_LAYERS, _MOST_ENTRIES = 2**20, 128, 16  # of sizes, layers, and entries of a list
_LAYERS = ("layers_per_block", "num_hidden_layers")
_OURS = {"parent", "name", "dtype", "remat"}  # fields of our modules that no config.json sets


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions around a skip; a time embedding shifts what lies between."""

    channels: int
    groups: int  # of the norms
    eps: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """x [B, H, W, C], embedding of B, or fewer, rows or none -> [B, H, W, channels]."""
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm1")(x))
        h = Conv3x3(self.channels, dtype=self.dtype, name="conv1")(h)
        if embedding is not None:
            project = nn.Dense(self.channels, dtype=self.dtype, name="time_emb_proj")
            h = h + repeat_rows(project(nn.silu(embedding)), h)[:, None, None, :]
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm2")(h))
        h = Conv3x3(self.channels, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """Halve height and width by a 3x3 convolution of stride 2."""

    padding: Padding
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H/2, W/2, C]."""
        return nn.Conv(
            x.shape[-1], (3, 3), strides=2, padding=self.padding, dtype=self.dtype, name="conv"
        )(x)


class Upsample(nn.Module):
    """Double height and width: repeat each position, then a 3x3 convolution."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, 2H, 2W, C]."""
        return Conv3x3(x.shape[-1], dtype=self.dtype, doubles=True, name="conv")(x)


def repeat_rows(x: jax.Array, like: jax.Array) -> jax.Array:
    """Each row of x as often, one after another, as gives the rows that `like` has.

    Raises: ValueError where no number of times gives them.
    """
    times, rest = divmod(len(like), len(x))
    if rest or not times:
        raise ValueError(f"{len(x)} rows cannot be shared evenly by {len(like)}.")
    return repeat(x, "b ... -> (b times) ...", times=times)


def read_config(
    model: type[nn.Module],
    config: Mapping[str, Any],
    implemented: Mapping[str, Collection[Any]],
    ignored: Collection[str],
) -> dict[str, Any]:
    """Pick the fields of a network out of a config.json, of diffusers or transformers.

    Args:
      model: its fields bear the config's names, and their defaults are those of an absent key.
      implemented: the values that other keys may have. Of a field that is a list: its entries'.
      ignored: keys that change nothing here.
    Raises: UsageError for a value, or a key with a value, that the network does not implement.
    """
    fields = {
        field.name: field
        for field in dataclasses.fields(model)
        if field.name not in _OURS and field.default is not dataclasses.MISSING
    }
    picked = {}
    for key, value in config.items():
        listed = isinstance(value, list | tuple)
        allowed = implemented.get(key, ())
        if key in fields:
            if wanted := _wanted(fields[key], value):
                refuse(model, key, value, " or ".join(map(repr, allowed)) or wanted)
            picked[key] = tuple(value) if listed else value
            known = not allowed or all(entry in allowed for entry in value)
        elif key in implemented:
            known = value in allowed
        else:  # absent and null are the same to the libraries that write these files
            known = value is None or key in ignored or key.startswith("_")
        if not known:
            refuse(model, key, value, " or ".join(map(repr, allowed)) or "no such setting")
    return picked


def require_per_resolution(model: Any, *keys: str) -> None:
    """Refuse a network whose lists, the fields named, lack an entry for each resolution."""
    resolutions = len(model.block_out_channels)
    for key in keys:
        if isinstance(value := getattr(model, key), tuple) and len(value) != resolutions:
            refuse(type(model), key, value, f"one for each of {resolutions} resolutions")


def refuse(model: type[nn.Module], key: str, value: Any, allowed: str) -> NoReturn:
    """Raise: UsageError. The network does not implement this value of a config.json."""
    shown = repr(list(value) if isinstance(value, tuple) else value)  # as JSON has it
    shown = shown if len(shown) <= 200 else f"{shown[:200]}.."
    key = key if key.isprintable() else ascii(key)
    raise UsageError(
        f"{key[:80]}={shown} is not implemented by {model.__name__}, which takes {allowed}: "
        "give the folder of a network that has it."
    )


def _wanted(field: Any, value: Any) -> str | None:
    """What a field takes, in words, where a value of JSON is not that; None where it is."""
    must_list, may_list = isinstance(field.default, tuple), "tuple" in str(field.type)
    listed = may_list and isinstance(value, list | tuple)
    entries: list[Any] = [*value] if listed else [value]
    if must_list > listed or not 1 <= len(entries) <= _MOST_ENTRIES:
        return f"a list of 1 to {_MOST_ENTRIES} entries"
    kind = type(field.default[0] if must_list else field.default)
    most = _MOST_LAYERS if field.name in _LAYERS else _MOST
    if kind in (bool, str):
        fits = all(type(entry) is kind for entry in entries)
        return None if fits else "true or false" if kind is bool else "a word"
    if kind is int:
        fits = all(type(entry) is int and 1 <= entry <= most for entry in entries)
        return None if fits else f"one whole number, 1 to {most}"
    fits = all(type(entry) in (int, float) and 0 < entry <= most for entry in entries)
    return None if fits else f"one number above 0, up to {most}"
