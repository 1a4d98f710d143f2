"""Write the tables of docs/memory_planning.md that say which runs fit which devices.

python docs/make_memory_table.py

Each cell is the plan of the command that the page shows for its stage; in the table of
mixtures of experts it is the plan on the smallest machine that fits.
"""

import ast
import bisect
import functools
import importlib
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for configs/, which is no part of the package

import jax  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from rlhf_jax.parallel.mesh import make_mesh  # noqa: E402
from rlhf_jax.planning import programs, start  # noqa: E402
from rlhf_jax.planning.plan import estimated  # noqa: E402
from rlhf_jax.planning.roofline import CHIPS, GIB, GPUS, size  # noqa: E402

PAGE = ROOT / "docs" / "memory_planning.md"
BEGIN, END = "<!-- made by make_memory_table.py -->", "<!-- end of what it made -->"
BEGIN_MIXTURES = BEGIN.replace("made", "mixtures, made")
MODELS = {
    "1.5B": "glm_edge_1_5b",
    "6B": "chatglm3_6b",
    "9B": "glm4_0414_9b",
    "32B": "glm4_0414_32b",
}
MIXTURES = {"Flash": "glm4_7_flash", "Air": "glm4_5_air"}
DEVICES = {
    "16 GB": "rtx4080:1",
    "24 GB": "rtx4090:1",
    "80 GB": "a100:1",
    "v5e-1": "v5e:1x1",
    "v5e-4": "v5e:2x2",
    "v5e-8": "v5e:2x4",
}
# Machines of each kind, the smallest first.
MACHINES = {
    "H200": ["h200:1", "h200:2", "h200:4", "h200:8"],
    "v5p": ["v5p:2x2x1", "v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4", "v5p:4x4x4"],
    "v6e": ["v6e:1x1", "v6e:2x2", "v6e:2x4", "v6e:4x4", "v6e:4x8", "v6e:8x8"],
}
# Ways of training, the largest first.
WAYS = {
    "all": "--config.optimizer.fused=True --config.optimizer.moment_dtype=bfloat16",
    "bf16": "--config.lora.rank=16",
    "int8": "--config.lora.rank=16 --config.lora.base_dtype=int8",
}
ADAFACTOR = (
    "--config.optimizer.fused=True --config.optimizer.name=adafactor"
    " --config.param_dtype=bfloat16"
)
WAYS_OF_MIXTURES = {
    "Flash": {"adapters": WAYS["bf16"], "all": WAYS["all"]},
    "Air": {"adapters": WAYS["bf16"], "all": ADAFACTOR},
}
# The config of a stage and, for $N devices, its options with adapters and with all
# parameters: one row on each device at a time.
PPO = (
    "--config.batch_size=64 --config.minibatches=$((64 / N)) --config.sft_batch_size=$N"
    " --config.rollout_rows=16"
)
GRPO = (
    f"{PPO} --config.advantage=grpo --config.baseline=none"
    " --config.samples_per_prompt=4"
)
STAGES = {
    "SFT": (
        "sft",
        "--config.batch_size=32 --config.microbatches=$((32 / N))",
        "--config.batch_size=$N --config.microbatches=1",
    ),
    "DPO": (
        "dpo",
        "--config.batch_size=32 --config.microbatches=$((32 / N))"
        " --config.sft_batch_size=32",
        "--config.batch_size=$N --config.microbatches=1 --config.sft_batch_size=$N",
    ),
    "GRPO": (
        "ppo",
        GRPO,
        f"{GRPO} --config.frozen_param_dtype=int8",
    ),
    "PPO": (
        "ppo",
        PPO,
        f"{PPO} --config.value_optimizer.fused=True"
        " --config.value_optimizer.moment_dtype=bfloat16"
        " --config.frozen_param_dtype=int8",
    ),
}


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 64)  # they stand for the devices
    for begin, made in ((BEGIN_MIXTURES, page_of_mixtures()), (BEGIN, page())):
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
        after = rest.partition(END)[2]
        text = f"{before}{begin}\n\n{made}\n{END}{after}"
        PAGE.write_text(text, encoding="utf-8")


def page() -> str:
    """Return what stands between the two marks, as Markdown."""
    lines = [
        f"| {' | '.join(['', *DEVICES])} |",
        "|---" * (len(DEVICES) + 1) + "|",
        *(line(stage, model) for stage in STAGES for model in MODELS),
        "",
        "The commands, from `bash`:",
        "",
        "```",
        *commands(),
        "```",
        "",
    ]
    return "\n".join(lines)


def page_of_mixtures() -> str:
    """Return the table of mixtures, as Markdown."""
    lines = [f"| {' | '.join(['', *MACHINES])} |", "|---" * (len(MACHINES) + 1) + "|"]
    for stage in STAGES:
        for model in MIXTURES:
            ways = WAYS_OF_MIXTURES[model]
            lines += [line_of_mixture(stage, model, way) for way in ways]
    return "\n".join([*lines, ""])


