"""Train an adapter with a loss of your own beside one of ours: they share one forward.

pip install .
head -1 faq.jsonl  # {"query": "How do I ...?", "positive": "Open the settings ..."}
python examples/own_loss.py out/demo/model faq.jsonl out/own_loss
"""

import sys

import torch
from datasets import load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

import st_jv5


class Uniformity(torch.nn.Module):
    """Texts spread over the sphere: log mean exp(-2 distance^2), arXiv:2005.10242."""

    def compute_loss_from_embeddings(self, embeddings, labels):  # unit rows, a tensor per column
        return sum((4 * x @ x.T - 4).exp().mean().log() for x in embeddings)


def main(path: str, file: str, out: str, *, steps: int = 100) -> None:
    """Train with both terms, which are logged, and save the model."""
    pairs = load_dataset("json", data_files=file, split="train")
    model = SentenceTransformer(path)
    st_jv5.add_task(model, "spread")
    infonce = st_jv5.losses.InfoNCELoss(model)
    loss = st_jv5.CompositeLoss(model, {"infonce": (infonce, 1.0), "uniform": (Uniformity(), 1.0)})
    args = SentenceTransformerTrainingArguments(
        out, max_steps=steps, learning_rate=2e-4, logging_steps=10, report_to="none"
    )
    st_jv5.AdapterTrainer(model, args, tasks="spread", train_dataset=pairs, loss=loss).train()
    model.save_pretrained(f"{out}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
