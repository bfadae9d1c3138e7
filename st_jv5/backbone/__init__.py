"""The student's transformer: its blocks, words, end token, rotary positions."""
