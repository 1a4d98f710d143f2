"""Run on a TPU slice of a GKE cluster (made with XPK, for example).

python launch/tpu/gke.py submit NAME --topology=v5e:4x8 --image=IMAGE -- \\
    --config=configs/ppo.py:chatglm3_6b --workdir=/gcs/... --config.init_from=...
python launch/tpu/gke.py logs   NAME
python launch/tpu/gke.py delete NAME

--dry-run prints the job file (launch/tpu/job.yaml, filled in) and the commands instead.
The commands need `kubectl` with the cluster as its context. The image is that of
launch/tpu/Dockerfile. All machines must be able to access the workdir.
"""

import argparse
import json
import math
import shlex
import string
import subprocess
import sys
from pathlib import Path

# https://cloud.google.com/kubernetes-engine/docs/concepts/tpus
ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
CHIPS_PER_HOST = 4


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("submit", "logs", "delete"))
    parser.add_argument("name", help="name of the job")
    parser.add_argument(
        "--topology", help="in the form of launch/plan.py, such as v5e:4x8"
    )
    parser.add_argument("--image", help="image that the Dockerfile made")
    parser.add_argument("--dry-run", action="store_true")
    end = [*arguments, "--"].index("--")
    args, run = parser.parse_args(arguments[:end]), arguments[end + 1 :]
    job, command = "", ["kubectl", "delete", "jobset", args.name]
    if args.action == "logs":
        first = "batch.kubernetes.io/job-completion-index=0"
        label = f"jobset.sigs.k8s.io/jobset-name={args.name},{first}"
        command = ["kubectl", "logs", "--follow", f"--selector={label}"]
    elif args.action == "submit":
        command = ["kubectl", "apply", "--filename=-"]
        try:
            job = fill_in(args.name, args.topology or "", args.image, run)
        except ValueError as error:
            parser.error(str(error))
    print(f"{job}{shlex.join(command)}", flush=True)
    if not args.dry_run:
        subprocess.run(command, input=job, text=True, check=True)


def fill_in(name: str, topology: str, image: str | None, run: list[str]) -> str:
    """Fill in the job file of a run.

    Raises:
        ValueError: names the missing flag, or the invalid topology.
    """
    kind, _, shape = topology.partition(":")
    sides = shape.split("x")
    if kind not in ACCELERATORS or not all(side.isdigit() for side in sides):
        raise ValueError(
            f"--topology={topology}: KIND:SHAPE is needed, such as v5e:4x8, with one "
            f"of the kinds {', '.join(ACCELERATORS)}."
        )
    if not image:
        raise ValueError("--image is needed: the first line of launch/tpu/Dockerfile.")
    if not any(flag.startswith("--config=") for flag in run):
        raise ValueError("Give launch/train.py its flags after --, --config=... first.")
    chips = math.prod(map(int, sides))
    template = Path(__file__).with_name("job.yaml").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        name=name,
        accelerator=ACCELERATORS[kind],
        topology=shape,
        hosts=-(-chips // CHIPS_PER_HOST),
        chips=min(chips, CHIPS_PER_HOST),
        image=image,
        command=json.dumps(["python", "launch/train.py", *run]),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
