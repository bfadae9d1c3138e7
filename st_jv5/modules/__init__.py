"""The modules of a model; ``modules.json`` stores their dotted paths, so never move them."""

from st_jv5.modules.adapter_router import AdapterRouter
from st_jv5.modules.heads import Heads
from st_jv5.modules.matryoshka import MatryoshkaTruncate
from st_jv5.modules.pooling import LastTokenPooling, TokenPooling
from st_jv5.modules.rotation import Rotation

__all__ = [
    "AdapterRouter",
    "Heads",
    "LastTokenPooling",
    "MatryoshkaTruncate",
    "Rotation",
    "TokenPooling",
]
