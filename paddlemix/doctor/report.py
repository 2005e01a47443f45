# SPDX-License-Identifier: Apache-2.0
"""The whole report on a device: sections of findings, as one screen of text or as JSON, and an exit code.

Paddle is imported late and may be missing: that is a finding too.
"""

import dataclasses
import importlib.metadata
import importlib.util
import platform
import textwrap
from dataclasses import dataclass, field
from typing import Any

from paddlemix.doctor import machine, versions
from paddlemix.doctor.findings import FAIL, NOTE, WARN, Finding, fail, note, ok
from paddlemix.utils import device as devices
from paddlemix.utils import env, npu_cards, npu_environment
from paddlemix.utils.errors import BackendError
from paddlemix.utils.install import install_line

READY, NOT_READY = 0, 1
"""Exit codes of the command; 2 is a wrong flag or a wrong variable, as everywhere."""

COLUMNS = 120

PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", versions.PLUGIN, "paddlenlp", "numpy", "tokenizers")


@dataclass(frozen=True)
class Wanted:
    """What the person asked. ``device`` None is the best there is; ``quick`` leaves out what computes.

    ``cards`` > 0, ``master`` and ``rank`` belong to the check before a start (``idle``: cards must be unused, and their
    speed is not measured).
    ``set_here`` are lines about variables that were missing and that the command itself has set.
    """

    device: str | None = None
    dtype: str | None = None
    quick: bool = False
    cards: int = 0
    idle: bool = False
    master: str | None = None
    rank: int = 0
    set_here: tuple[str, ...] = ()


@dataclass
class Report:
    """Sections in the order in which they are shown."""

    device: str = "none"
    sections: dict[str, list[Finding]] = field(default_factory=dict)

    @property
    def failures(self) -> list[Finding]:
        """What stops the work."""
        return self._all(FAIL)

    @property
    def warnings(self) -> list[Finding]:
        """What works at a cost."""
        return self._all(WARN)

    def _all(self, state: str) -> list[Finding]:
        return [finding for findings in self.sections.values() for finding in findings if finding.state == state]

    @property
    def exit_code(self) -> int:
        """0 when the device can be used."""
        return NOT_READY if self.failures else READY

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        sections = {
            title: [dataclasses.asdict(finding) for finding in findings] for title, findings in self.sections.items()
        }
        return {"device": self.device, "exit_code": self.exit_code, "sections": sections}

    def as_lines(self) -> list[str]:
        """One screen."""
        lines = []
        for title, findings in self.sections.items():
            for i, finding in enumerate(findings):
                lines += _rows(title if not i else "", finding)
        lines.append(f"{'result':<12} {self._result()}")
        return lines

    def _result(self) -> str:
        if self.failures:
            return f"NOT READY: {_things(self.failures)} marked FAIL"
        if self.warnings:
            return f"{self.device} is ready, but {_things(self.warnings)} marked WARN cost memory or time"
        return f"{self.device} is ready"


def _things(findings: list[Finding]) -> str:
    return f"{len(findings)} thing{'s' * (len(findings) > 1)}"


