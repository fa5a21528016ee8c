"""What each --mode of `zsnr_jax.main` does: train, evaluate, sample."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from zsnr_jax import build, files, parallel, plotting, results
from zsnr_jax import config as config_lib
from zsnr_jax.checkpoints import Checkpoints
from zsnr_jax.config import Config
from zsnr_jax.errors import UsageError
from zsnr_jax.generate import spread_labels, to_uint8
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.train import loop
from zsnr_jax.train.state import TrainState
from zsnr_jax.train.step import make_probe, make_train_step


def train(config: Config, workdir: Path, command: str) -> None:
    """Train a run, or go on with the one that the workdir holds; then evaluate it.

    Raises: UsageError where the workdir cannot be made, or holds another run.
    """
    parallel.require_one_host()
    parallel.require_divisible(config.dataset.batch_size, "dataset.batch_size")
    run = build.build(config)
    _claim(workdir, run)
    print(parameter_table(run))
    start = time.perf_counter()
    with _open(workdir, run.loop.keep) as checkpoints:
        state = _resume(run, checkpoints)
        first = int(state.step)
        if first:
            print(f"Going on from step {first} of {run.loop.num_steps} in {workdir}.")
        if first < run.loop.num_steps:
            state = _train(run, state, checkpoints, workdir)
    seconds = time.perf_counter() - start if first == 0 else None  # not of a part of the run
    _evaluate(run, state, workdir, command, seconds)


def evaluate(config: Config, workdir: Path, command: str) -> None:
    """Measure the samples of the newest checkpoint."""
    run, state = load(config, workdir)
    _evaluate(run, state, workdir, command, None)


def sample(config: Config, workdir: Path, command: str) -> None:
    """Draw samples of the newest checkpoint into drawn/; samples/ stays what results.json says."""
    del command
    run, state = load(config, workdir)
    folder = workdir / "drawn"
    results.write_samples(run, jax.device_get(state.ema_params), folder)
    print(f"Samples: samples.png, guided.png and samples.npz in {folder}")


def load(config: Config, workdir: Path) -> tuple[build.Run, TrainState]:
    """The run and its newest state; nothing in the checkpoints folder is changed."""
    run = build.build(config)
    if not (workdir / "checkpoints").is_dir():
        raise UsageError(f"{workdir} holds no checkpoints: train there first, with --mode=train.")
    with _open(workdir, run.loop.keep, read_only=True) as checkpoints:
        if checkpoints.latest_step() is None:
            raise UsageError(f"{workdir} holds no checkpoint yet: train there first.")
        state = _resume(run, checkpoints)
    _require_same_run(workdir, run)
    return run, state


def parameter_table(run: build.Run) -> str:
    """The network's parameters, module by module."""
    shapes = jax.eval_shape(run.init_params)["params"]
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()
    }
    width = max(map(len, counts))
    lines = [f"  {name:<{width}}  {count:>12,}" for name, count in counts.items()]
    return "\n".join([*lines, f"  {'in all':<{width}}  {sum(counts.values()):>12,} parameters"])


def _train(
    run: build.Run, state: TrainState, checkpoints: Checkpoints, workdir: Path
) -> TrainState:
    labels = spread_labels(np.arange(run.source.info.num_classes), run.generator.batch_size)

    def draw_grid(state: TrainState) -> np.ndarray:
        drawn = run.generator(jax.device_get(state.ema_params), labels)
        return plotting.image_grid(plotting.by_brightness(to_uint8(drawn), 32))

    return loop.train(
        state,
        step=make_train_step(run.objective, run.optimizer, run.ema_decay, run.seed, parallel.AXIS),
        probe=make_probe(run.objective, run.seed, parallel.AXIS),
        learning_rate=run.learning_rate,
        batches=run.batches(int(state.step)),
        draw_grid=draw_grid,
        checkpoints=checkpoints,
        record=run.record,
        workdir=workdir,
        options=run.loop,
    )


def _evaluate(
    run: build.Run, state: TrainState, workdir: Path, command: str, seconds: float | None
) -> None:
    found = results.evaluate(
        run,
        jax.device_get(state.ema_params),
        workdir,
        step=int(state.step),
        command=command,
        train_seconds=seconds,
    )
    for name in ("brightness/std_ratio", "brightness/wasserstein1", "brightness/mean_recovery"):
        if (estimate := found["metrics"][name])["value"] is not None:
            print("{:<26} {value:.3f} [{low:.3f}, {high:.3f}]".format(name, **estimate))
    print(f"The page: {workdir / 'report.html'}")


def _claim(workdir: Path, run: build.Run) -> None:
    """Make the workdir, or check that the run it holds is this one."""
    path = workdir / "config.json"
    try:
        (workdir / "samples").mkdir(parents=True, exist_ok=True)
        if not path.exists():
            files.write_text(path, json.dumps(run.settings, indent=2) + "\n")
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} cannot be made or written to ({error.strerror}): choose another."
        ) from error
    _require_same_run(workdir, run)


def _require_same_run(workdir: Path, run: build.Run) -> None:
    path = workdir / "config.json"
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: choose another --workdir.") from error
    config_lib.require_same_run(saved, run.settings, str(workdir))


def _resume(run: build.Run, checkpoints: Checkpoints) -> TrainState:
    """The newest checkpoint's state where it belongs to this run; a fresh one where none is."""
    step = checkpoints.latest_step()
    if step is None:
        return run.init_state()
    saved, mine = checkpoints.record(step), run.record
    run.process.require_same(
        DiffusionProcess.from_dict(saved["process"]), "the config", f"checkpoint {step}"
    )
    for part in ("model", "data"):
        for name, value in mine[part].items():
            if saved[part].get(name) != value:
                raise UsageError(
                    f"checkpoint {step} has {part} {name}={saved[part].get(name)!r} and the config "
                    f"{value!r}: set it back, or choose another --workdir."
                )
    return checkpoints.restore(step, jax.eval_shape(run.init_state), parallel.replicated())


@contextlib.contextmanager
def _open(workdir: Path, keep: int, read_only: bool = False) -> Iterator[Checkpoints]:
    """Checkpoints that are closed, hence wholly written, whatever happens."""
    checkpoints = Checkpoints(workdir / "checkpoints", keep, read_only)
    try:
        yield checkpoints
    finally:
        checkpoints.close()
