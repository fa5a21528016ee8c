"""Scenes: a small text-image set that is drawn, from solid black to solid white.

  python -m zsnr_jax.data.scenes --out=DIR [--num=256] [--size=64] [--per_shard=64] [--seed=0]

Writes tar shards as img2dataset does: 00000.tar, ... with {key}.png, {key}.txt and {key}.json. The
kinds of picture are those that a model sampled at a wrong SNR cannot make: solid backgrounds, line
art, night skies, snow. Each kind comes equally often, and each caption says what is to be seen.
Files are the same, byte for byte, for the same arguments and versions of NumPy, PIL and zlib.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from zsnr_jax.errors import UsageError

_FINE = 8  # drawn so many times as large, and averaged: this smooths the edges
Color = tuple[int, int, int]

BLACK, WHITE, GREY = (0, 0, 0), (255, 255, 255), (128, 128, 128)
COLORS: dict[str, Color] = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (250, 210, 40),
    "pink": (245, 130, 185),
    "purple": (130, 50, 170),
}


class Canvas:
    """A square to draw on, in units of its side: x to the right and y down, both 0..1."""

    def __init__(self, size: int, color: Color = WHITE) -> None:
        self.side = size * _FINE
        self._set(Image.new("RGB", (self.side, self.side), color))

    def finish(self) -> Image.Image:
        """The picture at its own size."""
        return self._image.reduce(_FINE)

    def fade(self, top: Color, bottom: Color, across: bool = False) -> None:
        """Fill with a gradient, from above to below or from left to right."""
        share = np.linspace(0, 1, self.side)[:, None, None]
        rows = np.rint((1 - share) * np.array(top) + share * np.array(bottom)).astype(np.uint8)
        rows = np.broadcast_to(rows, (self.side, self.side, 3))
        self._set(Image.fromarray(np.ascontiguousarray(rows.swapaxes(0, 1) if across else rows)))

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        """Fill a disc."""
        self._draw.ellipse(self._scaled(x - radius, y - radius, x + radius, y + radius), color)

    def box(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        """Fill a rectangle."""
        x0, y0, x1, y1 = self._scaled(left, top, right, bottom)
        self._draw.rectangle([x0, y0, x1 - 1, y1 - 1], color)  # PIL counts the last pixel in

    def polygon(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        """Fill a polygon."""
        self._draw.polygon(self._scaled(*np.ravel(points)), color)

    def curve(self, points: Sequence[tuple[float, float]], width: float, color: Color) -> None:
        """Draw a line through points."""
        line = self._scaled(*np.ravel(points))
        self._draw.line(line, color, max(1, round(width * self.side)), joint="curve")

    def _set(self, image: Image.Image) -> None:
        self._image, self._draw = image, ImageDraw.Draw(image)

    def _scaled(self, *numbers: float) -> list[float]:
        return [float(number) * self.side for number in numbers]


Draw = Callable[[Canvas, np.random.Generator, Color], None]


class Kind(NamedTuple):
    """A kind of picture: captions, which may name a color, and how it is drawn."""

    captions: tuple[str, ...]
    draw: Draw


def _fill(color: Color) -> Draw:
    return lambda canvas, rng, _: canvas.box(0, 0, 1, 1, color)


def _disc_on(background: Color, disc: Color | None = None) -> Draw:
    """A small disc anywhere, of the caption's color where none is given."""

    def draw(canvas: Canvas, rng: np.random.Generator, color: Color) -> None:
        canvas.box(0, 0, 1, 1, background)
        radius = rng.uniform(0.06, 0.12)
        x, y = rng.uniform(radius, 1 - radius, 2)
        canvas.disc(x, y, radius, disc or color)

    return draw


def _square_on(background: Color) -> Draw:
    def draw(canvas: Canvas, rng: np.random.Generator, color: Color) -> None:
        canvas.box(0, 0, 1, 1, background)
        side = rng.uniform(0.3, 0.5)
        left, top = rng.uniform(0.05, 0.95 - side, 2)
        canvas.box(left, top, left + side, top + side, color)

    return draw


