"""Every setting, its default and its meaning, once; and the checks that need no object built.

The defaults are the paper's four fixes on Stable Diffusion's schedule. A file in `configs/` changes
what its recipe changes. `zsnr_jax.build` turns the settings into objects, and checks those that
belong to one of them (a schedule's name, a sampler's eta) there.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from zsnr_jax.errors import UsageError
from zsnr_jax.files import flatten, shown

Config = Any  # a ConfigDict, whose keys type checkers cannot see
Variant = Callable[[Config], None]


def default_config() -> Config:
    """All settings. Override on the command line as --config.sampler.num_steps=25, say."""
    config: Config = ConfigDict()
    config.seed = 0  # of initialisation, data order, noise and samples
    # A Stable Diffusion folder in diffusers' format. Its UNet is then trained, on dataset.latents;
    # dataset.name and model.* below, but for remat and dtype, are of runs without one, on images.
    config.pretrained = ""

    config.dataset = ConfigDict()
    config.dataset.name = (
        "brightness/32"  # a TFDS name; brightness/{8,16,32,64}, digits are embedded
    )
    config.dataset.latents = ""  # with pretrained: a folder of python -m zsnr_jax.data.encode
    config.dataset.batch_size = 64  # over all devices and hosts
    config.dataset.image_size = 0  # resize (centre crop) to this many pixels a side; 0 keeps theirs
    config.dataset.flip = False  # mirror images at random: for natural images
    config.dataset.data_dir = ""  # where TFDS keeps data; empty: ~/tensorflow_datasets

    config.schedule = ConfigDict()
    config.schedule.name = "scaled_linear"  # linear | cosine | scaled_linear (Stable Diffusion's)
    config.schedule.num_steps = 1000  # T
    config.schedule.zero_terminal_snr = True  # fix 1: SNR(T) is exactly 0

    config.prediction = "v"  # fix 2: v | x0 | eps; eps cannot have zero terminal SNR

    config.loss = ConfigDict()
    # snr_plus_one (plain for v) | snr (plain for eps) | uniform (plain for x0) | truncated_snr |
    # min_snr_plus_one | min_snr_at_least_one | min_snr_zero_at_terminal (does not learn t = T)
    config.loss.weight = "snr_plus_one"
    config.loss.gamma = config_dict.placeholder(float)  # cap of the min_snr weights; unset: 5
    config.loss.label_dropout = 0.1  # share of labels or captions hidden, which guidance needs
    config.loss.offset_noise = 0.0  # strength of a baseline, of which the paper's is 0.1; 0: none

    config.model = ConfigDict()
    config.model.channels = (64, 128, 256)  # per resolution, finest first; each halves the last
    config.model.num_res_blocks = 2  # per resolution, down and again up
    config.model.attention = (False, False, True)  # per resolution
    config.model.head_dim = 32  # channels of an attention head; divides the resolution's channels
    config.model.patch_size = 1  # pixels per side of the blocks the network works on
    config.model.dropout = 0.0
    # Length of a fresh label's embedding; the level's is 6 to 13, of 64 to 256 channels. At 1 it
    # takes a network long to heed labels, which tell something at the noisiest levels alone.
    config.model.label_scale = 1.0
    config.model.remat = False  # recompute blocks in the backward pass: less memory, more time
    config.model.dtype = "float32"  # float32 | bfloat16: of the computation, never of parameters

    config.optimizer = ConfigDict()
    # adamw | muon: convolutions' kernels by their momentum made orthogonal, the rest by AdamW
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4  # peak
    config.optimizer.warmup_steps = 100  # linear from 0
    config.optimizer.decay = "cosine"  # cosine, to a twentieth of the peak | constant
    config.optimizer.b1 = 0.9  # Adam; Muon's momentum, too
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0  # decoupled (AdamW), on kernels only
    config.optimizer.clip_norm = 1.0  # of the whole gradient; 0: none

    config.ema = ConfigDict()
    config.ema.decay = 0.9999  # of the averaged parameters that are sampled; rises to it from 0.1

    config.train = ConfigDict()
    config.train.num_steps = 100_000
    # Steps per call to the devices; more than 1 pays on accelerators, and slows a CPU down. It
    # divides num_steps, log_every, sample_every and save_every.
    config.train.steps_per_dispatch = 1
    config.train.accumulate = 1  # microbatches of a step, to save memory; divides a device's rows
    config.train.log_every = 100  # steps; also of the loss probe at t = T
    config.train.sample_every = 0  # steps between grids of samples (the end has its own); 0: none
    config.train.save_every = 5_000  # steps; a checkpoint is also written at the end
    config.train.keep = 3  # checkpoints kept, the newest
    config.train.keep_every = 0  # and those of every so many steps, for good; 0: none
    config.train.max_skipped = 10  # steps in a row that may be skipped since they are not finite

    config.sampler = ConfigDict()
    # ddim | ddpm | euler | euler_ancestral | heun | dpmpp_2m | dpmpp_2m_sde
    config.sampler.name = "ddim"
    # 0: no fresh noise .. 1: all fresh. Unset: 0 of ddim, 1 of euler_ancestral; others have none
    config.sampler.eta = config_dict.placeholder(float)
    # fix 3: leading | linspace | trailing, and beyond the paper karras | uniform_logsnr
    config.sampler.spacing = "trailing"
    config.sampler.steps_offset = 0  # added to leading levels; Stable Diffusion's is 1
    config.sampler.num_steps = 50  # S, 1..T
    config.sampler.final_level = 0  # 0: end at clean data; 1: as set_alpha_to_one=False elsewhere
    config.sampler.start = "noise"  # noise | signal_leak (a baseline for flawed recipes)
    config.sampler.leak_frequencies = 4  # of signal_leak: low frequencies per side that go together
    config.sampler.guidance = "rescaled"  # rescaled | projected (adaptive projected guidance)
    config.sampler.guidance_scale = 3.0  # w of the guided samples; statistics are taken at 1
    config.sampler.guidance_rescale = 0.7  # fix 4: phi in [0, 1], of rescaled guidance
    config.sampler.guidance_interval = ()  # (lowest, highest) level that is guided; (): all of them
    config.sampler.negative_label = config_dict.placeholder(int)  # unset: the hidden label
    config.sampler.projected = ConfigDict()
    config.sampler.projected.eta = 0.0  # share of the parallel part that is kept
    config.sampler.projected.momentum = -0.5  # of the last level's difference
    config.sampler.projected.norm_threshold = 0.0  # longest difference of an image; 0: any

    config.evaluation = ConfigDict()
    config.evaluation.num_samples = 512  # for the statistics
    config.evaluation.batch_size = 128  # samples drawn at once, over all devices
    # The rest is of runs with pretrained. Prompts: .txt, a line each, or .jsonl of {"prompt":
    # "...", "negative": "..."}; none: captions of the data, evenly.
    config.evaluation.prompts = ""
    config.evaluation.inception = ""  # weights in safetensors, for FID and IS; none: not measured
    config.evaluation.fid_statistics = ""  # of real images: python -m zsnr_jax.evaluation.fid
    config.evaluation.clip = ""  # a CLIP folder in transformers' format; none: no CLIP score

    config.parallel = ConfigDict()
    config.parallel.mode = "pmap"  # pmap: the state whole on every device | fsdp: in slices
    config.parallel.mesh = ()  # of fsdp, (replicas, slices) of all devices; (): 64 slices or less
    config.parallel.heartbeat = 100  # seconds of silence after which a host counts as lost

    config.plan = ConfigDict()
    config.plan.topology = ""  # of --mode=plan: a TPU as v5e:4x4; empty: the devices there are
    return config


# What may differ when a run is resumed or sampled: it changes no parameter of the network.
MAY_CHANGE = ("sampler", "evaluation", "parallel", "plan", "train.accumulate", "train.log_every",
              "train.sample_every", "train.save_every", "train.keep", "train.max_skipped",
              "dataset.data_dir", "model.remat")  # fmt: skip
# Folders may move, once training has begun: a checkpoint's record says what they held.
_MAY_MOVE = ("pretrained", "dataset.latents")


def with_variants(config: Config, chosen: str, variants: Mapping[str, Variant]) -> Config:
    """Apply the variants named after the colon of --config=FILE.py:a,b in order; lock the config.

    Raises: UsageError for a variant that the file does not have.
    """
    for name in filter(None, chosen.split(",")):
        if name not in variants:
            raise UsageError(f"variant {name!r} is unknown: this config has {', '.join(variants)}.")
        variants[name](config)
    return config.lock()


def stable_diffusion(config: Config) -> None:
    """Fine-tune Stable Diffusion 2.1-base on 512 x 512 pictures, as arXiv 2305.08891 does.

    Batch 2048, learning rate 1e-4, EMA 0.9999, 50k steps; sampled by 50 DDIM steps, w = 7.5,
    phi = 0.7. The paper leaves open, and here is chosen: AdamW (0.9, 0.999) with weight decay 0.01,
    as Stable Diffusion was trained with; 1000 steps of warm-up, then level; gradients clipped to
    norm 1; 10 % of captions dropped; bfloat16 with float32 parameters, norms and softmax.
    """
    config.dataset.image_size = 512
    config.dataset.batch_size = 2048
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1_000
    config.optimizer.decay = "constant"
    config.optimizer.weight_decay = 0.01
    config.train.num_steps = 50_000
    config.train.sample_every = 5_000
    config.train.save_every = 1_000
    config.sampler.guidance_scale = 7.5
    config.evaluation.num_samples = 10_000
    config.evaluation.batch_size = 1_024
    config.parallel.mode = "fsdp"


def flawed(config: Config) -> None:
    """Undo the four fixes, and nothing else: Stable Diffusion's recipe, which the paper mends."""
    config.schedule.zero_terminal_snr = False
    config.prediction = "eps"
    config.loss.weight = "snr"  # plain for an eps network, as snr_plus_one is for a v network
    config.sampler.spacing = "leading"
    config.sampler.steps_offset = 1  # these two as Stable Diffusion has them
    config.sampler.final_level = 1
    config.sampler.guidance_rescale = 0.0


