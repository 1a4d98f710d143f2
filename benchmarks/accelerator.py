"""Benchmark of one accelerator, on the work of RLHF, against what the device can do.

python -m benchmarks.accelerator [--model=chatglm3_6b] [--out=accelerator] [--rows ...]

Rows: the device's ceilings (bytes read, bfloat16 products); decoding with 64 and 256
rows, in bfloat16 and int8; the updates of SFT, reward model and DPO (8 x 2,048 tokens,
AdamW in float32); whole iterations of GRPO (64 prompts, 2 responses each) and of PPO
with its critic (64 prompts), 512 new tokens, by launch/train.py; and transformers'
generation and SFT step, where torch sees the device. Weights are random.

Every row is measured in a process of its own, with a time limit; a row that fails keeps
its reason. All rows together end after --limit seconds; the same command again measures
what is missing (with its programs compiled before), --rows measures the named rows
anew. OUT.json holds everything, OUT.md the table. The same command serves TPUs and,
with --model=micro, a CPU. The device has to be free: nothing else may run on it.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.inputs import LEARNING_RATE, random_pairs
from benchmarks.timing import matrix_product_rate, read_rate
from configs.common import SMALL
from rlhf_jax.batches import PromptBatch, SFTBatch
from rlhf_jax.data.batching import packed_pairs, preference_batch
from rlhf_jax.files import read_json, write_json, write_text
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.launching.cli import use_compile_cache
from rlhf_jax.launching.device_groups import take_memory
from rlhf_jax.launching.jobs import Job
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import PRESETS
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.sharding import create, shard_batch
from rlhf_jax.planning import programs
from rlhf_jax.planning.flops import count_flops
from rlhf_jax.planning.roofline import GIB, Program, bytes_per_device
from rlhf_jax.training import optimizers
from rlhf_jax.training.metrics import read_metrics
from rlhf_jax.training.state import TrainState

ROOT = Path(__file__).parents[1]


class Sizes(NamedTuple):
    """Lengths in tokens, and rows of an update."""

    prompt: int  # of decoding
    response: int
    row: int  # of an update
    rows: int
    iteration_prompt: int
    iteration_response: int
    product: int  # rows of the matrices whose product is the ceiling
    read: int  # bytes of the array whose reading is the ceiling


LARGE = Sizes(256, 256, 2048, 8, 128, 512, product=16384, read=4 * GIB)
LITTLE = Sizes(16, 8, 32, 2, 64, 8, product=256, read=2**20)
PROMPTS = 64  # of an iteration
ITERATIONS = 2  # of which the last is measured: the first compiles
POLL = 0.2  # seconds between two looks for a run's metrics
ENOUGH = 2  # seconds of calls that make a median
SHORTEST = 1  # seconds of a row that is worth starting
LONGEST = 400  # characters of a reason

# A run of many iterations, without evaluation, checkpoints and other terms than PPO's.
RUN = {
    "total_steps": 1000,
    "eval_every": 0,
    "save_every": 0,
    "num_samples": 0,
    "baseline": "none",
    "beta_sft": 0.0,
    "kl_ceiling": 1e9,
    "data.testbed.num_sft": 200,
    "data.testbed.num_sft_test": 8,
    "data.testbed.num_comparison_prompts": 8,
    "data.testbed.num_rl_prompts": 256,
    "data.testbed.num_eval_prompts": 8,
    "data.testbed.num_probes": 0,
}

# The settings of PPO on one GPU, see docs/memory_planning.md.
ON_ONE_GPU = {
    **{
        f"{name}.{key}": value
        for name in ("optimizer", "value_optimizer")
        for key, value in (
            ("fused", True),
            ("clip", "per_layer"),
            ("moment_dtype", "bfloat16"),
        )
    },
    "offload_moments": True,
    "offload_frozen": True,
    "frozen_param_dtype": "int8",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="chatglm3_6b", choices=PRESETS)
    parser.add_argument("--out", type=Path, default=Path("accelerator"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="measure these anew")
    parser.add_argument("--limit", type=float, default=360, help="seconds of all rows")
    parser.add_argument("--row_limit", type=float, help="seconds of each row")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.row:  # in a process of its own
        use_compile_cache()
        print(json.dumps(ROWS[flags.row].measure(flags.model)))
        return

    began = time.monotonic()
    place = flags.out.with_suffix(".json")
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        before = read_json(place) if place.exists() else {}
        rows = dict(before.get("rows", {}))
    except (ValueError, AttributeError):
        parser.error(f"--out: {place} is another file's: choose another name.")
    if before.get("model", flags.model) != flags.model:
        parser.error(f"--out: {place} is of {before['model']}: choose another name.")
    for name in ROWS:
        is_missing = "seconds" not in rows.get(name, {})
        is_wanted = name in flags.rows if flags.rows else is_missing
        if not is_wanted and name != "ceilings":
            continue
        left = began + flags.limit - time.monotonic()
        limit = min(left, flags.row_limit or ROWS[name].limit)
        row = measured(name, flags.model, limit)
        rows[name] = row | {"date": time.strftime("%Y-%m-%d")}
        print(json.dumps({"row": name} | rows[name]), flush=True)
        device = rows["ceilings"].get("device") or before.get("device")
        if device != (before.get("device") or device):
            parser.error(f"--out: {place} is of {before['device']}: choose another.")
        write_json(place, {"model": flags.model, "device": device, "rows": rows})
    text = table(flags.model, rows)
    write_text(flags.out.with_suffix(".md"), text)
    print(text)


class Row(NamedTuple):
    """A row of the table: its work, its time limit in seconds, and its ceiling."""

    measure: Callable[[str], dict]
    limit: float
    of: str = ""  # "tflops" or "read_gb_per_second"


def measured(name: str, model: str, limit: float) -> dict:
    """Measure a row in a process of its own; a failure gives its reason."""
    if limit < SHORTEST:
        return {
            "reason": "not started: no time was left. Start the same command again."
        }
    environment = dict(os.environ)
    take_memory(environment)
    command = [sys.executable, "-m", "benchmarks.accelerator"]
    process = subprocess.Popen(
        [*command, f"--row={name}", f"--model={model}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # killed with all that it has started
    )
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return {"reason": f"killed after {limit:.0f} s"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        return {"reason": reason_of(errors, process.returncode)}
    return json.loads(output.splitlines()[-1])


def reason_of(errors: str, status: int) -> str:
    """Return the line of a failed process's messages that says why it ended."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [
        line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)
    ]
    reason = [*lines[-1:], *named[-1:]][-1:] or [f"status {status}, without a word"]
    return reason[0][:LONGEST]