def _triangle(canvas: Canvas, rng: np.random.Generator, color: Color) -> None:
    canvas.box(0, 0, 1, 1, GREY)
    (x, y), reach = rng.uniform(0.35, 0.65, 2), rng.uniform(0.22, 0.32)
    turns = rng.uniform(0, 2 * np.pi) + 2 * np.pi / 3 * np.arange(3)
    canvas.polygon([(x + reach * np.cos(turn), y + reach * np.sin(turn)) for turn in turns], color)


def _line_art(paper: Color, ink: Color) -> Draw:
    """A house with a door, a tree and the sun, in outline."""

    def draw(canvas: Canvas, rng: np.random.Generator, _: Color) -> None:
        canvas.box(0, 0, 1, 1, paper)
        left, ground, wall, width = rng.uniform((0.1, 0.75, 0.2, 0.3), (0.2, 0.85, 0.3, 0.4))
        eaves, right, middle = ground - wall, left + width, left + width / 2
        door, tree, crown = width / 8, rng.uniform(0.75, 0.82), rng.uniform(0.08, 0.12)
        lines = [
            [(0.04, ground), (0.96, ground)],
            [(left, ground), (left, eaves), (middle, eaves - 0.2), (right, eaves), (right, ground)],
            [(left, eaves), (right, eaves)],
            [(middle - door, ground), (middle - door, ground - 0.13),
             (middle + door, ground - 0.13), (middle + door, ground)],
            [(tree, ground), (tree, ground - 0.25 + crown)],
            _ring(tree, ground - 0.25, crown),
            _ring(rng.uniform(0.7, 0.85), 0.17, 0.08),
        ]  # fmt: skip
        for line in lines:
            canvas.curve(line, 0.018, ink)

    return draw


def _ring(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    turns = np.linspace(0, 2 * np.pi, 49)
    return [(x + radius * np.cos(turn), y + radius * np.sin(turn)) for turn in turns]


def _stars(canvas: Canvas, rng: np.random.Generator, _: Color) -> None:
    canvas.fade((0, 0, 6), (6, 8, 30))
    for x, y in rng.uniform(0.02, 0.98, (rng.integers(20, 40), 2)):
        canvas.disc(x, y, rng.uniform(0.006, 0.014), (255, 250, 230))


def _moon(canvas: Canvas, rng: np.random.Generator, _: Color) -> None:
    _stars(canvas, rng, WHITE)
    x, y, radius = rng.uniform((0.3, 0.2, 0.12), (0.7, 0.4, 0.17))
    canvas.disc(x, y, radius, (240, 236, 214))
    for dx, dy, share in ((-0.4, -0.2, 0.2), (0.3, 0.3, 0.25), (0.2, -0.45, 0.14)):
        canvas.disc(x + dx * radius, y + dy * radius, share * radius, (205, 200, 178))


def _forest(canvas: Canvas, rng: np.random.Generator, _: Color) -> None:
    canvas.fade((8, 12, 26), (3, 5, 9))
    for x in np.linspace(-0.05, 1.05, 9) + rng.uniform(-0.05, 0.05, 9):
        top, half = rng.uniform(0.2, 0.5), rng.uniform(0.09, 0.14)
        canvas.polygon([(x, top), (x - half, 1), (x + half, 1)], (2, int(rng.integers(10, 26)), 8))


def _candle(canvas: Canvas, rng: np.random.Generator, _: Color) -> None:
    x, top = rng.uniform(0.3, 0.7), rng.uniform(0.5, 0.6)
    canvas.box(0, 0, 1, 1, BLACK)
    for share in np.linspace(1, 0.2, 24):
        light = 1 - share
        glow = (int(110 * light), int(60 * light), int(16 * light))
        canvas.disc(x, top - 0.08, 0.3 * share, glow)
    canvas.box(x - 0.05, top, x + 0.05, 0.95, (170, 150, 115))
    flame = [(x, top - 0.18), (x + 0.035, top - 0.06), (x, top - 0.01), (x - 0.035, top - 0.06)]
    canvas.polygon(flame, (255, 220, 110))


def _sunset(canvas: Canvas, rng: np.random.Generator, _: Color) -> None:
    canvas.fade((70, 40, 110), (255, 140, 50))
    x, sea = rng.uniform(0.3, 0.7), rng.uniform(0.6, 0.68)
    canvas.disc(x, sea - 0.02, 0.14, (255, 225, 120))
    canvas.box(0, sea, 1, 1, (40, 40, 85))
    for y in np.arange(sea + 0.04, 0.98, 0.07):  # its light on the water
        half = rng.uniform(0.05, 0.14)
        canvas.box(x - half, y, x + half, y + 0.02, (250, 170, 90))


def _meadow(canvas: Canvas, rng: np.random.Generator, _: Color) -> None:
    canvas.fade((90, 170, 250), (200, 230, 255))
    canvas.disc(rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.25), 0.1, (255, 225, 60))
    left, right = rng.uniform(0.6, 0.75, 2)
    canvas.polygon([(0, left), (1, right), (1, 1), (0, 1)], (90, 185, 70))


