"""Manage your own TPU machines: create, install, start a run, follow its log, delete.

python launch/tpu/vm.py create  NAME --zone=us-west4-a --type=v5litepod-32 \\
    [--queued] [--spot]
python launch/tpu/vm.py install NAME --zone=us-west4-a
python launch/tpu/vm.py start   NAME --zone=us-west4-a -- \\
    --config=configs/ppo.py:chatglm3_6b --workdir=/mnt/... --config.init_from=...
python launch/tpu/vm.py logs    NAME --zone=us-west4-a
python launch/tpu/vm.py delete  NAME --zone=us-west4-a [--queued]

--dry-run prints the commands instead. The commands need `gcloud`, logged in. The
processes find each other (rlhf_jax/launching/processes.py). All machines must be able
to access the workdir.
"""

import argparse
import shlex
import subprocess
import sys

# https://cloud.google.com/tpu/docs/runtimes
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
FOLDER, LOG, ARCHIVE = "rlhf_jax", "run.log", "rlhf_jax.tar.gz"
# The installation on every machine, with a Python of its own: the machine's is too old.
INSTALL = (
    f"mkdir -p {FOLDER} && tar xzf {ARCHIVE} -C {FOLDER} && cd {FOLDER} && "
    "curl -LsSf https://astral.sh/uv/install.sh | sh && "
    "~/.local/bin/uv venv --clear --python 3.12 .venv && "
    "~/.local/bin/uv pip install --python .venv/bin/python -e '.[tpu]'"
)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=sorted(ACTIONS))
    parser.add_argument("name", help="name of the group of machines")
    parser.add_argument("--zone", required=True)
    parser.add_argument(
        "--project", help="Google Cloud project; default: that of gcloud"
    )
    parser.add_argument("--type", help="type of accelerator, such as v5litepod-32")
    parser.add_argument(
        "--queued", action="store_true", help="wait in a queue for machines"
    )
    parser.add_argument(
        "--spot", action="store_true", help="cheaper machines that can be preempted"
    )
    parser.add_argument("--dry-run", action="store_true")
    end = [*arguments, "--"].index("--")
    args = parser.parse_args(arguments[:end])
    args.run = arguments[end + 1 :]
    try:
        commands = ACTIONS[args.action](args)
    except ValueError as error:
        parser.error(str(error))
    for command in commands:
        print(shlex.join(command), flush=True)
        if not args.dry_run:
            subprocess.run(command, check=True)


def create(args) -> list[list[str]]:
    kind, _, size = (args.type or "").rpartition("-")
    if kind not in RUNTIMES or not size.isdigit():
        types = ", ".join(f"{kind}-N" for kind in RUNTIMES)
        raise ValueError(f"--type={args.type}: one of {types} is needed.")
    flags = [f"--accelerator-type={args.type}"] + ["--spot"] * args.spot
    if args.queued:
        node, runtime = f"--node-id={args.name}", f"--runtime-version={RUNTIMES[kind]}"
        return [
            gcloud(args, "queued-resources", "create", args.name, node, runtime, *flags)
        ]
    runtime = f"--version={RUNTIMES[kind]}"
    return [gcloud(args, "tpu-vm", "create", args.name, runtime, *flags)]


def install(args) -> list[list[str]]:
    everywhere = "--worker=all"
    return [
        ["git", "archive", "--format=tar.gz", f"--output={ARCHIVE}", "HEAD"],
        gcloud(args, "tpu-vm", "scp", ARCHIVE, f"{args.name}:", everywhere),
        gcloud(args, "tpu-vm", "ssh", args.name, everywhere, f"--command={INSTALL}"),
    ]


def start(args) -> list[list[str]]:
    if not any(flag.startswith("--config=") for flag in args.run):
        raise ValueError("Give launch/train.py its flags after --, --config=... first.")
    run = shlex.join([".venv/bin/python", "launch/train.py", *args.run])
    command = f"cd {FOLDER} && nohup {run} > {LOG} 2>&1 < /dev/null &"
    return [
        gcloud(args, "tpu-vm", "ssh", args.name, "--worker=all", f"--command={command}")
    ]


def logs(args) -> list[list[str]]:
    """Follow the log of the first machine; the others log only warnings and errors."""
    command = f"--command=tail -n 100 -F {FOLDER}/{LOG}"
    return [gcloud(args, "tpu-vm", "ssh", args.name, "--worker=0", command)]


def delete(args) -> list[list[str]]:
    if args.queued:
        return [
            gcloud(args, "queued-resources", "delete", args.name, "--force", "--quiet")
        ]
    return [gcloud(args, "tpu-vm", "delete", args.name, "--quiet")]


def gcloud(args, *words: str) -> list[str]:
    where = [f"--zone={args.zone}"] + [f"--project={args.project}"] * bool(args.project)
    return ["gcloud", "compute", "tpus", *words, *where]


ACTIONS = {
    "create": create,
    "install": install,
    "start": start,
    "logs": logs,
    "delete": delete,
}

if __name__ == "__main__":
    main(sys.argv[1:])