def table(model: str, rows: dict[str, dict]) -> str:
    """Return the rows as a table in markdown."""
    best = rows["ceilings"]
    title = f"{model} on {best.get('device', 'a device that does not answer')}"
    lines = [f"{title}, {best['date']}, jax {jax.__version__}", ""]
    if "seconds" in best:
        lines += [
            f"Ceilings of a device: {best['tflops']:,.3g} TFLOP/s of bfloat16 "
            f"products, {best['read_gb_per_second']:,.4g} GB/s of reading.",
            "",
        ]
    lines += ["| row | tokens/s | seconds | share of the ceiling | GiB | parts |"]
    lines += ["|---|---|---|---|---|---|"]
    for name in ROWS:
        if name not in rows or (name == "ceilings" and "seconds" in best):
            continue
        row = rows[name]
        if "reason" in row:
            lines.append(f"| {name} | | | | | {row['reason'].replace('|', '/')} |")
            continue
        parts = [f"{part} {x:.3g} s" for part, x in row.get("parts", {}).items()]
        if parts:  # the share is the update's
            parts.append(f"update {row['update_tokens_per_second']:,} tokens/s")
        lines.append(
            f"| {name} | {row['tokens_per_second']:,} | {row['seconds']:.3g} | "
            f"{share(ROWS[name].of, row, best)} | {row.get('peak_gib', '')} | "
            f"{', '.join(parts)} |"
        )
    return "\n".join(lines) + "\n"


def share(of: str, row: dict, ceiling: dict) -> str:
    """Return a row's rate and its share of the ceiling of all devices, in words."""
    if of not in row or of not in ceiling:
        return ""
    unit = {"tflops": "TFLOP/s", "read_gb_per_second": "GB/s"}[of]
    part = row[of] / ceiling[of] / ceiling["devices"]
    return f"{row[of]:,.4g} {unit}, {part:.0%}"


def ceilings(model: str) -> dict:
    """Measure a large bfloat16 product, and the reading of a large array."""
    sizes, began = sizes_of(model), time.perf_counter()
    device = jax.devices()[0]
    rates = {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "devices": jax.device_count(),
        "tflops": matrix_product_rate(jnp.bfloat16, size=sizes.product) / 1e12,
        "read_gb_per_second": read_rate(sizes.read) / 1e9,
    }
    return rates | {"seconds": round(time.perf_counter() - began, 2)}