def line_of_mixture(stage: str, model: str, way: str) -> str:
    """Return a line of the table of mixtures."""
    cells = (smallest(stage, model, way, kind) for kind in MACHINES)
    return f"| {stage}, {model}, {way} | {' | '.join(cells)} |"


def smallest(stage: str, model: str, way: str, kind: str) -> str:
    """Return the number of devices of the smallest machine that a run fits, and the GiB
    of a device that its largest program takes there."""
    machines = MACHINES[kind]

    def fits(topology: str) -> bool:
        return need(stage, model, topology, way) <= memory(topology)

    first = bisect.bisect_left(machines, True, key=fits)
    if first == len(machines):
        return "-"
    topology = machines[first]
    needed = need(stage, model, topology, way) / GIB
    return f"{devices(topology)}: {needed:.1f}"


def memory(topology: str) -> float:
    """Return the bytes of a device."""
    return (CHIPS | GPUS)[topology.partition(":")[0]].memory


def line(stage: str, model: str) -> str:
    """Return a line of the table."""
    cells = (cell(stage, model, topology) for topology in DEVICES.values())
    return f"| {stage}, {model} | {' | '.join(cells)} |"


def commands() -> list[str]:
    """Return the commands of all cells, as lines for a shell: a device, a model and a
    way are chosen, then a stage is planned."""
    lines = []
    for name, topology in DEVICES.items():
        lines.append(f"N={devices(topology)} TOPOLOGY={topology}  # {name}")
    lines += ["", *(f"MODEL={model}  # {name}" for name, model in MODELS.items())]
    for stage, (file, options, of_all) in STAGES.items():
        lines += ["", f"# {stage}: all parameters, adapters on a bf16 or an int8 base"]
        for way in WAYS:
            lines += command(file, "$MODEL", "$TOPOLOGY", texts(options, of_all, way))
    return lines


def command(file: str, model: str, topology: str, options: str) -> list[str]:
    """Return the lines of a command."""
    first = f"python launch/plan.py --config=configs/{file}.py:{model} --estimate"
    lines = [f"{first} --topology={topology}"]
    for option in re.findall(r"--\S+?=(?:\$\(\(.*?\)\)|\S+)", options):
        if len(lines[-1]) + len(option) > 86 or len(lines) == 1:
            lines[-1] += " \\"
            lines.append(f"    {option}")
        else:
            lines[-1] += f" {option}"
    return lines


def texts(options: str, of_all: str, way: str, model: str = "") -> str:
    """Return the options of a stage that trains in this way."""
    ways = WAYS | WAYS_OF_MIXTURES.get(model, {})
    both = f"{of_all if way == 'all' else options} {ways[way]}"
    if model == "Air" and way == "all" and "value_optimizer" in both:
        both += " --config.value_optimizer.name=adafactor"
    return both


def cell(stage: str, model: str, topology: str) -> str:
    """Return the first way of training that fits, and the GiB of a device that its
    largest program takes."""
    for way in WAYS:
        needed = need(stage, model, topology, way)
        if needed <= memory(topology):
            return f"{way} {needed / GIB:.1f}"
    return "-"


@functools.cache
def need(stage: str, model: str, topology: str, way: str) -> float:
    """Return the bytes of a device that the largest program of a run takes."""
    file, options, of_all = STAGES[stage]
    config = importlib.import_module(f"configs.{file}").get_config(
        (MODELS | MIXTURES)[model]
    )
    count = devices(topology)
    for key, value in pairs(texts(options, of_all, way, model), count):
        set_option(config, key, value)
    kind = topology.partition(":")[0]
    with jax.set_mesh(make_mesh(config.mesh, jax.devices()[:count])):
        sizes = [size(start.of(config).arguments)]
        for program in programs.of(config):
            there = size((program.arguments, program.held))
            sizes.append(there + sum(estimated(config, program.name, kind).values()))
    return max(sizes)


def pairs(options: str, count: int) -> list[tuple[str, str]]:
    """Return the options as (key, value), computed for a number of devices as the shell
    does."""
    options = re.sub(
        r"\$\(\((\d+) / N\)\)", lambda found: str(int(found[1]) // count), options
    )
    return re.findall(r"--config\.(\S+)=(\S+)", options.replace("$N", str(count)))


def set_option(config: ConfigDict, key: str, value: str) -> None:
    *path, field = key.split(".")
    node = functools.reduce(getattr, path, config)
    node[field] = value if isinstance(node[field], str) else ast.literal_eval(value)


def devices(topology: str) -> int:
    return math.prod(map(int, topology.partition(":")[2].split("x")))


if __name__ == "__main__":
    main()
