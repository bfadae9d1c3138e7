"""Serve on a Ray cluster: a replica has a model, its queue, and all paths of `st-jv5 serve`.

pip install ".[serve]" "ray[serve]"
python examples/ray_serve.py out/demo/model 8000
"""

import os
import sys

from fastapi import FastAPI
from ray import serve


def embeddings(path: str, replicas: int = 1) -> serve.Application:
    """The application, which answers by the name st-jv5."""
    keys = os.environ.get("ST_JV5_API_KEY", "").split()

    def build() -> FastAPI:
        """Runs in each replica: the thread before the model cannot be sent there."""
        from sentence_transformers import SentenceTransformer

        from st_jv5.serve.app import create_app

        return create_app(SentenceTransformer(path), ["st-jv5"], keys=keys)

    deployment = serve.deployment(
        num_replicas=replicas,
        ray_actor_options={"num_cpus": 1},  # torch gets as many threads; num_gpus for GPUs
        max_ongoing_requests=256,  # requests share batches: Ray's 5 would leave batches small
    )
    return deployment(serve.ingress(build)()).bind()


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(embeddings(os.path.abspath(sys.argv[1])), blocking=True)