def decode(model: str, *, rows: int, weights: str) -> dict:
    """Measure PPO's generate program: the prompts, the decode loop, the sampling. The
    weights are stored as they are read, in the dtype of the computation or in int8."""
    sizes = sizes_of(model)
    fields = {
        "batch_size": rows,
        "minibatches": 1,
        "beta_sft": 0.0,
        "max_prompt_tokens": sizes.prompt,
        "max_response_tokens": sizes.response,
        "rollout_param_dtype": weights,
    }
    config = job("ppo", model, fields).resolve()
    config.param_dtype = config.dtype
    with jax.set_mesh(make_mesh(config.mesh)):
        program = find(programs.of(config), "generate")
        shapes = program.arguments[0]
        policy = create(functools.partial(random_model, shapes))
        prompts = np.random.default_rng(0).integers(
            4, shapes.config.vocab_size, (rows, sizes.prompt), dtype=np.int32
        )
        mask = np.ones(prompts.shape, bool)
        batch = PromptBatch(prompts, mask, np.arange(rows, dtype=np.int32))
        keys = map(jax.random.key, itertools.count())
        sampling = program.function.keywords["sampling"]
        out, row = timed(lambda: rollout(policy, batch, next(keys), sampling))
        row["tokens_per_second"] = round(
            float(out.response_mask.sum()) / row["seconds"]
        )
        return row | work_of(program, program, row["seconds"])


def update(model: str, *, stage: str) -> dict:
    """Measure the update of SFT, reward model or DPO on rows without padding."""
    sizes = sizes_of(model)
    prompt, response = sizes.row // 4, sizes.row * 3 // 8
    fields = {"batch_size": sizes.rows}
    if stage == "sft":
        fields["max_tokens"] = sizes.row
    else:
        fields |= {"max_prompt_tokens": prompt, "max_response_tokens": response}
    if stage == "dpo":
        fields["beta_sft"] = 0.0
    config = job(stage, model, fields).resolve()
    with jax.set_mesh(make_mesh(config.mesh)):
        program = find(programs.of(config), "update")
        useful = find(programs.of(config, recompute=False), "update")
        shapes = program.arguments[0].model
        pairs = random_pairs(
            sizes.rows,
            prompt=prompt,
            response=response,
            vocab_size=shapes.config.vocab_size,
        )
        if stage == "sft":
            tokens = np.array([[*p, *c, *r] for p, c, r in pairs], np.int32)
            batch = SFTBatch(tokens, *[np.ones(tokens.shape, bool)] * 2)
            others = ()
        elif stage == "reward":
            batch = packed_pairs(pairs, pad_id=0, multiple=1, batch_size=sizes.rows)
            others = ()
        else:
            batch = preference_batch(pairs, pad_id=0, multiple=1)
            others = (np.zeros((sizes.rows, 2), np.float32), None, None)
        batch, others = shard_batch((batch, others))
        optimizer = optimizers.from_config(config.optimizer)
        state = create(lambda: TrainState.create(random_model(shapes), optimizer))
        step = jax.jit(program.function, donate_argnums=0)

        def call():
            nonlocal state
            state, metrics = step(state, batch, *others, LEARNING_RATE)
            return state.step, metrics

        _, row = timed(call)
        work = sum(map(len, itertools.chain(*pairs)))
        row["tokens_per_second"] = round(work / row["seconds"])
        return row | work_of(program, useful, row["seconds"])


def iteration(model: str, *, advantage: str) -> dict:
    """Measure whole iterations of launch/train.py, which is killed when the last one is
    written: parts, response tokens a second, and the update's rate. This process leaves
    the device to that one."""
    sizes = sizes_of(model)
    fields = dict(RUN) | {
        "batch_size": PROMPTS,
        "max_prompt_tokens": sizes.iteration_prompt,
        "max_response_tokens": sizes.iteration_response,
        "pad_to_multiple": sizes.iteration_prompt,
        "advantage": advantage,
    }
    if advantage == "grpo":
        fields |= {"samples_per_prompt": 2, "batch_size": 2 * PROMPTS}
    else:
        fields |= ON_ONE_GPU
    fields["minibatches"] = fields["batch_size"] // 8
    with tempfile.TemporaryDirectory() as folder:
        run = job("ppo", model, fields, f"{folder}/run")
        lines = metrics_of(run, ITERATIONS)
    last = lines[-1]
    names = ("time/generate", "time/score", "time/update")
    parts = {name.removeprefix("time/"): last[name] for name in names}
    seconds = sum(parts.values())
    jax.config.update("jax_platforms", "cpu")
    config = run.resolve()
    with jax.set_mesh(make_mesh(config.mesh)):
        useful = find(programs.of(config, recompute=False), "update")
        work = work_of(useful, useful, parts["update"])
    return {
        "tokens_per_second": round(last["tokens_per_second"]),
        "seconds": round(seconds, 2),
        "parts": parts,
        "update_tokens_per_second": round(
            config.batch_size
            * (config.max_prompt_tokens + config.max_response_tokens)
            / parts["update"]
        ),
        **work,
    }


