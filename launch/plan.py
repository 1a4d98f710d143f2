"""Plan a run: does it fit in memory, and how fast could it be? Needs no chip.

python launch/plan.py --config=configs/ppo.py:chatglm3_6b --topology=v5e:4x8 \
    [--config.key=value ...] [--estimate] [--json=plan.json]

Every program of the run is compiled for the topology on this machine, without weights.
The command prints a table, and writes JSON with --json. Exit status 0: all programs
fit; 1: a program does not fit, and its largest allocations are listed. Planning for
TPUs needs libtpu (`pip install -e '.[tpu-plan]'`, in an environment of its own), one
process at a time. For GPUs (`--topology=h200:1`) there is no such compiler: the size of
temporaries is then estimated by arithmetic (rlhf_jax/planning/arithmetic.py), which
--estimate does for TPUs too, in seconds.
"""

import os
import sys
from pathlib import Path

# Settings that libtpu would otherwise request from a TPU machine.
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

import jax
from absl import flags
from ml_collections import config_flags

from rlhf_jax.files import write_json
from rlhf_jax.launching import cli
from rlhf_jax.planning.plan import plan, print_plans
from rlhf_jax.planning.roofline import GPUS

CONFIG = config_flags.DEFINE_config_file("config", None, "Config, FILE.py:PRESET.")
TOPOLOGY = flags.DEFINE_string("topology", None, "The chips, as v5e:4x8 or v5p:2x2x1.")
JSON = flags.DEFINE_string("json", None, "A file to write the plan to.")
ESTIMATE = flags.DEFINE_bool("estimate", False, "Arithmetic for TPUs too.")
ONLY = flags.DEFINE_list("only", [], "The programs to plan; all by default.")


def main(arguments: list[str]) -> None:
    cli.refuse_arguments(arguments)
    jax.config.update("jax_enable_compilation_cache", False)  # useless without a chip
    topology = TOPOLOGY.value
    plans, mesh = plan(CONFIG.value, topology, ONLY.value, estimate=ESTIMATE.value)
    print_plans(plans, topology, mesh)
    for p in plans:
        if not p.fits:
            lines = "\n  ".join(p.largest)
            print(f"{p.name} does not fit. Its largest allocations:\n  {lines}")
    if ESTIMATE.value or topology.partition(":")[0] in GPUS:
        print("Temporaries are estimated for attention by a kernel; no links counted.")
    if JSON.value:
        programs = {p.name: p.as_dict() for p in plans}
        record = {"topology": topology, "mesh": mesh, "programs": programs}
        write_json(JSON.value, record)
    sys.exit(not all(p.fits for p in plans))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    cli.command(main)
