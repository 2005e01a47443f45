# SPDX-License-Identifier: Apache-2.0
"""What the README says is run: its commands as they stand, with tiny models under the published names."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README_zh.md")
TINY = {
    "liuhaotian/llava-v1.5-7b": "liuhaotian/llava-v1.5-tiny",
    "openai/clip-vit-tiny-patch14-56": "openai/clip-vit-tiny-patch14-56",
}
"""Published name: folder of the golden data's hub that stands in for it."""


def commands(text: str) -> list[str]:
    """Lines of the bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def python_commands(readme: str) -> list[str]:
    """The README's own python commands."""
    return [line for line in commands((ROOT / readme).read_text(encoding="utf-8")) if line.startswith("python ")]


@pytest.fixture
def checkout(tmp_path: Path, golden_llava: Path) -> Path:
    """A folder that looks like a checkout, with tiny models under ``models``, a picture and the README's rows."""
    place = tmp_path / "checkout"
    place.mkdir()
    for name in ("paddlemix", "tools", "config", "examples", "deploy"):
        (place / name).symlink_to(ROOT / name)
    for published, tiny in TINY.items():
        shutil.copytree(golden_llava / "hub" / tiny, tmp_path / "home" / "models" / published)
    picture = golden_llava / "images" / "landscape.png"
    shutil.copy(picture, place / "picture.png")
    (place / "shapes").mkdir()
    shutil.copy(picture, place / "shapes" / "1.png")
    rows = re.search(r"```json\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    (place / "train.json").write_text(rows.group(1), encoding="utf-8")
    return place


def run(command: str, place: Path, said: str = "") -> str:
    """Standard output of one README command; everything it said when it fails."""
    words = shlex.split(command)
    settings = {"PPMIX_HOME": str(place.parent / "home"), "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=place,
        env={**os.environ, **settings},
        input=said,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.timeout(300)
def test_readme_commands_run_in_order_on_a_tiny_model(checkout: Path) -> None:
    """Chat, LoRA training, chat with the adapter, merge: as printed in the README, one after the other."""
    said = "What colour is the shape?\n\n"
    outputs = [(line, run(line, checkout, said)) for line in python_commands("README.md")]
    assert len(outputs) == 4
    chats = [text for line, text in outputs if "run_predict_multiround" in line]
    assert len(chats) == 2
    assert all("ASSISTANT:" in text for text in chats)
    assert (checkout / "outputs" / "merged" / "config.json").is_file()
    merged = run(
        f"{python_commands('README.md')[0].split(' --')[0]} --model-path outputs/merged --max-new-tokens 4",
        checkout,
        said,
    )
    assert "ASSISTANT:" in merged


def test_both_readmes_show_the_same_commands() -> None:
    """The Chinese page is a translation: its commands are those of the English one."""
    english, chinese = (
        [line.split("  ")[0] for line in commands((ROOT / name).read_text(encoding="utf-8"))] for name in READMES
    )
    assert english == chinese


@pytest.mark.parametrize(
    "readme", [*READMES, "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
)
def test_every_link_leads_to_a_file(readme: str) -> None:
    """No dead relative links."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text)
    dead = [link for link in links if "://" not in link and not ((ROOT / readme).parent / link).exists()]
    assert not dead


def test_the_files_that_the_readme_names_in_code_exist() -> None:
    """Every `paddlemix/...` and `tools/...` path that is shown in the READMEs is there."""
    for readme in READMES:
        shown = re.findall(
            r"\b((?:paddlemix|tools|config|deploy)/[\w./-]+\.(?:py|json|sh|md))",
            (ROOT / readme).read_text(encoding="utf-8"),
        )
        missing = sorted({path for path in shown if not (ROOT / path).is_file()})
        assert not missing, (readme, missing)


def test_the_rows_of_the_readme_are_valid_json() -> None:
    """The sample rows can be pasted into a file."""
    for readme in READMES:
        block = re.search(r"```json\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), flags=re.S)
        assert json.loads(block.group(1))[0]["conversations"][0]["from"] == "human"