def metrics_of(run: Job, iterations: int) -> list[dict]:
    """Start a run, and kill it when it has written so many iterations.

    Raises:
        SystemExit: the run has ended by itself; has its last words.
    """
    command = [sys.executable, *shlex.split(run.command())[1:]]
    run.workdir.parent.mkdir(exist_ok=True)
    with (run.workdir.parent / "log.txt").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            while len(lines := read_metrics(run.workdir)) < iterations:
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(reason_of(log.read(), process.returncode))
                time.sleep(POLL)
        finally:
            process.kill()
            process.wait()
    return lines


def peer(model: str, *, row: str) -> dict:
    """Measure transformers on the same work (peers/torch_accelerator.py)."""
    sizes = sizes_of(model)
    shape = [f"--prompt={sizes.prompt}", f"--response={sizes.response}"]
    shape += [f"--rows={sizes.rows}", f"--length={sizes.row}"]
    script = ROOT / "benchmarks" / "peers" / "torch_accelerator.py"
    done = subprocess.run(
        [sys.executable, script, f"--row={row}", f"--model={model}", *shape],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(reason_of(done.stderr, done.returncode))
    return json.loads(done.stdout.splitlines()[-1])


ROWS = {
    "ceilings": Row(ceilings, 60),
    "decode_64": Row(
        functools.partial(decode, rows=64, weights="same"), 100, "read_gb_per_second"
    ),
    "sft": Row(functools.partial(update, stage="sft"), 100, "tflops"),
    "grpo": Row(functools.partial(iteration, advantage="grpo"), 180, "tflops"),
    "ppo": Row(functools.partial(iteration, advantage="gae"), 200, "tflops"),
    "decode_256": Row(
        functools.partial(decode, rows=256, weights="same"), 100, "read_gb_per_second"
    ),
    "decode_64_int8": Row(
        functools.partial(decode, rows=64, weights="int8"), 100, "read_gb_per_second"
    ),
    "decode_256_int8": Row(
        functools.partial(decode, rows=256, weights="int8"), 100, "read_gb_per_second"
    ),
    "reward": Row(functools.partial(update, stage="reward"), 100, "tflops"),
    "dpo": Row(functools.partial(update, stage="dpo"), 100, "tflops"),
    "transformers_generate": Row(functools.partial(peer, row="generate"), 90),
    "transformers_sft": Row(functools.partial(peer, row="sft"), 90),
}


def sizes_of(model: str) -> Sizes:
    return LITTLE if model in SMALL else LARGE


def job(stage: str, model: str, fields: dict, workdir: str = "") -> Job:
    """Return a run of a stage with this model, by the config of its size."""
    is_small = model in SMALL
    own = {"model": model} if is_small else {}
    config = f"configs/{stage}.py:{'tiny' if is_small else model}"
    return Job(stage, config, own | fields, Path(workdir))


def find(listed: list[Program], name: str) -> Program:
    return next(program for program in listed if program.name == name)


def random_model(shapes: ChatGLM | ScoreModel) -> ChatGLM | ScoreModel:
    """Return a model of these shapes with random weights."""
    backbone = ChatGLM(shapes.config, rngs=nnx.Rngs(0))
    if isinstance(shapes, ScoreModel):
        return ScoreModel(backbone, rngs=nnx.Rngs(1))
    return backbone


def timed(call: Callable[[], object]) -> tuple[object, dict]:
    """Return the result of a call, and the fields of its row: the median of two or more
    calls after the first, which compiles; the seconds of the first; peak memory."""
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds[1:]) < ENOUGH and len(seconds) < 12):
        began = time.perf_counter()
        result = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    row = {
        "seconds": round(float(np.median(seconds[1:])), 4),
        "first_seconds": round(seconds[0], 1),
    }
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        row["peak_gib"] = round(stats["peak_bytes_in_use"] / GIB, 1)
    return result, row


def work_of(program: Program, useful: Program, seconds: float) -> dict:
    """Return what all devices do in a second: the model's own operations, without
    recomputation, and the bytes that a decode loop reads."""
    work = count_flops(useful.function, *useful.arguments, loop_steps=useful.loop_steps)
    reads = sum(map(bytes_per_device, jax.tree.leaves(program.loop_reads)))
    read = program.loop_steps * reads * jax.device_count()
    rates = {"tflops": work / seconds / 1e12}
    if read:
        rates["read_gb_per_second"] = read / seconds / 1e9
    return {name: round(rate, 4) for name, rate in rates.items()}


if __name__ == "__main__":
    main()
