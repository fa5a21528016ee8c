"""Brightness: shapes on black, grey and white, whose mean brightness follows an exact law.

A model that starts sampling at a wrong SNR shrinks the spread of image brightness, so this set
has a spread that is wide and known in closed form. Over n images, before rounding to 8 bits:

- **Mean.** The mean m of image i over its pixels and channels, in [-1, 1], is a stratified
  uniform: m runs through 2 (i + 1/2)/n - 1, i = 0..n-1, in random order. So the mean of m is 0
  and its standard deviation sqrt((1 - 1/n^2)/3) = 0.57735; its quantile p is 2p - 1 to within
  1/n (quartiles -1/2, 0, 1/2; 5 % and 95 %: -0.9 and 0.9). Rounding moves m by less than 1/255.
- **Label** = 2 content + lean, with content disc 0, bars 1, gradient 2 (equally often, independent
  of m), and lean dark 0 or bright 1 with P(bright | m) = (1 + m)/2. Given bright, m has the
  density (1 + m)/2: mean +1/3 and standard deviation sqrt(2)/3 = 0.471; given dark, the mirror
  image. A label thus says something about brightness without fixing it, on purpose: the error of
  a start at SNR(T) > 0 is set by q = SNR(T) N tau^2, where tau is the spread of brightness *given
  the label*. A label that fixed brightness would make tau 0, and hide the flaw from every guided
  or conditional sample.
- **Picture** = g + k P + a u P: a grey background g, a content mask P in [0, 1] with anti-aliased
  edges, a contrast k that points towards mid-grey, |k| uniform in [0.5, 1.1], and a hue u whose
  three entries sum to 0 (largest magnitude 1), which colours the content without touching the
  mean. With abar the mean of P, g = m - k abar; where that would pass +-1, g is +-1 exactly and k
  shrinks to (m - g)/abar. The amplitude a is limited so that nothing leaves [-1, 1]; nothing is
  ever clipped.
- **Solid backgrounds.** A disc or bars stand on a flat g (a gradient touches its g in one corner
  only). The share of all images on a flat background of exactly -1 or exactly +1, in the train
  split: 6.9 % black and 6.2 % white, at each size.
- The scenes (shapes, places, hues) depend on the seed only: all sizes show the same ones.

The best any network could do: the standard deviation of mean brightness, over the data's, when
the closed-form denoiser of the 4096 training images is sampled by DDIM at S = 50, by label, without
guidance. Fixed is Stable Diffusion's schedule rescaled, trailing; flawed is the original, leading,
as Stable Diffusion was sampled. With 95 % bootstrap intervals over 1536 samples, by `python -m
experiments.ideal_brightness`:

    size   fixed                  flawed
    8      1.000 [0.977, 1.020]   0.866 [0.844, 0.888]
    16     0.989 [0.966, 1.012]   0.699 [0.676, 0.721]
    32     0.974 [0.952, 0.995]   0.435 [0.419, 0.450]
    64     0.920 [0.896, 0.941]   0.228 [0.219, 0.236]
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

CONTENTS = ("disc", "bars", "gradient")
LEANS = ("dark", "bright")
LABELS = tuple(f"{content} {lean}" for content in CONTENTS for lean in LEANS)
SIZES = (8, 16, 32, 64)
SPLITS = {"train": 4096, "test": 1024}
_SEEDS = {"train": 0, "test": 1}
_CHUNK = 256  # images drawn at once: bounds the float64 memory, not the result


@dataclasses.dataclass(frozen=True)
class Scenes:
    """What n pictures show, before it is known at which size they are drawn.

    All fields are [n] arrays but unit [n, 8]: uniform numbers in [0, 1) that place the content
    (each mask function gives them their meaning). Angles are in radians.
    """

    mean: np.ndarray
    content: np.ndarray
    lean: np.ndarray
    contrast: np.ndarray
    hue: np.ndarray
    vividness: np.ndarray
    unit: np.ndarray

    def __getitem__(self, rows: slice) -> "Scenes":
        return Scenes(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))


def draw_scenes(num_images: int, seed: int) -> Scenes:
    """Draw n scenes; the means follow the law in the module's docstring exactly."""
    rng = np.random.default_rng(seed)
    grid = 2 * (np.arange(num_images) + 0.5) / num_images - 1
    mean = rng.permutation(grid)
    return Scenes(
        mean=mean,
        content=rng.permutation(np.arange(num_images) % len(CONTENTS)),
        lean=(rng.random(num_images) < (1 + mean) / 2).astype(np.int64),
        contrast=rng.uniform(0.5, 1.1, num_images),
        hue=rng.uniform(0, 2 * np.pi, num_images),
        vividness=rng.uniform(0.75, 1, num_images),
        unit=rng.random((num_images, 8)),
    )


