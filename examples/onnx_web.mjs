// An st_jv5 model in JavaScript, in a browser or under node: all tasks from one ONNX graph.
//
//     st-jv5 export out/demo/model out/all-tasks --all-tasks --to onnx
//     npm install onnxruntime-web @huggingface/tokenizers
//     node onnx_web.mjs out/all-tasks retrieval query "who painted it?"
//
// It prints a vector for each text: the task, the name of its prompt, and the texts are arguments.
import fs from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";

const [folder, task, promptName, ...texts] = process.argv.slice(2);
const read = (name) => JSON.parse(fs.readFileSync(`${folder}/${name}`, "utf-8"));

const told = read("tasks.json");
const tokenizer = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
const session = await ort.InferenceSession.create(fs.readFileSync(`${folder}/model.onnx`));

function tokens(text) {
    const { ids } = tokenizer.encode(text);
    // A text that is too long is cut, and still ends as every other does.
    return ids.length <= told.max_tokens ? ids : [...ids.slice(0, told.max_tokens - 1), ids.at(-1)];
}

async function embed(texts, task, promptName = "document") {
    const number = told.tasks.findIndex(({ name }) => name === task);
    const prompt = told.tasks[number].prompts[promptName];
    const rows = texts.map((text) => tokens(prompt + text));
    const width = Math.max(...rows.map((row) => row.length));
    const padded = (value) => rows.flatMap((row) => [
        ...row.map((id) => BigInt(value ?? id)),
        ...Array(width - row.length).fill(BigInt(value === undefined ? told.pad_token_id : 0)),
    ]);
    const shape = [rows.length, width];
    const { sentence_embedding: found } = await session.run({
        input_ids: new ort.Tensor("int64", BigInt64Array.from(padded()), shape),
        attention_mask: new ort.Tensor("int64", BigInt64Array.from(padded(1)), shape),
        task: new ort.Tensor("int64", BigInt64Array.from(rows, () => BigInt(number)), [rows.length]),
    });
    const dim = found.dims[1];
    return rows.map((_, row) => Array.from(found.data.subarray(row * dim, (row + 1) * dim)));
}

console.log(JSON.stringify(await embed(texts, task, promptName)));
