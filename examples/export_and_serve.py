"""Serve one task where there is no torch: an ONNX graph, its tokenizer, and a path as TEI has.

pip install tokenizers onnxruntime fastapi uvicorn
st-jv5 export out/demo/model out/onnx --task retrieval --to onnx
python examples/export_and_serve.py out/onnx 8000
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from fastapi import Body, FastAPI
from tokenizers import Tokenizer


def application(folder: Path) -> FastAPI:
    """POST /embed {"inputs": ["a text"], "prompt_name": "query"} answers with unit vectors."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    tokenizer.enable_truncation(config["model_max_length"])
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(config["pad_token"]))
    prompts = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]
    model, app = onnxruntime.InferenceSession(folder / "model.onnx"), FastAPI()

    @app.post("/embed")
    def embed(inputs: list[str] = Body(), prompt_name: str = Body("document")) -> list[list[float]]:
        rows = tokenizer.encode_batch([prompts.get(prompt_name, "") + text for text in inputs])
        ids, mask = [row.ids for row in rows], [row.attention_mask for row in rows]
        feed = {"input_ids": np.array(ids), "attention_mask": np.array(mask)}
        return model.run(None, feed)[0].tolist()

    return app


if __name__ == "__main__":
    uvicorn.run(application(Path(sys.argv[1])), port=int(sys.argv[2]))
