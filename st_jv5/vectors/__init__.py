"""Vectors of a corpus on disk: written shard by shard, and searched."""

from st_jv5.vectors.converting import convert
from st_jv5.vectors.corpus import Corpus
from st_jv5.vectors.folder import VectorFolder, verify
from st_jv5.vectors.searching import Hit, search
from st_jv5.vectors.write import encode_corpus

__all__ = ["Corpus", "Hit", "VectorFolder", "convert", "encode_corpus", "search", "verify"]
