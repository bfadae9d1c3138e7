"""Studies: what the figures of README, CONTRIBUTING and notes/log.md were measured with."""
