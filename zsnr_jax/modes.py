"""What each --mode of `zsnr_jax.main` does: train, evaluate, sample, plan, import, export."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from zsnr_jax import (
    build,
    files,
    parallel,
    planning,
    plotting,
    preemption,
    results,
    text_to_image,
)
from zsnr_jax import config as config_lib
from zsnr_jax import plan as plan_lib
from zsnr_jax.build import LatentRun, Run
from zsnr_jax.checkpoints import Checkpoints
from zsnr_jax.config import Config
from zsnr_jax.errors import DamagedError, UsageError
from zsnr_jax.generate import to_uint8
from zsnr_jax.process import DiffusionProcess
from zsnr_jax.train import loop
from zsnr_jax.train.state import TrainState, init_state


def train(config: Config, workdir: Path, command: str) -> None:
    """Train a run, or go on with the one that the workdir holds; then evaluate it.

    Raises: UsageError where the workdir cannot be made, or holds another run.
    """
    run = _build_to_train(config)
    _claim(workdir, run)
    _say(parameter_table(run))
    start = time.perf_counter()
    with _open(workdir, run) as checkpoints:
        state, window = _resume(run, checkpoints)
        first = int(state.step)
        if first:
            _say(f"Going on from step {first} of {run.loop.num_steps} in {workdir}.")
        else:
            _warn(run)
        if first < run.loop.num_steps:
            state = _train(run, state, window, checkpoints, workdir)
    preemption.check("going on to evaluate")
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
    _results_of(run).write_samples(run, state.ema_params, folder)
    _say(f"Samples: guided.png, samples.npz and more in {folder}")


def import_weights(config: Config, workdir: Path, command: str) -> None:
    """Make checkpoint 0 of a run from the folder that config.pretrained names."""
    del command
    if not config.pretrained:
        raise UsageError("--mode=import needs --config.pretrained, a Stable Diffusion folder.")
    run = _build_to_train(config)
    _claim(workdir, run)
    _say(parameter_table(run))
    with _open(workdir, run) as checkpoints:
        if (step := checkpoints.latest_step()) is not None:
            raise UsageError(
                f"{workdir} holds checkpoint {step} already: choose another --workdir."
            )
        checkpoints.save(0, _fresh(run), run.record)
    _warn(run)
    _say(f"Imported into {workdir}: --mode=train goes on from there.")


def export(config: Config, workdir: Path, command: str) -> None:
    """Write the newest averaged weights as a folder for diffusers: WORKDIR/diffusers."""
    del command
    run, state = load(config, workdir)
    if not isinstance(run, LatentRun):
        raise UsageError("--mode=export is of runs with config.pretrained: others have no folder.")
    params, out = run.placement.gather(state.ema_params), workdir / "diffusers"
    if parallel.is_first_host():
        run.export(jax.device_get(params), out)
    _say(f"Exported step {int(state.step)} to {out}: StableDiffusionPipeline.from_pretrained.")


def plan(config: Config, workdir: Path, command: str) -> None:
    """Compile the run's programs for config.plan.topology, and tell what a step costs there.

    The table is printed and the same written to plan.json. Nothing is trained or drawn; a run on
    latents needs neither weights nor data there.
    """
    del command
    found = planning.plan_run(build.plan(config))
    _say(plan_lib.table(found))
    if parallel.is_first_host():
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_text(workdir / "plan.json", json.dumps(found.to_dict(), indent=2) + "\n")


def load(config: Config, workdir: Path) -> tuple[Run, TrainState]:
    """The run and its newest state; nothing in the checkpoints folder is changed."""
    run = build.build(config)
    if not (workdir / "checkpoints").is_dir():
        raise UsageError(f"{workdir} holds no checkpoints: train there first, with --mode=train.")
    with _open(workdir, run, read_only=True) as checkpoints:
        if checkpoints.latest_step() is None:
            raise UsageError(f"{workdir} holds no checkpoint yet: train there first.")
        state, _ = _resume(run, checkpoints)
    _require_same_run(workdir, run)
    return run, state


def parameter_table(run: Run) -> str:
    """The network's parameters, module by module."""
    shapes = run.state_shapes().params
    shapes = shapes.get("params", shapes)
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()
    }
    width = max(map(len, counts))
    lines = [f"  {name:<{width}}  {count:>12,}" for name, count in counts.items()]
    return "\n".join([*lines, f"  {'in all':<{width}}  {sum(counts.values()):>12,} parameters"])


def _train(
    run: Run,
    state: TrainState,
    window: dict[str, Any] | None,
    checkpoints: Checkpoints,
    workdir: Path,
) -> TrainState:
    def draw_grid(state: TrainState) -> np.ndarray:
        drawn = to_uint8(run.preview(state.ema_params))
        return plotting.image_grid(plotting.by_brightness(drawn, 32))

    parts = loop.Parts(
        step=run.train_step(run.placement),
        probe=run.probe(run.placement),
        learning_rate=run.learning_rate,
        levels=run.levels,
        draw_grid=draw_grid,
        checkpoints=checkpoints,
        record=run.record,
        workdir=workdir,
    )
    batches = run.batches(int(state.step))
    return loop.train(state, batches, parts, run.loop, run.placement, window)


