// SPDX-License-Identifier: Apache-2.0
// Greedy ids of a GGUF file in llama.cpp, as JSON on stdout.
//
//     node llama_cpp_worker.mjs FOLDER MODEL.gguf INPUTS.json
//
// FOLDER is where `npm install node-llama-cpp` was run. INPUTS: {"prompts": [ids], "texts": [text], "new": tokens}.
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [folder, file, inputs] = process.argv.slice(2);
const entry = path.join(path.resolve(folder), "node_modules", "node-llama-cpp", "dist", "index.js");
const {getLlama} = await import(pathToFileURL(entry));
const asked = JSON.parse(fs.readFileSync(inputs, "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: path.resolve(file)});
const answers = [];
for (const prompt of asked.prompts) {
    const context = await model.createContext({contextSize: prompt.length + asked.new + 8, threads: 1});
    const found = [];
    for await (const token of context.getSequence().evaluate(prompt, {temperature: 0, yieldEogTokens: true})) {
        found.push(token);
        if (found.length === asked.new) break;
    }
    answers.push(found);
    await context.dispose();
}
const ids = (asked.texts ?? []).map((text) => model.tokenize(text, false));
const special = model.tokens;
const told = {bos: special.bos, eos: special.eos, eot: special.eot, vocabulary: model.fileInfo.metadata.tokenizer.ggml.tokens.length};
console.log(JSON.stringify({answers, ids, told}));
process.exit(0);
