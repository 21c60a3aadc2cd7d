"""`make chaos`: leases must outlive the death of anyone, seen from the outside."""
