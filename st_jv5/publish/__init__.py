"""From a folder to the Hub: its card, its self-test, the upload."""
