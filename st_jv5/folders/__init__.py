"""What a saved folder holds, and whether it may be read."""
