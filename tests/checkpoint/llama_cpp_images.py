# SPDX-License-Identifier: Apache-2.0
"""Questions about pictures to a GGUF model in llama.cpp's server, as JSON on stdout.

    python llama_cpp_images.py FOLDER INPUTS.json

For an interpreter with xllamacpp. FOLDER holds ``model-f32.gguf`` and ``mmproj-model-f32.gguf``. INPUTS: {"asked":
[{"prompt": text with one "<image>", "image": path}], "chats": [messages], "new": tokens}; an image part of ``chats`` is
{"type": "image", "path": path}. Out: {"answers": [ids], "prompts": [text with "<image>" for llama.cpp's marks]}.
"""

import base64
import json
import sys
import urllib.request
from pathlib import Path

import xllamacpp


def main(folder: str, inputs: str) -> None:
    asked = json.loads(Path(inputs).read_text())
    params = xllamacpp.CommonParams()
    params.model.path = f"{folder}/model-f32.gguf"
    params.mmproj.path = f"{folder}/mmproj-model-f32.gguf"
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.warmup = 512, 1, 1, False
    server = xllamacpp.Server(params)
    address = server.listening_address
    with urllib.request.urlopen(f"{address}/props") as found:
        mark = json.load(found)["media_marker"]

    def ask(path: str, body: dict) -> dict:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{address}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    answers = []
    for one in asked["asked"]:
        prompt = {"prompt_string": one["prompt"].replace("<image>", mark), "multimodal_data": [encoded(one["image"])]}
        body = {"prompt": prompt, "temperature": 0, "n_predict": asked["new"], "ignore_eos": True}
        answers.append(ask("/completion", body | {"return_tokens": True, "cache_prompt": False})["tokens"])
    prompts = []
    for messages in asked["chats"]:
        for message in messages:
            message["content"] = [as_url(part) for part in message["content"]]
        prompts.append(ask("/apply-template", {"messages": messages})["prompt"].replace(mark, "<image>"))
    print(json.dumps({"answers": answers, "prompts": prompts}))


def encoded(path: str) -> str:
    return base64.b64encode(Path(path).read_bytes()).decode()


def as_url(part: dict) -> dict:
    if part["type"] != "image":
        return part
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(part['path'])}"}}


if __name__ == "__main__":
    main(*sys.argv[1:])
