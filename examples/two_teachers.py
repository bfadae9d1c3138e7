"""Distil a small base from two teachers at once: its cosines become the mean of theirs.

pip install .
python examples/two_teachers.py sentence-transformers/all-MiniLM-L6-v2 texts.txt out/two \
    sentence-transformers/all-mpnet-base-v2 BAAI/bge-base-en-v1.5
"""

import sys
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

import st_jv5
from st_jv5.teacher import SeveralTeachers, TeacherStore, fill


def main(start: str, file: str, out: str, *teachers: str, steps: int = 200) -> None:
    """Distil on the lines of a file, and save the base, ready for adapters."""
    texts = list(dict.fromkeys(filter(str.strip, Path(file).read_text("utf-8").splitlines())))
    spaces, folder = [], TeacherStore.open(f"{out}/teachers", create=True)
    for name in teachers:
        teacher = SentenceTransformer(name)
        space = folder.space(name, dim=teacher.get_embedding_dimension())
        fill(space, teacher, texts)  # goes on where it was stopped
        spaces.append(space)
    both = SeveralTeachers(spaces)  # weights=[2, 1] listens to the first one more
    student = st_jv5.new_student(start, layers=3)
    data = Dataset.from_dict({"text": texts, "label": both.rows(texts)[:, None].tolist()})
    loss = st_jv5.losses.clustering_loss(student, both.dim, store=both)
    args = SentenceTransformerTrainingArguments(
        out, max_steps=steps, per_device_train_batch_size=64, learning_rate=1e-4, report_to="none"
    )
    st_jv5.AdapterTrainer(student, args, tasks="base", train_dataset=data, loss=loss).train()
    student.save_pretrained(f"{out}/base")


if __name__ == "__main__":
    main(*sys.argv[1:])
