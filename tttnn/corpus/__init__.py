"""Text in: JSONL shards, tokens, windows, tasks."""
