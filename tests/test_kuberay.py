"""docs/kuberay.yaml against KubeRay's types (ray.io/v1, rayjob_types.go and raycluster_types.go),
those of their fields that it may use: an unknown one would be dropped in silence.

uv run pytest tests/test_kuberay.py
"""

import shlex
from typing import Any, Literal

import yaml
from places import ROOT
from pydantic import BaseModel, ConfigDict
from rl_loop import Config


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Resources(Strict):
    limits: dict[str, str]
    requests: dict[str, str]


class Mount(Strict):
    name: str
    mountPath: str


class Container(Strict):
    name: str
    image: str
    resources: Resources
    volumeMounts: list[Mount]


class Claim(Strict):
    claimName: str


class Volume(Strict):
    name: str
    persistentVolumeClaim: Claim


class PodSpec(Strict):
    containers: list[Container]
    volumes: list[Volume]


class Template(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    template: Template


class WorkerGroup(HeadGroup):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int


class ClusterSpec(Strict):
    enableInTreeAutoscaling: bool
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(Strict):
    entrypoint: str
    backoffLimit: int
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    rayClusterSpec: ClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[str, str]
    spec: JobSpec


def test_the_manifest_is_a_ray_job_with_room_for_its_engines() -> None:
    text = (ROOT / "docs" / "kuberay.yaml").read_text(encoding="utf-8")
    job = RayJob.model_validate(yaml.safe_load(text)).spec
    [workers] = job.rayClusterSpec.workerGroupSpecs
    assert workers.minReplicas <= workers.replicas <= workers.maxReplicas
    shell, option, line = shlex.split(job.entrypoint)
    assert (shell, option) == ("sh", "-c")
    script, *arguments = shlex.split(line.removeprefix("cd /app && exec python "))
    assert (ROOT / script).is_file()
    settings: dict[str, Any] = dict(a.split("=", 1) for a in arguments)
    assert settings["backend"] == "ray" and int(settings["num_engines"]) <= workers.replicas
    # what the engines write lies where all of them and the driver see it
    for pod in (job.rayClusterSpec.headGroupSpec, workers):
        [container] = pod.template.spec.containers
        [volume] = pod.template.spec.volumes
        [mount] = container.volumeMounts
        assert mount.name == volume.name and volume.persistentVolumeClaim.claimName
        assert settings["log_path"].startswith(f"{mount.mountPath}/")
        assert settings["model_name"].startswith(f"{mount.mountPath}/")
    assert {"domain", "model_name", "backend", "num_engines", "log_path"} <= set(
        Config.__annotations__
    )
