# SPDX-License-Identifier: Apache-2.0
"""Measure the models on a CPU with random weights, and compare with the same work done otherwise.

    python tools/bench.py load [--help]          (loading and converting: tools/bench_load.py)
    python tools/bench.py {order,rows} [--help]  (the order of rows, reading a million of them: tools/bench_data.py)
    python tools/bench.py {validate,start} [--help]  (a look at 100,000 rows, the start over a million: bench_start.py)
    python tools/bench.py head [--help]          (head and loss by portions: tools/bench_head.py)
    python tools/bench.py static [--help]        (static graphs beside the dynamic model: tools/bench_static.py)
    python tools/bench.py bits [--help]          (weights of 16, 8 and 4 bits: tools/bench_bits.py)
    python tools/bench.py train [--help]         (a training step, full and LoRA: tools/bench_train.py)
    python tools/bench.py serve [--help]         (a worker under load and abuse: tools/bench_serve.py)
    python tools/bench.py all [--help]           (growth over tiles, rows, context, rounds: tools/bench_growth.py)
    python tools/bench.py {vision,prefill,decode,batch,chat} [--shape tiny|mid] [--repeat N] [--peer PYTHON]
        [--json FILE]

Every contestant is a process of its own with one thread, asked in turn (A B C A B C ...). The unit is process CPU time,
which other load on the machine hardly moves; medians are printed. Ratios: tuned/untuned (PADDLEMIX_CPU_TUNING; not for
batch, which would take minutes), and ours/peer (HF transformers, run by the interpreter given with --peer; not for
chat, where the work would differ). Shares: what the work takes at least, by the rates of large matrix products and of
reading memory that were measured in the same run (tools/bench_limits.py).
chat asks a ChatSession: the first token of round 2 with what round 1 kept / the same round in a session that has to
encode the image and prefill the whole conversation again. batch: answers of 32 tokens, together and one by one.
"""

import argparse
import importlib
import json
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "vision_width": 64, "vision_ffn": 256, "vision_layers": 4, "vision_heads": 4, "image": 112, "patch": 14,
        "width": 128, "ffn": 352, "layers": 4, "heads": 4, "kv_heads": 4, "vocab": 1024, "prompt": 128, "tokens": 16,
    },
    "mid": {
        "vision_width": 1024, "vision_ffn": 4096, "vision_layers": 24, "vision_heads": 16, "image": 336, "patch": 14,
        "width": 1024, "ffn": 2816, "layers": 16, "heads": 16, "kv_heads": 16, "vocab": 32064, "prompt": 640,
        "tokens": 16,
    },
}  # fmt: skip
"""``prompt``: merged places of a prompt, image rows included; ``tokens``: generated tokens of one repetition."""

KINDS = ("vision", "prefill", "decode", "batch", "chat")
OTHERS = ("load", "head", "static", "bits", "train", "serve")
"""Kinds with a command of their own in ``tools/bench_<kind>.py``."""
WORKERS = ("head", "static", "train", "limits", "growth", "bits")
"""Kinds whose worker is the function ``work`` of that file."""