def smoke(config: Config) -> None:
    """Everything runs, in under a minute on a laptop, and nothing is learnt."""
    config.dataset.name = "brightness/16"
    config.dataset.batch_size = 16
    config.model.channels = (16, 32)
    config.model.num_res_blocks = 1
    config.model.attention = (False, True)
    config.model.head_dim = 16
    config.model.patch_size = 2
    config.optimizer.warmup_steps = 2
    config.train.num_steps = 20
    config.train.steps_per_dispatch = 1
    config.train.log_every = 5
    config.train.sample_every = 10
    config.train.save_every = 10
    config.sampler.num_steps = 10
    config.evaluation.num_samples = 64
    config.evaluation.batch_size = 64


def smoke_latents(config: Config) -> None:
    """Everything of a run on latents, in a minute on a laptop, and nothing is learnt."""
    config.dataset.image_size = 0  # whatever the latents are of
    config.dataset.batch_size = 16
    config.model.dtype = "float32"
    config.optimizer.warmup_steps = 2
    config.train.num_steps = 20
    config.train.log_every = 5
    config.train.sample_every = 10
    config.train.save_every = 10
    config.sampler.num_steps = 5
    config.evaluation.num_samples = 16
    config.evaluation.batch_size = 16


def validate(config: Config) -> None:
    """Refuse values that no object of the run would refuse by itself, or only too late.

    Raises: UsageError, one sentence for the first of them.
    """
    values = flatten(config.to_dict())
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name} must be a finite number, and it is {value}.")
        if isinstance(value, int | float) and abs(value) > _MOST and name != "seed":
            raise UsageError(f"{name} must be within +-{_MOST}, and it is {shown(value)}.")
    for name, kind in _LISTS.items():
        if not all(type(entry) is kind for entry in values[name]):
            said = f"{name} must be a list of {kind.__name__}"
            raise UsageError(f"{said}, and it is {shown(values[name])}.")
    for name in _AT_LEAST_1:
        if values[name] < 1:
            raise UsageError(f"{name} must be at least 1, and it is {values[name]}.")
    for name in _AT_LEAST_0:
        if values[name] < 0:
            raise UsageError(f"{name} must not be below 0, and it is {values[name]}.")
    for name in _SHARES:
        if not 0 <= values[name] <= 1:
            raise UsageError(f"{name} must be in [0, 1], and it is {values[name]}.")
    for name in _BELOW_1:
        if not 0 <= values[name] < 1:
            raise UsageError(f"{name} must be in [0, 1), and it is {values[name]}.")
    if not -1 < config.sampler.projected.momentum <= 0:
        raise UsageError(
            "sampler.projected.momentum must be above -1 and at most 0, and it is "
            f"{config.sampler.projected.momentum}."
        )
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"seed must be from 0 to 2^32 - 1, and it is {config.seed}.")
    if not config.model.channels or min(config.model.channels) < 1:
        raise UsageError(f"model.channels={config.model.channels} must be one or more sizes.")
    stride = config.train.steps_per_dispatch
    for name in ("num_steps", "log_every", "sample_every", "save_every"):
        if config.train[name] % stride:
            raise UsageError(
                f"train.{name}={config.train[name]} must be a multiple of "
                f"train.steps_per_dispatch={stride}: logs and checkpoints fall between dispatches."
            )