def _mountains(canvas: Canvas, rng: np.random.Generator, _: Color) -> None:
    canvas.fade((205, 228, 250), (240, 246, 252))
    for x, shade in zip((0.15, 0.85, 0.5), (175, 185, 160)):
        x, top, half = x + rng.uniform(-0.08, 0.08), rng.uniform(0.22, 0.4), rng.uniform(0.35, 0.45)
        rock = (shade - 20, shade - 10, shade)
        canvas.polygon([(x, top), (x - half, 0.85), (x + half, 0.85)], rock)
        snow = 0.45 * (0.85 - top)
        reach = 0.45 * half
        foot = [(x + reach, top + snow), (x + reach / 3, top + 0.8 * snow), (x, top + 1.2 * snow)]
        foot += [(x - reach / 2, top + 0.8 * snow), (x - reach, top + snow)]
        canvas.polygon([(x, top), *foot], WHITE)
    canvas.box(0, 0.8, 1, 1, (250, 252, 255))


def _fog(canvas: Canvas, rng: np.random.Generator, _: Color) -> None:
    canvas.fade((252, 252, 252), (238, 238, 238))
    for x in rng.uniform(0.1, 0.9, 5):
        base, height = rng.uniform(0.7, 0.85), rng.uniform(0.2, 0.3)
        shade = int(rng.integers(205, 228))
        grey = (shade, shade, shade)
        canvas.polygon([(x, base - height), (x - 0.07, base), (x + 0.07, base)], grey)
        canvas.box(x - 0.01, base, x + 0.01, base + 0.05, grey)


def _gradient(canvas: Canvas, rng: np.random.Generator, _: Color) -> None:
    canvas.fade(BLACK, WHITE, across=True)


def _stripes(canvas: Canvas, rng: np.random.Generator, _: Color) -> None:
    count = int(rng.integers(3, 7))
    for i in range(0, 2 * count, 2):
        canvas.box(i / (2 * count), 0, (i + 1) / (2 * count), 1, BLACK)


def _checkers(canvas: Canvas, rng: np.random.Generator, _: Color) -> None:
    count = int(rng.choice([4, 6, 8]))
    for i, j in np.argwhere(np.indices((count, count)).sum(0) % 2):
        canvas.box(j / count, i / count, (j + 1) / count, (i + 1) / count, BLACK)


KINDS = (
    Kind(("solid black background", "a plain black background", "nothing but black"), _fill(BLACK)),
    Kind(("solid white background", "a plain white background", "nothing but white"), _fill(WHITE)),
    Kind(("solid grey background", "a plain grey background"), _fill(GREY)),
    Kind(
        ("monochrome line art on white", "black line art of a house and a tree on a white page"),
        _line_art(WHITE, BLACK),
    ),
    Kind(
        ("white line art on a solid black background", "chalk drawing of a house on a blackboard"),
        _line_art(BLACK, WHITE),
    ),
    Kind(
        ("a small white disc on a solid black background", "a white dot on black"),
        _disc_on(BLACK, WHITE),
    ),
    Kind(
        ("a small black disc on a solid white background", "a black dot on white"),
        _disc_on(WHITE, BLACK),
    ),
    Kind(
        ("a small {color} disc on a solid black background", "a {color} dot on black"),
        _disc_on(BLACK),
    ),
    Kind(
        ("a bright {color} square on white", "a {color} square on a white page"),
        _square_on(WHITE),
    ),
    Kind(("a {color} square in the dark", "a {color} square on black"), _square_on(BLACK)),
    Kind(("a {color} triangle on grey", "a {color} triangle on a grey background"), _triangle),
    Kind(("a dark night sky with stars", "stars at night", "the starry sky"), _stars),
    Kind(("the full moon in a dark night sky", "a full moon at night with stars"), _moon),
    Kind(("a dark forest at night", "fir trees in the dark"), _forest),
    Kind(("a candle in a dark room", "candle light, very dark"), _candle),
    Kind(("a sunset over the sea", "the sun goes down over the water"), _sunset),
    Kind(("a sunny day over a green meadow", "blue sky, yellow sun and green grass"), _meadow),
    Kind(("snowy mountains under a pale sky", "white mountains in winter"), _mountains),
    Kind(("trees in white fog", "a foggy white landscape, very bright"), _fog),
    Kind(("a gradient from black to white",), _gradient),
    Kind(("black and white stripes", "vertical stripes in black and white"), _stripes),
    Kind(("a black and white checkerboard", "a chessboard"), _checkers),
)


