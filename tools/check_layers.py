# SPDX-License-Identifier: Apache-2.0
"""The layers of the code, held by reading the imports of every file (nothing is imported).

    python tools/check_layers.py [ROOT]

Prints one line for each violation and exits with 1 when there is one. The rules are those of docs/architecture.md.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

LAYERS = (
    ("utils",),
    ("settings",),
    ("text", "imaging", "ops"),
    ("splice",),
    ("models", "datasets"),
    ("checkpoint",),
    ("generation",),
    ("trainer", "annotate"),
    ("eval", "serve", "export", "validate", "demo", "doctor", "auto"),
    ("tools", "examples", "deploy", "__main__"),
)
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
TOP = len(LAYERS) - 1

NO_PADDLE = ("utils", "settings", "text", "imaging", "splice", "datasets", "eval")
LAZY_PADDLE = ("paddlemix/utils/device.py",)
"""Files of rooms without paddle that may import it inside a function."""

ONLY_IN = {
    "paddlenlp": ("paddlemix/trainer/",),
    "requests": ("paddlemix/utils/files.py",),
    "urllib3": ("paddlemix/utils/files.py",),
    "http.client": ("paddlemix/utils/exchange.py",),
    "ssl": ("paddlemix/utils/exchange.py",),
    "socket": (
        "paddlemix/utils/addresses.py",
        "paddlemix/utils/exchange.py",
        "paddlemix/serve/listening.py",
        "paddlemix/doctor/machine.py",  # asks whether a port of this machine is free
        "tools/bench_serve.py",  # sends a worker of its own what no client would
    ),
    **dict.fromkeys(("httpx", "aiohttp", "urllib.request", "ftplib", "xmlrpc", "telnetlib", "smtplib"), ()),
    "sentencepiece": ("paddlemix/text/", "paddlemix/demo/model.py"),
    "tokenizers": ("paddlemix/text/",),
    "safetensors": ("paddlemix/checkpoint/", "paddlemix/trainer/checkpointing.py", "tools/"),
    "ml_dtypes": ("paddlemix/checkpoint/",),
    "yaml": ("paddlemix/settings/",),
    "openpyxl": ("paddlemix/eval/",),
    "starlette": ("paddlemix/serve/",),
    "prometheus_client": ("paddlemix/serve/",),
    "h11": ("paddlemix/serve/",),
    "uvicorn": ("paddlemix/serve/",),
    "gradio": ("paddlemix/serve/",),
    "torch": ("tools/bench_peer.py",),
    "transformers": ("tools/bench_peer.py",),
}
"""Libraries, or modules of them, that belong to some files only: the network has one policy (``utils.files.fetch``)."""

ENVIRONMENT = "paddlemix/utils/env.py"
HEADER = "# SPDX-License-Identifier: Apache-2.0"

Import = tuple[str, int, bool]
"""Module, line, and whether the import stands inside a function."""


class SourceTree:
    """All Python files below ``root`` but the tests, by their module names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trees: dict[str, ast.Module] = {}
        self.files: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self._imports: dict[str, list[Import]] = {}
        for folder in ("paddlemix", "tools", "examples", "deploy"):
            for path in sorted((root / folder).rglob("*.py")):
                name = path.relative_to(root).as_posix()
                module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
                self.files[module] = name
                self.texts[module] = path.read_text(encoding="utf-8")
                self.trees[module] = ast.parse(self.texts[module], name)

    def imports(self, module: str) -> list[Import]:
        """Every module that ``module`` imports; ``from a.b import c`` is a.b.c when that is a file of ours."""
        if module not in self._imports:
            self._imports[module] = [*self._read_imports(module)]
        return self._imports[module]

    def _read_imports(self, module: str) -> Iterator[Import]:
        waiting: list[tuple[ast.AST, bool]] = [(self.trees[module], False)]
        while waiting:
            node, inside = waiting.pop()
            if isinstance(node, ast.expr):
                continue  # no import stands in an expression
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, node.lineno, inside
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    known = whole in self.files or whole in ONLY_IN
                    yield (whole if known else node.module or ""), node.lineno, inside
            inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            waiting += [(child, inside) for child in ast.iter_child_nodes(node)]