_MOST = 2**31 - 1  # of any setting
_LISTS = {
    "model.channels": int, "model.attention": bool, "sampler.guidance_interval": int,
    "parallel.mesh": int,
}  # fmt: skip
_AT_LEAST_1 = (
    "train.num_steps", "train.steps_per_dispatch", "train.accumulate", "train.log_every",
    "train.save_every", "train.keep", "dataset.batch_size", "evaluation.num_samples",
    "evaluation.batch_size", "parallel.heartbeat", "model.patch_size", "model.num_res_blocks",
    "model.head_dim",
)  # fmt: skip
_AT_LEAST_0 = (
    "train.sample_every", "train.keep_every", "train.max_skipped", "dataset.image_size",
    "optimizer.clip_norm", "optimizer.weight_decay", "optimizer.learning_rate", "loss.offset_noise",
    "sampler.projected.norm_threshold", "model.label_scale",
)  # fmt: skip
_SHARES = (
    "loss.label_dropout", "sampler.guidance_rescale", "sampler.projected.eta", "ema.decay",
)  # fmt: skip
_BELOW_1 = ("model.dropout", "optimizer.b1", "optimizer.b2")


def to_json(config: Config) -> dict[str, Any]:
    """The resolved settings as plain JSON: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a result of `to_json`, by their dotted names.

    One that an older run does not know yet was, for it, what is now its default.
    """
    return flatten(to_json(default_config())) | flatten(settings)


def of_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that parameters depend on, by their dotted names: all but `MAY_CHANGE`."""
    return {k: v for k, v in flat(settings).items() if not k.startswith(MAY_CHANGE)}


def require_same_run(saved: Mapping[str, Any], current: Mapping[str, Any], where: str) -> None:
    """Refuse to continue in a workdir that another run's settings made.

    Args: saved, current: two results of `to_json`; where: the workdir, for the message.
    Raises: UsageError naming the first setting that differs, and both values.
    """
    if not isinstance(saved, Mapping):
        raise UsageError(f"{where} has a config.json without settings: choose another --workdir.")
    saved, current = of_training(saved), of_training(current)
    for name in sorted(saved.keys() | current.keys()):
        if saved.get(name) == current.get(name) or name in _MAY_MOVE:
            continue
        known = name if name.isprintable() else shown(name)
        raise UsageError(
            f"{where} holds a different run, with {known[:80]}={shown(saved.get(name))} where this "
            f"one has {shown(current.get(name))}: choose another --workdir, or set it back (only "
            f"{', '.join(MAY_CHANGE)} may change)."
        )
