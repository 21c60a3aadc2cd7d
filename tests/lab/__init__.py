"""Real test-environment hosts on one machine, for tests and the demo.

    with Lab(workdir) as lab:
        te1 = lab.add_host("te1")
        te1.run(["virsh", "list"])
        lab.ci.run(["ping", "-c1", te1.address])

Nothing touches the machine's own network or libvirt, and all of it dies with the process that
made it. Needs root.
"""

from tests.lab.errors import LabError
from tests.lab.host import LabHost
from tests.lab.image import GuestImage, ensure_image
from tests.lab.lab import Lab
from tests.lab.namespace import LabProcess, Namespace

__all__ = ["GuestImage", "Lab", "LabError", "LabHost", "LabProcess", "Namespace", "ensure_image"]
