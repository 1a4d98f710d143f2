"""The commands for TPU machines, as text."""

import pytest
import yaml

from tests.commands import load_command

gke, vm = load_command("tpu/gke"), load_command("tpu/vm")

ZONE = ("--zone=us-west4-a", "--dry-run")
RUN = ("--config=configs/ppo.py:chatglm3_6b", "--workdir=/shared/run one")


@pytest.fixture
def printed(capsys, monkeypatch):
    """`printed(vm, "create", ...)`: the lines; nothing may be run."""
    monkeypatch.setattr(vm.subprocess, "run", pytest.fail)

    def lines(script, *arguments):
        script.main(list(arguments))
        return capsys.readouterr().out.splitlines()

    return lines


def test_machines_are_created_at_once_or_in_a_queue(printed):
    assert printed(vm, "create", "pod", "--type=v5litepod-32", *ZONE) == [
        "gcloud compute tpus tpu-vm create pod --version=v2-alpha-tpuv5-lite "
        "--accelerator-type=v5litepod-32 --zone=us-west4-a"
    ]
    queued = ("--queued", "--spot", "--project=mine")
    assert printed(vm, "create", "pod", "--type=v5p-64", *queued, *ZONE) == [
        "gcloud compute tpus queued-resources create pod --node-id=pod "
        "--runtime-version=v2-alpha-tpuv5 --accelerator-type=v5p-64 --spot "
        "--zone=us-west4-a --project=mine"
    ]


def test_a_run_is_installed_and_started_on_all_of_them_and_one_is_listened_to(printed):
    archive, copy, install = printed(vm, "install", "pod", *ZONE)
    assert archive == "git archive --format=tar.gz --output=rlhf_jax.tar.gz HEAD"
    assert "scp rlhf_jax.tar.gz pod: --worker=all" in copy
    assert "--worker=all" in install
    assert ".[tpu]" in install
    (start,) = printed(vm, "start", "pod", *ZONE, "--", *RUN)
    assert "ssh pod --worker=all" in start
    assert "nohup .venv/bin/python launch/train.py --config=configs/ppo.py" in start
    assert "run one" in start
    (logs,) = printed(vm, "logs", "pod", *ZONE)
    assert "--worker=0" in logs
    assert "tail -n 100 -F rlhf_jax/run.log" in logs


def test_they_are_deleted_as_they_were_created(printed):
    assert printed(vm, "delete", "pod", *ZONE) == [
        "gcloud compute tpus tpu-vm delete pod --quiet --zone=us-west4-a"
    ]
    assert printed(vm, "delete", "pod", "--queued", *ZONE) == [
        "gcloud compute tpus queued-resources delete pod --force --quiet "
        "--zone=us-west4-a"
    ]


def test_a_job_of_a_cluster_has_a_process_on_every_host_of_the_slice(printed):
    where = ("--topology=v5e:4x8", "--image=example/rlhf", "--dry-run")
    *lines, command = printed(gke, "submit", "run", *where, "--", *RUN)
    assert command == "kubectl apply --filename=-"
    (job,) = yaml.safe_load("\n".join(lines))["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 8
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    (container,) = pod["containers"]
    assert container["command"] == ["python", "launch/train.py", *RUN]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    (logs,) = printed(gke, "logs", "run", "--dry-run")
    assert "jobset-name=run" in logs
    (delete,) = printed(gke, "delete", "run", "--dry-run")
    assert delete == "kubectl delete jobset run"


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (vm, ("create", "pod", "--type=h100-8", *ZONE), "one of v4-N, v5litepod-N"),
        (vm, ("start", "pod", *ZONE), "its flags after --"),
        (gke, ("submit", "run", "--topology=v5e", "--dry-run"), "such as v5e:4x8"),
        (
            gke,
            ("submit", "run", "--topology=v5e:4x8", "--dry-run"),
            "--image is needed",
        ),
    ],
)
def test_what_is_missing_is_said(script, arguments, message, capsys):
    with pytest.raises(SystemExit):
        script.main(list(arguments))
    assert message in capsys.readouterr().err
