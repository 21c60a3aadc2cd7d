"""Everything Gearman. The only package that imports gear.

A CI job's client imports `endpoint`, `link`, `client`, `links` and `worker` on its way to a lock:
they need gear and asyncio, and nothing heavier.
"""
