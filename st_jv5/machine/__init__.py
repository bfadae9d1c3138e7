"""What the machine has: cores, GPUs, a Ray cluster."""
