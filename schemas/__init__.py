"""The vocabulary: models, names and errors that every other package shares.

`errors`, `exits`, `names` and `lock` are plain Python, because a CI job's client imports them on
its way to a lock and must start fast; the rest are pydantic models.
"""
