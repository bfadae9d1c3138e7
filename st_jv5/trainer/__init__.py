"""Training on sentence-transformers' trainer: adapters, prompts, samplers, checkpoints."""

from st_jv5.trainer.adapter_trainer import AdapterTrainer
from st_jv5.trainer.data_sets import trainer_prompts
from st_jv5.trainer.resuming import last_checkpoint
from st_jv5.trainer.sampling import weighted

__all__ = ["AdapterTrainer", "last_checkpoint", "trainer_prompts", "weighted"]
