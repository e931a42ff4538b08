"""Streams of tasks: built-in ones, JSONL data, and views of a stream."""
