"""launch/gke_jobset.sh and the manifests it applies."""

from types import SimpleNamespace

import pytest
import yaml
from launch_sandbox import CONFIG, GKE_APPLY, GKE_SLICE, TRICKY_FLAG, parse_commands


def apply(sandbox, *arguments):
    """The parts of the manifest applied, which must be what --dry-run prints."""
    dry_run = sandbox.run("gke_jobset.sh", *GKE_APPLY, "--dry-run", *arguments)
    assert dry_run.returncode == 0 and sandbox.calls() == [], dry_run.stderr
    assert sandbox.run("gke_jobset.sh", *GKE_APPLY, *arguments).returncode == 0
    text = (sandbox.folder / "applied").read_text()
    assert dry_run.stdout == f"kubectl apply --filename=- <<'END'\n{text}END\n"
    assert sandbox.calls() == [["kubectl", "apply", "--filename=-"]]
    jobset = yaml.safe_load(text)
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"
    assert jobset["metadata"]["name"] == "isnet"
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    return SimpleNamespace(jobset=jobset, job=job, pod=pod, container=pod["containers"][0])


def test_gke_applies_a_tpu_slice(sandbox):
    applied = apply(sandbox, *GKE_SLICE, "--service-account=trainer", CONFIG, TRICKY_FLAG)
    assert applied.job["completions"] == applied.job["parallelism"] == 4
    assert applied.job["completionMode"] == "Indexed"
    assert applied.pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert applied.container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert applied.container["image"] == "here/isnet:1" and applied.pod["serviceAccountName"] == "trainer"
    command = [arg.replace("$$", "$") for arg in applied.container["command"]]  # as Kubernetes does
    assert command == ["python", "-m", "isnet_jax.main", CONFIG, TRICKY_FLAG]
    assert applied.container["command"][-1].count("$") == 2 * TRICKY_FLAG.count("$")
    assert applied.jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    runs = applied.pod["volumes"][0]["csi"]
    assert runs["volumeAttributes"]["bucketName"] == "my-runs" and runs["driver"] == "gcsfuse.csi.storage.gke.io"
    assert applied.container["volumeMounts"][0] == {"name": "runs", "mountPath": "/isnet_jax/runs"}


def test_gke_restarts_a_stopped_command_without_counting(sandbox):
    applied = apply(sandbox, *GKE_SLICE, CONFIG)
    policy = applied.jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    (rule,) = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    stopped, disrupted = applied.job["podFailurePolicy"]["rules"]
    assert stopped == {
        "action": "FailJob",
        "onPodConditions": [],
        "onExitCodes": {"containerName": applied.container["name"], "operator": "In", "values": [75]},
    }
    assert disrupted == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert applied.job["backoffLimit"] == 0 and applied.pod["restartPolicy"] == "Never"


@pytest.mark.parametrize(
    "arguments, hosts, chips",
    [
        (["--topology=2x4"], 2, 4),
        (["--topology=2x4", "--chips-per-host=8"], 1, 8),
        (["--topology=1x1"], 1, 1),
        (["--topology=2x2x4"], 4, 4),
    ],
)
def test_gke_computes_hosts_of_a_slice(sandbox, arguments, hosts, chips):
    applied = apply(sandbox, GKE_SLICE[0], *arguments, CONFIG)
    assert applied.job["completions"] == hosts
    assert applied.container["resources"]["limits"] == {"google.com/tpu": chips}
    assert ("--num_processes=1" in applied.container["command"]) == (hosts == 1)


def test_gke_applies_gpu_nodes(sandbox):
    applied = apply(sandbox, "--gpu=nvidia-h100-80gb", "--hosts=2", "--gpus-per-host=8", CONFIG)
    assert applied.job["completions"] == 2 and applied.jobset["metadata"]["annotations"] == {}
    assert applied.pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert applied.container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert applied.container["command"][3:] == [
        CONFIG,
        "--coordinator=isnet-hosts-0-0.isnet:8476",
        "--num_processes=2",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]


@pytest.mark.parametrize("action", ["logs", "delete"])
def test_gke_logs_and_deletes_by_name(sandbox, action):
    dry_run = sandbox.run("gke_jobset.sh", action, "--name=isnet", "--dry-run")
    assert sandbox.run("gke_jobset.sh", action, "--name=isnet").returncode == 0
    (call,) = sandbox.calls()
    assert [call] == parse_commands(dry_run.stdout)
    if action == "logs":
        assert "--selector=jobset.sigs.k8s.io/jobset-name=isnet,batch.kubernetes.io/job-completion-index=0" in call
    else:
        assert call == ["kubectl", "delete", "jobset/isnet"]