def room_of(module: str) -> str | None:
    """Room of a module; the package itself (``paddlemix``) is None. Root folders are rooms of the top layer."""
    parts = module.split(".")
    if parts[0] != "paddlemix":
        return f"root {parts[0]}"
    return parts[1] if len(parts) > 1 else None


def layer_of(module: str) -> int | None:
    """Layer of a module of ours, or None for the bare package."""
    room = room_of(module)
    if room is None:
        return None
    return LAYER_OF.get(room.removeprefix("root "), TOP) if room in LAYER_OF or room.startswith("root ") else -1


def check(root: Path) -> list[str]:
    """All violations below ``root``, as lines ``file:line: what is wrong``."""
    tree = SourceTree(root)
    found = [*_unknown_rooms(tree), *_headers(tree)]
    for module in tree.files:
        found += _layers(tree, module)
        found += _libraries(tree, module)
        found += _forms(tree, module)
    return found + _circles(tree)


def _unknown_rooms(tree: SourceTree) -> Iterator[str]:
    for module, file in tree.files.items():
        if layer_of(module) == -1:
            yield f"{file}:1: the room {room_of(module)} is in no layer"


def _headers(tree: SourceTree) -> Iterator[str]:
    for module, file in tree.files.items():
        lines = tree.texts[module].splitlines()
        if not lines or HEADER not in (lines[0], lines[1] if lines[0].startswith("#!") and len(lines) > 1 else ""):
            yield f"{file}:1: the first line has to be {HEADER}"


def _layers(tree: SourceTree, module: str) -> Iterator[str]:
    own_room, own_layer = room_of(module), layer_of(module)
    for target, line, _ in tree.imports(module):
        if target.split(".")[0] != "paddlemix" or room_of(target) is None:
            continue
        room, layer = room_of(target), layer_of(target)
        where = f"{tree.files[module]}:{line}: {module}"
        if own_room is None:
            yield f"{where} imports {target}: importing the package does nothing"
        elif room != own_room and layer is not None and own_layer is not None and layer >= own_layer >= 0:
            way = "beside it" if layer == own_layer else "above it"
            yield f"{where} (layer {own_layer}) imports {target} (layer {layer}, {way})"


def _libraries(tree: SourceTree, module: str) -> Iterator[str]:
    file = tree.files[module]
    for target, line, inside in tree.imports(module):
        library = target.split(".")[0]
        if library == "paddle" and room_of(module) in NO_PADDLE and not (inside and file in LAZY_PADDLE):
            yield f"{file}:{line}: the room {room_of(module)} works without paddle"
        for name, allowed in ONLY_IN.items():
            if (target == name or target.startswith(f"{name}.")) and not file.startswith(allowed):
                yield f"{file}:{line}: {name} is imported in {', '.join(allowed) or 'no file'} only"


def _forms(tree: SourceTree, module: str) -> Iterator[str]:
    file = tree.files[module]
    for node in ast.walk(tree.trees[module]):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{file}:{node.lineno}: relative import; write the whole name"
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield f"{file}:{node.lineno}: star import"
        elif file != ENVIRONMENT and _reads_environment(node):
            yield f"{file}:{node.lineno}: environment variables are read in {ENVIRONMENT} only"


def _reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(alias.name in ("environ", "getenv", "putenv") for alias in node.names)
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr in ("environ", "getenv", "putenv")
    )


def _circles(tree: SourceTree) -> list[str]:
    """One line for each circle of files; imports inside functions count too."""
    graph = {
        module: sorted({name for name, _, _ in tree.imports(module) if name in tree.files}) for module in tree.files
    }
    found: list[str] = []
    state: dict[str, int] = {}

    def visit(module: str, trail: list[str]) -> None:
        state[module] = 1
        for target in graph[module]:
            if state.get(target) == 1:
                circle = [*trail[trail.index(target) :], target]
                found.append(f"{tree.files[module]}:1: circle {' -> '.join(circle)}")
            elif target not in state:
                visit(target, [*trail, target])
        state[module] = 2

    for module in graph:
        if module not in state:
            visit(module, [module])
    return found


def main(argv: list[str] | None = None) -> int:
    """Check the repository (or the folder given) and return the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    found = check(root)
    for line in found:
        print(line)
    print(f"layers: {len(found)} violations" if found else "layers: all files in their places")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
