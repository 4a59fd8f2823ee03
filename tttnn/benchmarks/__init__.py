"""Speed and memory, measured beside those of other programs.

A side of a comparison is a process of its own, so that its peak memory and its
threads are its own; `process` speaks with it in JSON lines.
"""
