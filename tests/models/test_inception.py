"""Inception-v3: its size, and its numbers, which pytorch-fid and torch-fidelity printed.

They are compared with those live, in full, in tests/parity/test_inception_features.py.
"""

import functools
import math

import inception_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsnr_jax import torch_weights
from zsnr_jax.models.inception import InceptionV3, prepare

# pytorch-fid 0.3.0, torch 2.13.0: features 0, 400, .. 2000 of both images, by their height.
POOL = {
    75: [
        [44.35545, 0.027904758, 0.0, 0.004781187, 25.986303, 25.048466],
        [28.893513, 0.08417414, 0.012766666, 0.0, 17.735153, 17.273048],
    ],
    320: [
        [50.836636, 0.045540195, 0.0, 0.04404144, 29.556147, 29.666109],
        [28.095978, 0.08935848, 0.0027086916, 0.0, 17.160923, 16.831131],
    ],
}
# torch-fidelity 0.4.0: those of the 299-pixel images, and logits 0, 250, .. 1000 without bias.
# There (x - 128) / 128 stands for x / 127.5 - 1.
POOL_299 = [
    [70.76035, 0.02200733, 0.0, 0.0, 40.993076, 40.73113],
    [27.670403, 0.09077779, 0.0023926087, 0.0, 16.903637, 16.65211],
]
LOGITS_299 = [
    [-30.899374, 31.430931, 10.637069, 59.70867, -28.740698],
    [-12.069434, 16.281952, 3.6802, 20.868889, -11.797924],
]


@functools.cache
def shapes():
    images = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.uint8)
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), images)["params"]


@functools.cache
def params():
    flat = torch_weights.to_torch(
        jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes())
    )
    weights = inception_weights.tensors({name: x.shape for name, x in flat.items()})
    return {"params": torch_weights.from_torch(weights, shapes(), "made up")}


def run(images):
    # One shape, so that all tests share one compilation.
    assert images.shape == (2, 299, 299, 3)
    return jax.tree.map(np.asarray, _apply()(params(), images))


@functools.cache
def _apply():
    return jax.jit(InceptionV3().apply)


def test_it_has_as_many_parameters_as_torchvisions_with_other_classes():
    sizes = {
        path: math.prod(x.shape)
        for path, x in jax.tree_util.tree_leaves_with_path(shapes())
        if "running" not in jax.tree_util.keystr(path)
    }
    # torchvision counts 27,161,264 with 1000 classes and an auxiliary classifier of 3,326,696.
    assert sum(sizes.values()) == 27_161_264 - 3_326_696 + 8 * (2048 + 1)


def test_features_and_logits_are_those_of_torch_fidelity():
    images = inception_weights.images(299)[:, :, :299]
    pool, logits = run((images.astype(np.float32) - 128) / 128)
    assert (pool.shape, logits.shape) == ((2, 2048), (2, 1008))
    assert pool.dtype == logits.dtype == np.float32
    logits = logits - params()["params"]["fc"]["bias"][None]
    np.testing.assert_allclose(pool[:, ::400], POOL_299, rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits[:, ::250], LOGITS_299, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", POOL)
@pytest.mark.parametrize("scale", ["bytes", "floats"])
def test_images_are_resized_as_pytorch_fid_does(size, scale):
    images = inception_weights.images(size)
    if scale == "floats":
        images = images.astype(np.float32) / 127.5 - 1
    pool = run(np.asarray(prepare(jnp.asarray(images)))).pool
    np.testing.assert_allclose(pool[:, ::400], POOL[size], rtol=0, atol=1e-4)
