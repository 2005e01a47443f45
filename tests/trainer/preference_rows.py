"""A tiny Llama and rows of ids that TRL and we train on: numpy alone, so that both sides make the same."""

import zlib

import numpy as np

VOCABULARY, WIDTH, INNER, LAYERS, HEADS, KEYS = 64, 16, 32, 2, 4, 2
END = 2
BATCH, STEPS, RATE, EPSILON = 2, 10, 2e-3, 1e-6
LOSSES = {
    "sigmoid": {"beta": 0.1},
    "hinge": {"beta": 0.2},
    "ipo": {"beta": 0.1},
    "simpo": {"beta": 2.0, "simpo_gamma": 0.5, "label_smoothing": 0.1},
    "orpo": {"beta": 0.1},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.5},
    "rpo": {"beta": 0.1, "rpo_alpha": 0.5},
}
"""Settings by case; ``rpo`` is sigmoid with the cross entropy of the chosen answers."""


def rows_a_step(case: str) -> int:
    return 2 * BATCH if case == "kto" else BATCH


def weights() -> dict[str, np.ndarray]:
    """float32 by transformers' names; matrices [out, in]. Larger than a training begins with, so that losses move."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "lm_head.weight": (VOCABULARY, WIDTH)}
    keys = WIDTH * KEYS // HEADS
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (rows, WIDTH) for name, rows in
                   (("q", WIDTH), ("k", keys), ("v", keys), ("o", WIDTH))}  # fmt: skip
        shapes |= {f"{at}.mlp.gate_proj.weight": (INNER, WIDTH), f"{at}.mlp.up_proj.weight": (INNER, WIDTH)}
        shapes |= {f"{at}.mlp.down_proj.weight": (WIDTH, INNER)}
        shapes |= {f"{at}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (WIDTH,)
    found = {}
    for name, shape in shapes.items():
        drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        found[name] = (drawn * 0.25 if len(shape) > 1 else 1.0 + 0.1 * drawn).astype(np.float32)
    return found


def pairs() -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) in ids, without the end."""
    rng = np.random.default_rng(5)

    def some(low: int, high: int) -> list[int]:
        return rng.integers(3, VOCABULARY, rng.integers(low, high)).tolist()

    return [(some(2, 7), some(1, 9), some(1, 9)) for _ in range(BATCH * STEPS)]


def singles() -> list[tuple[list[int], list[int], bool]]:
    """(prompt, completion, label): both answers of every pair, wanted and unwanted ones mixed."""
    found = []
    for number, (prompt, chosen, rejected) in enumerate(pairs()):
        both = [(prompt, chosen, True), (prompt, rejected, False)]
        found += both[::-1] if number % 3 else both
    order = np.random.default_rng(6).permutation(len(found)).tolist()
    return [found[index] for index in order]


def sketch(gradients: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Of each gradient (transformers' names and axes) its norm and its product with a drawn direction."""
    found = {}
    for name, value in gradients.items():
        direction = np.random.default_rng(zlib.crc32(name.encode()) + 1).standard_normal(value.shape)
        value = value.astype(np.float64)
        found[name] = [float(np.linalg.norm(value)), float((value * direction).sum() / np.sqrt(value.size))]
    return found