def _evaluate(
    run: Run, state: TrainState, workdir: Path, command: str, seconds: float | None
) -> None:
    found = _results_of(run).evaluate(
        run, state.ema_params, workdir, step=int(state.step), command=command, train_seconds=seconds
    )
    for name, estimate in found["metrics"].items():
        if "/" not in name.partition("/")[2] and estimate["value"] is not None:  # not of one label
            interval = " [{low:.3f}, {high:.3f}]" if "low" in estimate else ""
            _say(("{:<26} {value:.3f}" + interval).format(name, **estimate))
    _say(f"The page: {workdir / 'report.html'}")


def _results_of(run: Run) -> ModuleType:
    """Where a kind of run has its evaluation: `write_samples` and `evaluate`."""
    return text_to_image if isinstance(run, LatentRun) else results


def _build_to_train(config: Config) -> Run:
    parallel.require_divisible(config.dataset.batch_size, "dataset.batch_size")
    run = build.build(config)
    rows = config.dataset.batch_size // run.placement.num_devices
    if rows % config.train.accumulate:
        raise UsageError(
            f"train.accumulate={config.train.accumulate} does not divide the {rows} rows that a "
            f"device has of dataset.batch_size={config.dataset.batch_size}: choose a divisor."
        )
    return run


def _say(text: str) -> None:
    if parallel.is_first_host():
        print(text)


def _warn(run: Run) -> None:
    """Tell what a fine-tuned network was not trained for, where there is such."""
    if isinstance(run, LatentRun) and (told := run.told()):
        _say(told)


def _claim(workdir: Path, run: Run) -> None:
    """Make the workdir, or check that the run it holds is this one."""
    path = workdir / "config.json"
    try:
        if parallel.is_first_host():
            (workdir / "samples").mkdir(parents=True, exist_ok=True)
            if not path.exists():
                files.write_text(path, json.dumps(run.settings, indent=2) + "\n")
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} cannot be made or written to ({error.strerror}): choose another."
        ) from error
    parallel.wait_for_hosts("claim")
    _require_same_run(workdir, run)


def _require_same_run(workdir: Path, run: Run) -> None:
    path, remedy = workdir / "config.json", "choose another --workdir, which all hosts can see"
    try:
        saved = files.read_json(path, remedy)
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}: {remedy}.") from error
    config_lib.require_same_run(saved, run.settings, str(workdir))


def _resume(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, dict[str, Any] | None]:
    """The newest whole checkpoint's state and log, where it belongs to this run; or a fresh state.

    One that is damaged is passed over, and set aside where checkpoints may be changed.
    Raises: UsageError where a checkpoint is of another run, and where all are damaged.
    """
    damaged: list[int] = []
    for step in checkpoints.steps():
        try:
            found = _read(run, checkpoints, step)
        except DamagedError as error:
            _say(f"warning: {error}.")
            damaged.append(step)
            continue
        if damaged:  # and only now that there is one to go on from
            _set_aside(checkpoints, damaged, step)
        return found
    if damaged:
        raise UsageError(
            "no checkpoint is whole: copy one back, or start over in another --workdir."
        )
    return _fresh(run), None


def _set_aside(checkpoints: Checkpoints, damaged: list[int], step: int) -> None:
    """Tell of damaged checkpoints, and move them where checkpoints may be changed."""
    for newer in damaged if parallel.is_first_host() else ():
        place = checkpoints.set_aside(newer)
        _say(f"Going back to step {step}." + (f" Step {newer} is now {place}." if place else ""))
    parallel.wait_for_hosts("set aside")
    checkpoints.reload()


def _read(
    run: Run, checkpoints: Checkpoints, step: int
) -> tuple[TrainState, dict[str, Any] | None]:
    """One checkpoint's state and log. Raises: UsageError where it is of another run, or damaged."""
    saved = checkpoints.record(step)
    with files.readable(f"the record of checkpoint {step}", "choose another --workdir"):
        _require_same_record(run, saved, step)
    like = run.state_shapes()
    state = checkpoints.restore(step, saved, like, run.placement.shardings(like))
    return state.replace(frozen=run.placement.put(run.frozen())), saved.get("window")


def _require_same_record(run: Run, saved: dict[str, Any], step: int) -> None:
    """Refuse a checkpoint of another process, network or data."""
    mine = run.record
    run.process.require_same(
        DiffusionProcess.from_dict(saved["process"]), "the config", f"checkpoint {step}"
    )
    for part in mine.keys() - {"process"}:
        theirs = saved.get(part, {})
        for name, value in mine[part].items():
            if theirs.get(name) != value:
                raise UsageError(
                    f"checkpoint {step} has {part} {name}={theirs.get(name)!r} and the config "
                    f"{value!r}: set it back, or choose another --workdir."
                )


def _fresh(run: Run) -> TrainState:
    """The state before the first step, where the steps return it."""
    make = jax.jit(
        lambda params, frozen: init_state(params, run.optimizer, frozen),
        out_shardings=run.placement.shardings(run.state_shapes()),
        donate_argnums=(0, 1),
    )
    return make(run.placement.put(run.init_params()), run.placement.put(run.frozen()))


@contextlib.contextmanager
def _open(workdir: Path, run: Run, read_only: bool = False) -> Iterator[Checkpoints]:
    """Checkpoints that are closed, hence wholly written, whatever happens."""
    keep, keep_every = run.loop.keep, run.loop.keep_every
    checkpoints = Checkpoints(workdir / "checkpoints", keep, keep_every, read_only)
    try:
        yield checkpoints
    finally:
        checkpoints.close()