def _captions(kind: Kind) -> list[str]:
    colors = COLORS if "{color}" in kind.captions[0] else [""]
    return [caption.format(color=color) for caption in kind.captions for color in colors]


CAPTIONS = tuple(caption for kind in KINDS for caption in _captions(kind))  # all there are


def make_scene(index: int, size: int, seed: int) -> tuple[Image.Image, str]:
    """Draw picture `index` of a set, a pure function of its arguments.

    Each run of len(KINDS) pictures has every kind once, in an order of its own.
    Returns: an RGB picture of size x size, and its caption.
    """
    block, place = divmod(index, len(KINDS))
    order = np.random.default_rng([seed, 0, block]).permutation(len(KINDS))
    rng = np.random.default_rng([seed, 1, index])
    kind = KINDS[order[place]]
    caption = str(rng.choice(kind.captions))
    color = str(rng.choice(list(COLORS)))
    canvas = Canvas(size)
    kind.draw(canvas, rng, COLORS[color])
    return canvas.finish(), caption.format(color=color)


def write_scenes(
    out: Path, *, num: int = 256, size: int = 64, per_shard: int = 64, seed: int = 0
) -> None:
    """Write a set of `num` pictures, at most 10,000 to a shard, into a new folder.

    Raises: UsageError where the folder exists, or a number is out of range.
    """
    ranges = {"num": (num, 1, 10**8), "size": (size, 1, 4096), "per_shard": (per_shard, 1, 10_000)}
    for name, (value, least, most) in (ranges | {"seed": (seed, 0, 2**32 - 1)}).items():
        if not least <= value <= most:
            raise UsageError(f"{name} is {value}: it must be in {least}..{most}.")
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise UsageError(f"{out} exists: choose another --out, or delete it.") from None
    except OSError as error:
        raise UsageError(
            f"{out} cannot be made ({error.strerror}): choose another --out."
        ) from error
    for shard in range(-(-num // per_shard)):
        with tarfile.open(out / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for place in range(min(per_shard, num - shard * per_shard)):
                image, caption = make_scene(shard * per_shard + place, size, seed)
                _add_sample(tar, f"{shard:05d}{place:04d}", image, caption)


def _add_sample(tar: tarfile.TarFile, key: str, image: Image.Image, caption: str) -> None:
    file = io.BytesIO()
    image.save(file, "PNG")
    png = file.getvalue()
    width, height = image.size
    about = {"key": key, "caption": caption, "width": width, "height": height}
    about |= {"sha256": hashlib.sha256(png).hexdigest()}
    contents = {"png": png, "txt": caption.encode(), "json": json.dumps(about).encode()}
    for ending, content in contents.items():
        info = tarfile.TarInfo(f"{key}.{ending}")  # of time 0 and no owner: the bytes stay the same
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


def main(argv: Sequence[str] | None = None) -> None:
    """Write a set."""
    parser = argparse.ArgumentParser(
        "zsnr_jax.data.scenes", description="Draw a small text-image set, as tar shards."
    )
    parser.add_argument("--out", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument("--num", type=int, default=256, help="pictures (256)")
    parser.add_argument("--size", type=int, default=64, help="pixels per side (64)")
    parser.add_argument("--per_shard", type=int, default=64, help="pictures in a tar (64)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    write_scenes(**vars(options))
    print(f"{options.num} pictures with captions in {options.out}")


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