def _pixel_centres(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x [1, 1, size] and y [1, size, 1] of the pixel centres in the unit square around 0."""
    centres = (np.arange(size) + 0.5) / size - 0.5
    return centres[None, None, :], centres[None, :, None]


def _inside(distance: np.ndarray, size: int) -> np.ndarray:
    """1 inside a shape, 0 outside, a ramp one pixel wide across its edge (distance 0)."""
    return np.clip(0.5 - distance * size, 0, 1)


def disc_mask(unit: np.ndarray, size: int) -> np.ndarray:
    """Discs that cover 5 to 25 % and lie wholly in the picture. [n, 8] -> [n, size, size]."""
    x, y = _pixel_centres(size)
    unit = unit[:, :, None, None]
    radius = np.sqrt((0.05 + 0.2 * unit[:, 0]) / np.pi)
    centre_x, centre_y = ((2 * unit[:, i] - 1) * (0.5 - radius) for i in (1, 2))
    return _inside(np.hypot(x - centre_x, y - centre_y) - radius, size)


def bars_mask(unit: np.ndarray, size: int) -> np.ndarray:
    """Two to four parallel bars across the picture, lying or standing.

    They cover 15 to 54 %, most of them 20 to 45 %. [n, 8] -> [n, size, size].
    """
    x, y = _pixel_centres(size)
    unit = unit[:, :, None, None]
    across = np.where(unit[:, 0] < 0.5, x, y)
    period = 1 / (2 + 2 * unit[:, 1])
    width = period * (0.2 + 0.25 * unit[:, 2])
    offset = np.abs((across / period + unit[:, 3]) % 1 - 0.5) * period
    return _inside(offset - width / 2, size)


def gradient_mask(unit: np.ndarray, size: int) -> np.ndarray:
    """Linear ramps from 0 to 1 in any direction, mean 1/2. [n, 8] -> [n, size, size]."""
    x, y = _pixel_centres(size)
    angle = 2 * np.pi * unit[:, 0, None, None]
    cos, sin = np.cos(angle), np.sin(angle)
    reach = (np.abs(cos) + np.abs(sin)) * (1 - 1 / size) / 2  # at the corner it points to
    return 0.5 + (x * cos + y * sin) / (2 * reach)


def draw_masks(scenes: Scenes, size: int) -> np.ndarray:
    """The content masks P of the scenes, float64 [n, size, size] in [0, 1]."""
    masks = np.empty((len(scenes.mean), size, size))
    for content, draw in enumerate((disc_mask, bars_mask, gradient_mask)):
        rows = scenes.content == content
        masks[rows] = draw(scenes.unit[rows], size)
    return masks


def _background_and_contrast(scenes: Scenes, coverage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Background g and contrast k, each [n], with g + k coverage = mean and |g|, |g + k| <= 1."""
    sign = np.where(scenes.mean < 0, -1.0, 1.0)
    room = (1 + np.abs(scenes.mean)) / (1 - coverage)  # beyond it the content would pass -sign
    contrast = -sign * np.minimum(scenes.contrast, room)
    background = scenes.mean - contrast * coverage
    solid = np.abs(background) > 1
    background = np.where(solid, sign, background)
    return background, np.where(solid, (scenes.mean - sign) / coverage, contrast)


def _colour(scenes: Scenes, content_grey: np.ndarray) -> np.ndarray:
    """What to add to the content's grey [n] per channel, [n, 3]: sums to 0, stays in [-1, 1]."""
    hue = np.cos(scenes.hue[:, None] + 2 * np.pi / 3 * np.arange(3))
    hue -= hue.mean(axis=1, keepdims=True)  # zero but for rounding: the mean must stay exact
    hue /= np.abs(hue).max(axis=1, keepdims=True)
    room = 1 - np.sign(hue) * content_grey[:, None]
    amplitude = (room / np.maximum(np.abs(hue), 1e-6)).min(axis=1)
    return hue * (scenes.vividness * amplitude)[:, None]


def render(scenes: Scenes, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes, before rounding to 8 bits.

    Args: scenes: n of them.  size: pixels per side.
    Returns: images float64 [n, size, size, 3] in [-1, 1], each with exactly its scene's mean;
      backgrounds float64 [n], exactly +-1 where solid.
    """
    masks = draw_masks(scenes, size)
    background, contrast = _background_and_contrast(scenes, masks.mean(axis=(1, 2)))
    step = contrast[:, None] + _colour(scenes, background + contrast)  # background to content
    images = background[:, None, None, None] + masks[..., None] * step[:, None, None, :]
    return images, background


def make_images(size: int, num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the pictures, a pure function of its arguments.

    Args: size: pixels per side.  num_images: n, at least 1.  seed: any integer >= 0.
    Returns: images uint8 [n, size, size, 3], 0 standing for -1 and 255 for 1; labels int64 [n]
      in 0..5, indices into LABELS.
    """
    scenes = draw_scenes(num_images, seed)
    images = np.empty((num_images, size, size, 3), np.uint8)
    for start in range(0, num_images, _CHUNK):
        rows = slice(start, start + _CHUNK)
        images[rows] = np.rint((render(scenes[rows], size)[0] + 1) * 127.5)
    return images, 2 * scenes.content + scenes.lean


class Brightness(tfds.core.GeneratorBasedBuilder):
    """The TFDS sets brightness/8, /16, /32 and /64; needs no TensorFlow.

    Row i of a split is picture i of make_images, in that order.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=str(size), description=f"{size} x {size} pixels.")
        for size in SIZES
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "32"

    @property
    def _size(self) -> int:
        assert self.builder_config is not None and self.builder_config.name is not None
        return int(self.builder_config.name)

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (self._size, self._size, 3)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Shapes on black, grey and white; mean brightness uniform in [-1, 1].",
            features=tfds.features.FeaturesDict(
                {
                    # Tensor, not Image: TFDS encodes an Image with TensorFlow.
                    "image": tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes"),
                    "label": tfds.features.ClassLabel(names=list(LABELS)),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # the order is already random, and row i stays picture i
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        images, labels = make_images(self._size, SPLITS[split], _SEEDS[split])
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}
