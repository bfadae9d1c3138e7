"""Add an adapter, train it on pairs, and see on others whether it finds more than the base.

pip install .
head -1 faq.jsonl  # {"query": "How do I ...?", "positive": "Open the settings ..."}
python examples/fine_tune_adapter.py out/demo/model faq.jsonl out/faq
"""

import sys

from datasets import Dataset, load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

import st_jv5


def found(model: SentenceTransformer, pairs: Dataset, task: str) -> float:
    """Share of the queries whose own document is the nearest."""
    queries = st_jv5.encode(model, pairs["query"][:], task, prompt_name="query")
    documents = st_jv5.encode(model, pairs["positive"][:], task, prompt_name="document")
    return float(((queries @ documents.T).argmax(axis=1) == range(len(pairs))).mean())


def main(path: str, file: str, out: str, *, steps: int = 100) -> None:
    """Print the share of base and adapter, and save the model."""
    pairs = load_dataset("json", data_files=file, split="train").train_test_split(0.2, seed=0)
    model = SentenceTransformer(path)
    st_jv5.add_task(model, "faq", prompts=model.prompts)  # all other weights stay as they are
    args = SentenceTransformerTrainingArguments(
        out, max_steps=steps, per_device_train_batch_size=32, learning_rate=2e-4, report_to="none"
    )
    loss = st_jv5.losses.InfoNCELoss(model)
    st_jv5.AdapterTrainer(model, args, tasks="faq", train_dataset=pairs["train"], loss=loss).train()
    base, faq = (found(model, pairs["test"], task) for task in ("base", "faq"))
    print(f"{len(pairs['test'])} held-out pairs: base {base:.1%}, faq {faq:.1%}")
    model.save_pretrained(f"{out}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
