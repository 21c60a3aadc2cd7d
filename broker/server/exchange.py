"""Skeleton; see /tmp/brief3.md."""
