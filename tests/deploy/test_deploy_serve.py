# SPDX-License-Identifier: Apache-2.0
"""What deploy/serve holds fits the commands: flags, ports, times, and the form of each file."""

import importlib.util
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from paddlemix.serve import model_worker
from paddlemix.serve.access import token_of

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "serve"
DOCKERFILES = ["Dockerfile", "Dockerfile.npu"]
OF_THE_SLIM_IMAGE = {"libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "librt.so.1",
                     "libstdc++.so.6"}  # fmt: skip
"""Libraries that python:3.11-slim has."""
STEP = 10
"""Seconds that a worker gives a step after its time for open answers (``running.serve``)."""


def worker(words: list[str]) -> Any:
    return model_worker.parser().parse_args(words)


DEFAULT = worker(["--model-path", "m"])


def manifests() -> dict[str, Any]:
    found = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))
    return {one["kind"]: one for one in found}


def test_the_manifest_has_what_a_cluster_asks_for() -> None:
    found = manifests()
    assert set(found) == {"Deployment", "Service"}
    assert (found["Deployment"]["apiVersion"], found["Service"]["apiVersion"]) == ("apps/v1", "v1")
    spec, service = found["Deployment"]["spec"], found["Service"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert labels == spec["selector"]["matchLabels"] == service["selector"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == service["ports"][0]["port"] == DEFAULT.port
    assert service["ports"][0]["targetPort"] == port["name"]
    annotations = spec["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(DEFAULT.port)
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert volumes == {mount["name"] for mount in container["volumeMounts"]}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = container[kind]["exec"]["command"]
        assert command == ["paddlemix-probe", "/ready" if kind == "readinessProbe" else "/health"]
        assert container[kind]["timeoutSeconds"] > 5
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 600


def test_the_pod_may_do_nothing_that_it_does_not_need() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    allowed = container["securityContext"]
    assert allowed == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(mount["readOnly"] for mount in container["volumeMounts"] if mount["name"] in ("model", "keys"))
    assert any(volume.get("secret") for volume in pod["volumes"])


def test_a_pod_has_time_to_let_answers_end() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    args = worker(pod["containers"][0]["args"])
    assert (args.port, args.host) == (DEFAULT.port, "0.0.0.0")
    assert pod["terminationGracePeriodSeconds"] > args.drain_seconds + STEP
    mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert {str(args.api_key_file.parent), str(args.model_path)} <= mounts


def test_the_unit_starts_the_command_with_flags_that_it_has_and_waits_for_it() -> None:
    text = (FOLDER / "paddlemix-serve.service").read_text()
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    command = lines["ExecStart"].split()
    assert command[0].endswith("/bin/paddlemix")
    assert command[1] == "serve"
    assert int(lines["TimeoutStopSec"]) > worker(command[2:]).drain_seconds + STEP


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """With a program in the place of ours, which this machine does not have there."""
    text = re.sub(
        r"^ExecStart=\S+", "ExecStart=/bin/true", (FOLDER / "paddlemix-serve.service").read_text(), flags=re.M
    )
    unit = tmp_path / "paddlemix-serve.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert said == []


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_starts_the_command_with_flags_that_it_has(name: str) -> None:
    text = (FOLDER / name).read_text()
    steps = re.findall(r"^([A-Z]+) (.*(?:\\\n.*)*)$", text, re.M)
    found = {step: rest for step, rest in steps}
    assert found["ENTRYPOINT"] == '["paddlemix", "serve"]'
    args = worker(yaml.safe_load(found["CMD"]))
    assert int(found["EXPOSE"]) == args.port == DEFAULT.port
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert found["USER"].startswith("10001")
    assert str(args.api_key_file) == "/keys/keys"
    assert 'CMD ["paddlemix-probe", "/health"]' in found["HEALTHCHECK"]
    ignored = (FOLDER / f"{name}.dockerignore").read_text().splitlines()
    copied = {word for step, rest in steps if step == "COPY" for word in rest.split()[:-1]}
    assert ignored[0] == "*"
    assert copied <= {line[1:] for line in ignored if line.startswith("!")}


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_probe_asks_with_the_first_key(tmp_path: Path, status: int, code: int) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\na-key-of-enough-letters\nanother-key-of-letters\n")
    seen = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["authorization"]))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        text = (FOLDER / "probe").read_text()
        assert "/keys/keys" in text
        assert f":{DEFAULT.port}" in text
        text = text.replace("/keys/keys", str(keys)).replace(f":{DEFAULT.port}", f":{server.server_port}")
        done = subprocess.run([sys.executable, "-c", text, "/ready"], timeout=30, capture_output=True)
    assert done.returncode == code, done.stderr
    assert seen == [("/ready", f"Bearer {token_of_first(keys)}")]


def token_of_first(keys: Path) -> str:
    """The key that a worker would take first."""
    file = keys.with_name("first")
    file.write_text(keys.read_text().splitlines()[1])
    return token_of(file)


@pytest.mark.skipif(shutil.which("ldd") is None, reason="no ldd")
def test_the_slim_image_gets_the_libraries_that_paddle_asks_the_system_for() -> None:
    paddle = Path(importlib.util.find_spec("paddle").submodule_search_locations[0])
    library = str(paddle / "base" / "libpaddle.so")
    said = subprocess.run(["ldd", library], capture_output=True, text=True, timeout=60, check=True).stdout
    needed = {
        Path(found).name for found in re.findall(r"=> (/\S+)", said) if paddle not in Path(found).resolve().parents
    }
    installed = re.search(r"apt-get install (.*?) &&", (FOLDER / "Dockerfile").read_text())
    packages = {name.replace(".so.", "") for name in needed - OF_THE_SLIM_IMAGE}
    assert packages <= set(installed[1].split() if installed else [])
