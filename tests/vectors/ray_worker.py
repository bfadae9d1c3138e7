"""Encodes through Ray, in a process of its own: model, corpus and folder are the arguments."""

import sys

from st_jv5.vectors import Corpus, encode_corpus

if __name__ == "__main__":
    model, documents, out = sys.argv[1:]
    settings = {"task": "retrieval", "precision": "int8", "shard_rows": 4}
    corpus = Corpus(documents, "text")
    encode_corpus(model, corpus, out, engine="ray", processes=2, **settings)
