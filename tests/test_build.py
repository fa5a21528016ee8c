"""From settings to guidance, starts and labels: each setting reaches the object it names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_configs import recipe

from zsnr_jax import build, guidance, randomness
from zsnr_jax.apg import make_apg_denoise
from zsnr_jax.errors import UsageError
from zsnr_jax.models.unet import UNet
from zsnr_jax.predictions import StatefulDenoise, make_denoise

ROWS = jnp.array([0.5, -1.0]), jnp.zeros(2)  # condition and negative condition
X_T = jnp.linspace(-2, 2, 24).reshape(2, 12)


def network(x_t, timestep, condition):
    return jnp.tanh(x_t + condition[:, None]) + timestep[:, None] / 1000


def built(**settings):
    config = recipe("brightness")
    config.update_from_flattened_dict({f"sampler.{k}": v for k, v in settings.items()})
    return config, build.build_process(config)


def estimate(denoise, level):
    """x0_hat at a level, by a denoise that remembers a difference from the level before."""
    start, apply = StatefulDenoise.of(denoise)
    memory = jax.tree.map(lambda leaf: leaf + 0.3, start(X_T))
    return apply(X_T, jnp.int32(level), memory)[0][0]


def expected(process, scale=3.0, rescale=0.7, **projected):
    of_network = process.noise_schedule, process.prediction
    if projected:
        return make_apg_denoise(network, *of_network, *ROWS, scale, **projected)
    pair = guidance.guide_network(network, *ROWS, scale, rescale)
    return make_denoise(pair, *of_network)


@pytest.mark.parametrize(
    "settings, arguments",
    [
        ({}, {}),
        ({"guidance_scale": 5.0, "guidance_rescale": 0.2}, {"scale": 5.0, "rescale": 0.2}),
        (
            {"guidance": "projected", "guidance_rescale": 0.0},
            {"eta": 0.0, "norm_threshold": np.inf, "momentum": -0.5},
        ),
        (
            {
                "guidance": "projected",
                "guidance_rescale": 0.0,
                "guidance_scale": 7.0,
                "projected.eta": 0.3,
                "projected.norm_threshold": 0.8,
                "projected.momentum": -0.2,
            },
            {"scale": 7.0, "eta": 0.3, "norm_threshold": 0.8, "momentum": -0.2},
        ),
    ],
)
def test_guidance_is_what_the_settings_say(settings, arguments):
    config, process = built(**settings)
    denoise = build.build_guidance(config, process)(network, *ROWS)
    for level in (1000, 400):
        wanted = estimate(expected(process, **arguments), level)
        np.testing.assert_allclose(estimate(denoise, level), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["rescaled", "projected"])
def test_a_pretrained_network_takes_both_conditions_to_one_row(kind):
    """But for where guidance does not act, which is one call of one condition."""
    config, process = built(guidance=kind, guidance_rescale=0.0, guidance_interval=(300, 800))
    wanted = build.build_guidance(config, process)(network, *ROWS)
    config.pretrained = "folder"
    rows = []

    def sharing(x_t, timestep, condition):
        rows.append((len(x_t), len(condition)))
        times = len(condition) // len(x_t)
        return network(jnp.repeat(x_t, times, axis=0), jnp.repeat(timestep, times), condition)

    found = build.build_guidance(config, process)(sharing, *ROWS)
    for level in (900, 500):
        np.testing.assert_array_equal(estimate(found, level), estimate(wanted, level))
    assert set(rows) == {(2, 4), (2, 2)}


def test_guidance_keeps_to_its_interval():
    config, process = built(guidance_interval=(300, 800))
    denoise = build.build_guidance(config, process)(network, *ROWS)
    alone = make_denoise(
        lambda x_t, timestep: network(x_t, timestep, ROWS[0]), process.noise_schedule, "v"
    )
    for level, wanted in [(900, alone), (800, expected(process)), (299, alone)]:
        np.testing.assert_allclose(
            estimate(denoise, level), estimate(wanted, level), rtol=1e-5, atol=1e-6
        )


def test_the_negative_label_is_the_hidden_one_unless_another_is_named():
    config = recipe("brightness")
    run = build.build_images(config)
    assert run.negative_label == run.model.null_label
    config.sampler.negative_label = 1
    assert build.build_images(config).negative_label == 1


def test_a_signal_leak_is_fitted_to_the_data():
    config = recipe("brightness", "flawed,16,smoke")
    config.sampler.start, config.sampler.leak_frequencies = "signal_leak", 2
    run = build.build_images(config)
    images, labels = run.arrays
    drawn = jnp.asarray(np.repeat(np.arange(run.source.info.num_classes), 400))
    index = jnp.arange(len(drawn))
    x_T = run.generator.start(drawn, index)
    level = run.sampling.coefficients.level[0]
    assert level < 1000  # leading steps start below T, and the leak is that level's
    alpha, sigma = (side[level] for side in run.process.noise_schedule)
    noise = randomness.row_normal(
        randomness.purpose_key(run.seed, randomness.Purpose.START), 0, index, run.image_shape
    )
    leak = (np.asarray(x_T) - sigma * np.asarray(noise)) / alpha
    for label in range(run.source.info.num_classes):
        of_data, of_leak = images[labels == label], leak[drawn == label]
        means = of_data.mean((1, 2, 3)), of_leak.mean((1, 2, 3))
        assert np.mean(means[1]) == pytest.approx(np.mean(means[0]), abs=0.1)
        assert np.std(means[1]) == pytest.approx(np.std(means[0]), rel=0.15)
    # What makes the leak is not the noise it stands in.
    together = np.corrcoef(leak.ravel(), np.asarray(noise).ravel())[0, 1]
    assert abs(together) < 0.02


def test_a_signal_leak_at_zero_snr_is_refused():
    config = recipe("brightness")
    config.sampler.start = "signal_leak"
    with pytest.raises(UsageError, match="starts at zero SNR, .*: set it to noise"):
        build.build(config)


def test_projected_guidance_with_a_rescale_is_refused():
    config, process = built(guidance="projected")
    with pytest.raises(UsageError, match="guidance_rescale is 0.7: set it to 0"):
        build.build_guidance(config, process)


def test_fresh_weights_are_those_of_flax():
    run = build.build(recipe("brightness", "smoke"))
    assert isinstance(run, build.ImageRun)
    image, zeros = jnp.zeros((1, *run.image_shape)), jnp.zeros(1, jnp.int32)
    key = randomness.purpose_key(run.seed, randomness.Purpose.INIT)
    as_usual = jax.jit(run.model.init)(key, image, zeros, zeros)
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6)  # noqa: E731
    jax.tree.map(close, run.init_params(), as_usual)


def test_the_network_is_traced_once_for_shapes_and_fresh_weights(monkeypatch):
    traces = []
    init = UNet.init
    monkeypatch.setattr(UNet, "init", lambda *inputs: traces.append(inputs) or init(*inputs))
    run = build.build(recipe("brightness", "smoke"))
    shapes = run.state_shapes().params
    params = run.init_params()
    assert len(traces) == 1
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