class Contestant:
    """A process that prepares once and then does the work each time it is asked."""

    def __init__(self, name: str, command: list[str], spec: dict[str, Any], tuned: bool = True) -> None:
        self.name = name
        self.times: list[dict[str, float]] = []
        settings = ["OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1", f"PADDLEMIX_CPU_TUNING={int(tuned)}"]
        self.process = subprocess.Popen(
            ["env", *settings, *command, json.dumps(spec)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self) -> dict[str, float]:
        """Let it do the work once; seconds of CPU time by stage."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name}: the worker ended with code {self.process.wait()}; its error is above")

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def median(self, stage: str) -> float:
        """Seconds, over the repetitions so far."""
        return statistics.median(item[stage] for item in self.times)


def measure(kind: str, shape: str, repeat: int, peer: str | None) -> dict[str, Any]:
    """Run all contestants interleaved; medians in seconds and ratios."""
    spec = {"kind": kind, **SHAPES[shape]}
    from tools.bench_limits import shares

    peer = None if kind == "chat" else peer
    ours = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    with ExitStack() as stack:
        limits = Contestant("limits", ours, {"kind": "limits"})
        contestants = [Contestant("tuned", ours, spec)]
        if kind != "batch":
            contestants.append(Contestant("untuned", ours, spec, tuned=False))
        if peer:
            from tools.bench_peer import WORKER

            contestants.append(Contestant("peer", [peer, "-c", WORKER], spec))
        for contestant in (limits, *contestants):
            stack.callback(contestant.close)
            if (kind, contestant.name) != ("batch", "tuned"):  # it has a shorter way, of its own
                contestant.ask()  # warm up
        for _ in range(repeat):
            for contestant in (limits, *contestants):
                contestant.times.append(contestant.ask())
    ratios = _ratios({item.name: item for item in contestants}, kind)
    medians = {f"{item.name} {stage}": item.median(stage) for item in contestants for stage in item.times[0]}
    rates = {name: limits.median(name) for name in limits.times[0]}
    near = {f"{item.name} {stage}": shares(stage, item.median(stage), spec, rates) for item in contestants
            for stage in item.times[0]}  # fmt: skip
    return {
        "kind": kind, "shape": shape, "repeat": repeat, "seconds": medians, "ratios": ratios, "limits": rates,
        "shares": {name: found for name, found in near.items() if found},
    }  # fmt: skip


def _ratios(contestants: dict[str, Contestant], kind: str) -> dict[str, float]:
    tuned, ratios = contestants["tuned"], {}
    for name, label in (("untuned", "tuned/untuned"), ("peer", "ours/peer")):
        for stage in contestants[name].times[0] if name in contestants else ():
            if stage in tuned.times[0]:
                ratios[f"{label} {stage}"] = tuned.median(stage) / contestants[name].median(stage)
    if kind == "batch":
        ratios["8 answers, alone/together"] = tuned.median("8 alone") / tuned.median("8 together")
    if kind == "chat":
        ratios["round 2 first token, kept/again"] = tuned.median("kept") / tuned.median("again")
    return ratios


def work(spec: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Build the model of ``spec``; the returned function does the work once."""
    from tools.bench_batch import batch
    from tools.bench_chat import chat

    kinds = {"vision": vision, "prefill": prefill, "decode": decode, "batch": batch, "chat": chat}
    return kinds[spec["kind"]](build(spec), spec)


def build(spec: dict[str, Any]) -> Any:
    """The model of ``spec`` with random weights, ready to answer, on a tuned CPU."""
    import paddle

    from paddlemix.models.llava import build_empty, init_weights
    from paddlemix.utils.device import tune_cpu

    tune_cpu()
    paddle.set_grad_enabled(False)
    model = build_empty(model_config(spec))
    init_weights(model, seed=0)
    return model.prepare_inference()


def vision(model: Any, spec: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """One tile through tower and projector."""
    import paddle

    pixels = paddle.randn([1, 3, spec["image"], spec["image"]])
    return lambda: {"vision": timed(lambda: model.encode_images(pixels).sum().item())}


def prefill(model: Any, spec: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """A prompt into an empty cache, and the first token."""
    feed, length = feeder(model, spec), spec["prompt"]
    return lambda: {"prefill": timed(lambda: feed(0, length, model.new_cache(1)))}


def decode(model: Any, spec: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Tokens after a prompt, one by one; seconds of one."""
    feed, length, new = feeder(model, spec), spec["prompt"], spec["tokens"]
    cache = model.new_cache(1)
    feed(0, length, cache)

    def run() -> dict[str, float]:
        cache.trim(length)
        return {"decode": timed(lambda: [feed(length + i, length + i + 1, cache) for i in range(new)]) / new}

    return run


def feeder(model: Any, spec: dict[str, Any]) -> Callable[[int, int, Any], int]:
    """A function that puts places ``first`` to ``last`` of a random prompt into a cache and gives the next token."""
    import paddle

    from paddlemix.ops.attention.contract import Mask

    total = spec["prompt"] + spec["tokens"]
    ids, places = paddle.randint(3, spec["vocab"], [1, total]), paddle.arange(total).unsqueeze(0)

    def feed(first: int, last: int, cache: Any) -> int:
        source = paddle.arange(last - first).unsqueeze(0)
        embeds = model.embed(ids[:, first:last], source, None)
        mask = Mask(causal=True, offset=cache.length)
        return model.score_next(embeds, places[:, first:last], mask, cache).argmax(-1).item()

    return feed


def model_config(spec: dict[str, int]) -> Any:
    """The LlavaConfig of a shape."""
    from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig, VisionConfig

    text = TextConfig(
        spec["vocab"], spec["width"], spec["ffn"], spec["layers"], spec["heads"], spec["kv_heads"],
        max_position_embeddings=4096,
    )  # fmt: skip
    vision = VisionConfig(
        spec["vision_width"], spec["vision_ffn"], spec["vision_layers"], spec["vision_heads"], spec["image"],
        spec["patch"],
    )  # fmt: skip
    return LlavaConfig(text, vision, ImageConfig(spec["image"], spec["image"], "pad"))


def timed(action: Callable[[], Any]) -> float:
    """CPU seconds of this process for one call."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


def worker(spec: dict[str, Any]) -> None:
    """Answer each line of stdin with one line of JSON."""
    kind = spec["kind"]
    run = importlib.import_module(f"tools.bench_{kind}").work(spec) if kind in WORKERS else work(spec)
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)


def report(result: dict[str, Any]) -> Iterator[str]:
    """Lines for a person."""
    yield f"{result['kind']}, shape {result['shape']}, median of {result['repeat']}, one thread, CPU time"
    for name, seconds in result["seconds"].items():
        yield f"  {name:<28}{seconds * 1000:10.1f} ms"
    for name, ratio in result["ratios"].items():
        yield f"  {name:<48}{ratio:7.3f}"
    if not result["shares"]:
        return
    product, read = (result["limits"][name] / 1e9 for name in ("product", "read"))
    yield f"  limits: matrix products {product:.0f} GFLOP/s, reading memory {read:.1f} GB/s; shares of them:"
    for name, share in result["shares"].items():
        yield f"  {name:<28}{share['product']:10.0%} of the products {share['read']:10.0%} of the memory"


def _kind(text: str) -> str:
    if text not in KINDS:
        others = ", ".join((*OTHERS, "order", "rows", "validate", "start", "all"))
        told = f"{text!r}: expected {', '.join(KINDS)}; {others} have flags of their own, behind their name"
        raise argparse.ArgumentTypeError(told)
    return text


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, print."""
    arguments = sys.argv[1:] if argv is None else argv
    warnings.filterwarnings("ignore", message="No ccache found")  # 2026-11, paddle 3.3.1: each worker would say it
    if arguments[:1] == ["--worker"]:
        worker(json.loads(arguments[1]))
        return 0
    if arguments[:1] == ["static-write"]:
        importlib.import_module("tools.bench_static").write(json.loads(arguments[1]))
        return 0
    if arguments[:1] == ["all"]:
        return importlib.import_module("tools.bench_growth").main(arguments[1:])
    if arguments and arguments[0] in OTHERS:
        return importlib.import_module(f"tools.bench_{arguments[0]}").main(arguments[1:])
    if arguments[:1] in (["order"], ["rows"]):
        from tools.bench_data import main as data

        return data(arguments[0], arguments[1:])
    if arguments[:1] in (["validate"], ["start"]):
        from tools.bench_start import main as run

        return run(arguments[0], arguments[1:])
    from paddlemix.utils.options import at_least_one
    from paddlemix.utils.paths import new_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", type=_kind, metavar="{" + ",".join(KINDS) + "}")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny", help="size of the model (default: tiny)")
    parser.add_argument("--repeat", type=at_least_one, default=5, help="times of which the median counts (default: 5)")
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter that has torch and transformers")
    parser.add_argument("--json", type=new_file, help="also write the result to this file")
    args = parser.parse_args(arguments)
    if args.peer is not None and shutil.which(args.peer) is None:
        parser.error(f"--peer {args.peer}: there is no such program; give a Python that has torch and transformers")
    result = measure(args.kind, args.shape, args.repeat, args.peer)
    print("\n".join(report(result)))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
