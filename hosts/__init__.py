"""The agent: carves a host into environments and offers each to a Gearman broker."""