def _rows(title: str, finding: Finding) -> list[str]:
    """The lines of a finding. What stands behind a line break in its text is a command, which is not broken."""
    head = f"{title:<12} {finding.state:<4} {finding.name + ':':<22} "
    text, *commands = finding.text.split("\n")
    # Only at spaces: a path or a variable has to stay whole.
    lines = textwrap.wrap(
        text, COLUMNS, initial_indent=head, subsequent_indent=" " * len(head),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return [*lines, *(f"{'':<17} {line}" for line in commands)]


def examine(wanted: Wanted) -> Report:
    """Look at everything. Raises nothing for what is wrong with the machine: that is in the report."""
    report = Report()
    on_npu = _means_npu(wanted.device)
    report.sections["machine"] = _machine(wanted, on_npu)
    report.sections["packages"] = _packages(on_npu)
    report.sections["variables"] = _variables(on_npu, wanted.set_here)
    if wanted.master:
        report.sections["master"] = machine.master_findings(wanted.master, wanted.rank)
    report.sections["network"] = machine.network_findings()
    _examine_device(wanted, report)
    return report


def _means_npu(device: str | None) -> bool:
    """True when the npu half of the report is a question of life: it was asked for, or the machine has cards."""
    return device.startswith("npu") if device else npu_environment.count_cards() > 0


def _machine(wanted: Wanted, on_npu: bool) -> list[Finding]:
    told = npu_cards.read_cards()
    cards = machine.card_findings(told, wanted.cards, idle=wanted.idle)
    if not on_npu:
        cards = [_softened(finding, finding.name) for finding in cards]
    driver, cann = machine.read_driver() or told.driver, machine.read_cann()
    found = [ok("host", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"), *cards]
    found.append(_version("driver", driver, "no Ascend driver found (/usr/local/Ascend/driver/version.info)"))
    found.append(_version("CANN", cann, "no CANN toolkit found; source its set_env.sh, or set ASCEND_TOOLKIT_HOME"))
    return found


def _softened(finding: Finding, name: str) -> Finding:
    return dataclasses.replace(finding, state=NOTE) if finding.state == FAIL and finding.name == name else finding


def _version(name: str, version: str | None, absent: str) -> Finding:
    return ok(name, version, version=version) if version else note(name, absent, version=None)


def _packages(on_npu: bool) -> list[Finding]:
    installed = {name: _installed(name) for name in PACKAGES}
    paddle = installed["paddlepaddle"] or installed["paddlepaddle-gpu"]
    text = ", ".join(f"{name} {version}" for name, version in installed.items() if version)
    found = [ok("installed", text or "nothing", versions=installed)]
    if paddle is None:
        found.append(
            fail(
                "paddle", f"paddle is not installed; for a card see docs/install.md, for a CPU:\n{install_line('cpu')}"
            )
        )
    if (old := versions.judge_tokenizers(installed["tokenizers"])) is not None:
        found.append(old)
    plugin = installed[versions.PLUGIN]
    if plugin is None and on_npu and not env.raw("CUSTOM_DEVICE_ROOT"):
        found.append(fail("plug-in", f"{versions.PLUGIN} is not installed; it is on paddle's own package index only"))
    facts = {"driver": machine.read_driver(), "cann": machine.read_cann(), "paddle": paddle, "plugin": plugin}
    found.append(versions.judge(facts))
    return found


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _variables(on_npu: bool, set_here: tuple[str, ...]) -> list[Finding]:
    found = [
        (fail if problem.fatal and on_npu else note)(problem.variable, problem.text)
        for problem in (*npu_environment.problems(), *npu_environment.unknown_flags(env.names("FLAGS_npu_")))
    ]
    different = npu_environment.differences()
    if not on_npu:
        return [*found, *_own_flags()]
    for name, (value, recommended) in different.items():
        text = f'"{value}"; recommended: "{recommended}"'
        if npu_environment.IMAGE_PRESETS.get(name) == value:
            text += " (a preset of paddle's image; config/npu/env.sh replaces it)"
        found.append(note(name, text, value=value, recommended=recommended))
    if set_here:
        # Commands set them themselves; a program of the user's own that imports paddle does not.
        names = [line.partition("=")[0] for line in set_here]
        text = f"{' '.join(set_here)} were missing; source config/npu/env.sh, so that every program has them"
        found.append(note("set here", text, missing=names))
        if npu_environment.LAUNCHER in names:
            text = (
                f'without {npu_environment.LAUNCHER}=npu "paddle.distributed.launch --devices 0,1" of paddle 3.0 ends '
            )
            found.append(
                note("launcher", text + 'with "substring not found"; train.sh and launch.sh set it themselves')
            )
    elif not different:
        found.append(ok("plug-in flags", "the recommended set is in force"))
    return [*found, *_own_flags()]


def _own_flags() -> list[Finding]:
    values = {name: env.get(name) for name in env.FLAGS}
    values.update({name: "(set)" for name, flag in env.FLAGS.items() if flag.secret and values[name]})
    changed = [f"{name}={value}" for name, value in values.items() if value != env.FLAGS[name].default]
    return [ok("PADDLEMIX flags", ", ".join(changed) or "all at their defaults", values=values)]


def _examine_device(wanted: Wanted, report: Report) -> None:
    if importlib.util.find_spec("paddle") is None:
        report.sections["device"] = [fail("device", "cannot be looked at without paddle")]
        return
    from paddlemix.doctor.imports import import_findings

    imports = import_findings()
    report.sections["packages"] += imports
    if imports[0].state == FAIL:
        report.sections["device"] = [fail("device", "cannot be looked at before the packages are in order")]
        return
    import paddle

    try:
        chosen = devices.choose(wanted.device, wanted.dtype)
        paddle.set_device(chosen.name)
    except (BackendError, RuntimeError, ValueError, OSError) as error:
        report.sections["device"] = [fail("device", str(error).strip().splitlines()[-1])]
        report.sections["operators"] = _operators(on_npu=False)
        return
    report.device = chosen.name
    if chosen.kind == "npu" and not wanted.cards:
        # Paddle computes on it, so a missing npu-smi (as with a stand-in device) stops nothing.
        report.sections["machine"] = [_softened(finding, "cards") for finding in report.sections["machine"]]
    custom = list(paddle.device.get_all_custom_device_type() or [])
    seen = sum(1 for name in paddle.device.get_available_custom_device() or [] if name.startswith("npu"))
    report.sections["device"] = [ok("device", chosen.reason, custom_devices=custom, dtype=chosen.dtype)]
    if chosen.kind == "npu" and seen < wanted.cards:
        text = f"paddle sees {seen}, {wanted.cards} were asked for; check ASCEND_RT_VISIBLE_DEVICES and /dev/davinci*"
        report.sections["device"].append(fail("npu devices", text))
    if chosen.kind == "cpu" and not wanted.device:
        devices.tune_cpu()
        missing = "no npu and no gpu that paddle can use; models run on the CPU in float32"
        report.sections["device"].append(note("missing", missing))
    report.sections["operators"] = _operators(on_npu=chosen.kind == "npu")
    if wanted.quick:
        return
    from paddlemix.doctor import operators, speed

    if chosen.kind == "npu":
        report.sections["self-check"] = operators.self_check(chosen.name, chosen.dtype)
    else:
        report.sections["self-check"] = [
            note("self-check", f"the fused operators run on an npu only, this is {chosen.name}")
        ]
    if not wanted.idle:
        report.sections["speed"] = speed.findings(chosen.name, chosen.dtype)


def _operators(*, on_npu: bool) -> list[Finding]:
    from paddlemix.doctor import operators

    return operators.forms(on_npu)
